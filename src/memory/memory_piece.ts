import type { Mappable } from "../../ffi/files/mappable.ts";
import type { Piece, Region } from "../core/map/region.ts";
import { MemoryRange } from "../core/memory_range.ts";
import type { Entry } from "../core/range_map.ts";
import { mappableOf } from "./file_backing.ts";

/** What memory is: a file others may share, memory of this process, or a file whose changes stay here. */
export type MemoryKind = "shared" | "private" | "copy-on-write";

/** Which region shows somewhere. */
export interface PieceRegion {
  /** Unique in its manager. */
  readonly id: number;
  /** The name given to `newRegion`. */
  readonly name: string;
  /** 0 to 255. */
  readonly priority: number;
  /** Whether it is RAM or a device's. */
  readonly type: "ram" | "device";
}

/** A part of guest memory that is backed in one way, as it was when asked for. Plain and frozen. */
export interface MemoryPiece {
  /** The GPA range. */
  readonly range: MemoryRange;
  /** The region that shows there. */
  readonly region: PieceRegion;
  /** Whether the guest may write it. */
  readonly writable: boolean;
  /** What it is. */
  readonly kind: MemoryKind;
  /**
   * The host address of `range.start`, in the process that asked. A `ProcessClient` maps memory when it is accessed, and
   * private and copy-on-write memory never: there `GuestMemory.hostAddress` says where something is.
   */
  readonly hva: number;
  /**
   * The file, `null` for private memory. The manager's handle: disposing it throws, clone it to keep one. Always `null`
   * in clients, whose owner may close it at any time.
   */
  readonly mappable: Mappable | null;
  /** Where in the file `range.start` lies, in bytes; 0 for private memory. */
  readonly fileOffset: number;
}

const regions = new WeakMap<Region, PieceRegion>();

function regionOf(region: Region): PieceRegion {
  const known = regions.get(region);
  if (known !== undefined) return known;
  const { id, name, priority, type } = region;
  const made = Object.freeze({ id, name, priority, type });
  regions.set(region, made);
  return made;
}

/** What a user is told of a piece; `base` is the host address of GPA 0. */
export function memoryPiece({ start, end, value }: Entry<Piece>, base: number): MemoryPiece {
  const { mapping, region, writable } = value;
  const mappable = mappableOf(mapping);
  return Object.freeze({
    range: new MemoryRange(start, end),
    region: regionOf(region),
    writable,
    kind: mapping.kind,
    hva: base + start,
    mappable,
    fileOffset: mappable === null ? 0 : start + mapping.delta,
  });
}
