import { Mappable } from "../../ffi/files/mappable.ts";
import { type MemoryUsage, memoryUsage } from "../../ffi/host/smaps.ts";
import type { DeviceMemory, InspectDeviceMemory } from "./device_memory.ts";
import type { InspectNode } from "../regions/inspect.ts";
import type { OwnBacking } from "./ram_backing.ts";

/** One RAM backing as it was asked for. */
export interface InspectRamBacking {
  /** Its name. */
  readonly name: string;
  /** The GPA ranges, such as `"0x1000-0x3000"`. */
  readonly ranges: readonly string[];
  /** What it is. */
  readonly backing: "shared" | "private" | "existing";
  /** Whether the file that exists is only read. */
  readonly copyOnWrite: boolean;
  /** The size of its hugetlb pages in bytes, `null` if none were asked for. */
  readonly hugepageSize: number | null;
  /**
   * Whether transparent huge pages were asked for or declined; `null` if nothing was said, so that they are asked for as
   * far as the host has them.
   */
  readonly transparentHugepages: boolean | null;
  /** The host NUMA node, `null` for any. */
  readonly hostNumaNode: number | null;
  /** Whether partitions bring it in when they are attached. */
  readonly prefetch: boolean;
}

/** The memory of a guest as plain data: everything in it survives `JSON.stringify`. */
export interface InspectGuestMemory extends InspectNode {
  /** The RAM backings, in the order they were given. */
  readonly ram: readonly InspectRamBacking[];
  /** The device memory, oldest first, whether the guest has it or not. */
  readonly devices: readonly InspectDeviceMemory[];
  /** What guest memory takes of the host's memory now, `null` where the kernel does not tell. */
  readonly usage: MemoryUsage | null;
}

/** Describes a backing. */
export function inspectBacking(
  { backing, ranges, name, copyOnWrite, prefetch, ...rest }: OwnBacking,
): InspectRamBacking {
  return {
    name,
    ranges: ranges.map(String),
    backing: backing instanceof Mappable ? "existing" : backing,
    copyOnWrite,
    hugepageSize: rest.hugepageSize ?? null,
    transparentHugepages: rest.transparentHugepages ?? null,
    hostNumaNode: rest.hostNumaNode ?? null,
    prefetch,
  };
}

/** Adds to `node` what the guest memory manager knows. */
export function inspectGuest(
  node: InspectNode,
  ram: readonly InspectRamBacking[],
  devices: Iterable<DeviceMemory>,
): InspectGuestMemory {
  return {
    ...node,
    ram,
    devices: [...devices].map((device) => device.inspect()),
    usage: memoryUsage(node.base, node.length) ?? null,
  };
}
