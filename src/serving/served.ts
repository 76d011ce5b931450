import type { Mappable } from "../../ffi/files/mappable.ts";
import type { MemoryRange } from "../core/memory_range.ts";
import type { MapParams } from "../core/map/region.ts";
import type { MemoryPolicy } from "../core/targets.ts";
import type { Json } from "./error_data.ts";

/** A region to be made, as a client describes it. */
export interface ServedRegionOptions {
  readonly name: string;
  readonly range: MemoryRange;
  readonly priority: number;
  readonly type?: "ram" | "device";
  readonly holes?: "exit" | "fault";
}

/** A mapping to be added, as a client describes it. */
export interface ServedMapping {
  readonly rangeInRegion: MemoryRange;
  readonly mappable: Mappable | "private";
  readonly fileOffset?: number;
  readonly writable?: boolean;
  readonly copyOnWrite?: boolean;
  readonly policy?: MemoryPolicy;
}

/** A region of a manager, as those who serve clients see it. */
export interface ServedRegion extends Disposable {
  readonly id: number;
  readonly name: string;
  readonly range: MemoryRange;
  readonly mapParams: MapParams | null;
  readonly visible: readonly MemoryRange[];
  map(params?: Partial<MapParams>): void;
  unmap(): void;
  addMapping(mapping: ServedMapping): void;
  removeMappings(rangeInRegion: MemoryRange): void;
  teardown(options?: { signal?: AbortSignal }): Promise<void>;
}

/** The manager that clients are served by: what they ask for, it is asked. */
export interface ServedManager {
  /** Makes a region; one that succeeds others has their age, which no region has at that time. */
  newRegion(options: ServedRegionOptions, age?: number): ServedRegion;
  /** The age of a region that is made now, for those that are to succeed it. */
  nextAge(): number;
  batch<T>(requests: () => T): T;
  /** What `RegionManager.regions` says, the ranges as their ends. */
  regions(): Json;
  /** Its memory map as plain data, safe for JSON. */
  inspect(): Json;
}
