/**
 * What the memory map is made of: regions, how they are mapped, and the mappings in them.
 *
 * @module
 */

import type { MemoryRange } from "../memory_range.ts";
import type { RangeMap } from "../range_map.ts";
import type { HostMemory, MemoryPolicy } from "../targets.ts";

/** What is fixed about a region for as long as it lives. */
export interface Region {
  /** Unique in its manager and ascending. */
  readonly id: number;
  /** Of two regions of equal priority the one with the smaller number wins: its id, or that of the one it succeeds. */
  readonly age: number;
  /** For messages and inspection; need not be unique. */
  readonly name: string;
  /** The GPA range it occupies, in bytes. */
  readonly range: MemoryRange;
  /** 0 to 255; the higher one wins. */
  readonly priority: number;
  /** What the memory is, which DMA targets and shareable regions care about. */
  readonly type: "ram" | "device";
  /** What a guest access to an unbacked address does: leave as an MMIO exit, or fault. */
  readonly holes: "exit" | "fault";
  /** Its newest state, which is the `RegionTable`'s own: ask that. */
  latest: RegionState | undefined;
}

/** What can change about a region. */
export interface RegionState {
  /** What cannot. */
  readonly region: Region;
  /** How it is mapped, `null` while it is not. */
  readonly params: MapParams | null;
  /** What backs it, by GPA. */
  readonly mappings: RangeMap<Mapping>;
}

/** How a mapped region is shown to guests. */
export interface MapParams {
  /** Whether the guest may write, where the mapping allows it too. */
  readonly writable: boolean;
  /** Whether the guest may execute; passed on to partitions. */
  readonly executable: boolean;
  /** Whether the memory is brought in ahead of use. */
  readonly prefetch: boolean;
}

const PARAMS: readonly MapParams[] = Array.from({ length: 8 }, (_, bits) =>
  Object.freeze({
    writable: (bits & 1) !== 0,
    executable: (bits & 2) !== 0,
    prefetch: (bits & 4) !== 0,
  }));

/** The params that say so. The same ones are the same object. */
export function paramsOf(writable: boolean, executable: boolean, prefetch: boolean): MapParams {
  return PARAMS[(writable ? 1 : 0) + (executable ? 2 : 0) + (prefetch ? 4 : 0)]!;
}

/** What the core needs to know about the file behind a mapping. The shell's own object, passed through untouched. */
export interface Backing {
  /** Identifies the open file: equal for every handle that shares it. */
  readonly file: object;
  /** The granularity of mappings in bytes: 4096, or the huge page size of a hugetlb file. */
  readonly pageSize: number;
  /** Whether mapping it can fail after the old mapping is already gone. */
  readonly mayFailLate: boolean;
}

/**
 * Memory that is in no file, or is no longer what its file says: it lives in its mapping alone. Compared by identity;
 * offsets count in it as in a file.
 */
export type OwnMemory = HostMemory;

/** What backs a part of a region. Values do not move when an entry is cut: offsets are relative to the GPA. */
export interface Mapping {
  /**
   * `"shared"`: the file itself. `"private"`: anonymous memory. `"copy-on-write"`: what the file has, until it is
   * written; written pages are the mapping's own.
   */
  readonly kind: "shared" | "private" | "copy-on-write";
  /** The file, `null` for anonymous memory. */
  readonly backing: Backing | null;
  /** The memory that is in no file, `null` where all of it is. */
  readonly own: OwnMemory | null;
  /** Offset in the file, or in the memory that is in none, minus GPA, in bytes. */
  readonly delta: number;
  /** Whether the mapping may be written, where the region allows it too. */
  readonly writable: boolean;
  /** Where the host should take the pages from. */
  readonly policy: MemoryPolicy | undefined;
}

/** A mapping as a region shows it. */
export interface Piece {
  /** What backs it. */
  readonly mapping: Mapping;
  /** The region that shows it. */
  readonly region: Region;
  /** How the region is mapped. */
  readonly params: MapParams;
  /** Region writable and mapping writable. */
  readonly writable: boolean;
}

/** Whether two mappings are the same memory, whatever their protection. Memory in no file is the same only as itself. */
export function isSameMemory(a: Mapping, b: Mapping): boolean {
  // First what tells most pairs apart.
  return a === b || (a.delta === b.delta && a.own === b.own && a.policy === b.policy &&
    (a.own !== null || a.backing?.file === b.backing?.file));
}
