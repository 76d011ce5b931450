import { regionsIn } from "../core/map/layers.ts";
import type { MapParams } from "../core/map/region.ts";
import type { State } from "../core/map/state.ts";
import type { MemoryRange } from "../core/memory_range.ts";

/** A region as it was when asked for. Plain and frozen. */
export interface RegionInfo {
  /** Unique in its manager; older regions have smaller ids. */
  readonly id: number;
  /** The name given to `newRegion`. */
  readonly name: string;
  /** The GPA range it occupies, in bytes. */
  readonly range: MemoryRange;
  /** 0 to 255; the higher one wins an address. */
  readonly priority: number;
  /** Whether it is RAM or a device's. */
  readonly type: "ram" | "device";
  /** What a guest access to an unbacked address of it does: an MMIO exit, or a fault. */
  readonly holes: "exit" | "fault";
  /** How it is mapped, `null` while it is not. */
  readonly params: MapParams | null;
}

/** All regions of a state, oldest first. */
export function regionInfos(state: State): readonly RegionInfo[] {
  return Object.freeze(
    regionsIn(state.layers).map((region) => {
      const { id, name, range, priority, type, holes } = region;
      const params = state.regions.get(region)?.params ?? null;
      return Object.freeze({ id, name, range, priority, type, holes, params: params && Object.freeze({ ...params }) });
    }),
  );
}
