import type { Mappable } from "../../ffi/files/mappable.ts";
import {
  addRegion,
  type Change,
  mapRegion,
  type OwnRange,
  removeRegion,
  setMapping,
  unmapRegion,
} from "../core/map/edits.ts";
import { fragments, type OverlapRule } from "../core/map/overlap.ts";
import { type MapParams, type Mapping, paramsOf, type Region } from "../core/map/region.ts";
import type { State } from "../core/map/state.ts";
import { DisposedError } from "../core/errors.ts";
import { hex } from "../core/hex.ts";
import { MemoryRange, ownFilledRange } from "../core/memory_range.ts";
import type { HostMemory, VaTarget } from "../core/targets.ts";
import { closeFile } from "../memory/file_backing.ts";
import type { MemoryLocks } from "../memory/memory_locks.ts";
import type { MemoryMap } from "../requests/memory_map.ts";
import { checkBoolean } from "../core/check_boolean.ts";
import { checkPriority } from "../targets/checks.ts";
import { mappingOf, rangeIn } from "./mapping_options.ts";
import type { RegionOptions } from "./options.ts";
import { type MappingOptions, RegionHandle, type RegionRequests } from "./region_handle.ts";

/** What requests about regions are made with. */
export interface RegionServiceOptions {
  readonly map: MemoryMap;
  readonly locks: MemoryLocks;
  readonly va: VaTarget<Mappable>;
  readonly overlap: OverlapRule;
  /** Is told of each mapping that comes in, and may refuse it by throwing. */
  readonly watchFile: (mapping: Mapping) => void;
}

/** What the handles of regions ask of their manager: each request checked, and handed on as a change of the map. */
export class RegionService implements RegionRequests {
  readonly #map: MemoryMap;
  readonly #locks: MemoryLocks;
  readonly #va: VaTarget<Mappable>;
  readonly #overlap: OverlapRule;
  readonly #watchFile: (mapping: Mapping) => void;
  #nextId = 1;

  constructor({ map, locks, va, overlap, watchFile }: RegionServiceOptions) {
    this.#map = map;
    this.#locks = locks;
    this.#va = va;
    this.#overlap = overlap;
    this.#watchFile = watchFile;
  }

  /** A number that nothing of this manager had before: an identity, or an age for regions that are to succeed one. */
  nextId(): number {
    return this.#nextId++;
  }

  /** Adds a region, as old as `age` says where it succeeds others, which are gone. */
  newRegion(options: RegionOptions, age?: number): RegionHandle {
    const { name, priority, type = "ram", holes = "exit" } = options;
    if (typeof name !== "string") throw new TypeError("A region needs a name");
    const range = ownFilledRange(options.range, { name });
    if (range.end > this.#va.length) {
      throw new RangeError(
        `Region "${name}" (${range}) reaches beyond the reservation of ${hex(this.#va.length)} bytes`,
      );
    }
    checkPriority(priority, `Priority of region "${name}"`);
    if (type !== "ram" && type !== "device") throw new TypeError(`Region type must be "ram" or "device", got ${type}`);
    if (holes !== "exit" && holes !== "fault") throw new TypeError(`Holes must be "exit" or "fault", got ${holes}`);
    const id = this.nextId();
    const region: Region = { id, age: age ?? id, name, range, priority, type, holes, latest: undefined };
    this.#map.check();
    this.#map.request("add", region, this.#with(region));
    return new RegionHandle(region, this);
  }

  map(region: Region, params: Partial<MapParams>): void {
    const { writable = true, executable = true, prefetch = false } = params;
    checkBoolean(writable, "writable");
    checkBoolean(executable, "executable");
    checkBoolean(prefetch, "prefetch");
    const wanted = paramsOf(writable, executable, prefetch);
    this.#map.request("map", region, mapRegion(this.#stateWith(region), region, wanted));
    if (this.#map.onlookers.isLogged) this.#map.whenDecided((committed) => committed && this.#warnIfHidden(region));
  }

  unmap(region: Region): void {
    this.#map.request("unmap", region, unmapRegion(this.#stateWith(region), region));
  }

  /** `own` is memory in no file that the mapping is to show again, where it is not to be new. */
  addMapping(region: Region, options: MappingOptions, own: HostMemory | null = null): void {
    const { start, end } = rangeIn(region, options.rangeInRegion);
    const made = mappingOf(options, start, end, this.#va);
    const mapping = own === null ? made : { ...made, own };
    try {
      this.#watchFile(mapping);
      const change = setMapping(this.#stateWith(region), region, start, end, mapping);
      this.#map.request("add mapping", region, change, mapping);
    } catch (error) {
      closeFile(mapping); // which does nothing where the request has done it
      throw error;
    }
  }

  removeMappings(region: Region, rangeInRegion: MemoryRange): void {
    const { start, end } = rangeIn(region, rangeInRegion);
    this.#map.request("remove mappings", region, setMapping(this.#stateWith(region), region, start, end, null));
  }

  remove(region: Region): void {
    if (this.#map.closed) return;
    this.#map.check();
    const state = this.#map.current;
    if (state.regions.get(region) !== undefined) this.#map.request("remove", region, removeRegion(state, region));
  }

  /** Removes a region whose memory in no file is to show elsewhere, now or later: it stays parked meanwhile. */
  removeKeeping(region: Region): void {
    this.#map.request("remove", region, { ...removeRegion(this.#stateWith(region), region), removed: [] });
  }

  /** Gives up such memory. */
  forget(removed: readonly OwnRange[]): void {
    this.#map.check();
    if (removed.length === 0) return;
    this.#map.request("give up", null, { state: this.#map.current, changed: [], gone: [], split: [], removed });
  }

  async teardown(region: Region, signal: AbortSignal | undefined): Promise<void> {
    if (this.#map.closed || this.#map.current.regions.get(region) === undefined) return;
    await this.#locks.drain([region], signal, () => this.remove(region));
  }

  paramsOf(region: Region): MapParams | null {
    return this.#map.current.regions.get(region)?.params ?? null;
  }

  visibleOf(region: Region): readonly MemoryRange[] {
    return fragments(this.#map.current.visible, region).map(({ start, end }) => new MemoryRange(start, end));
  }

  #with(region: Region): Change {
    try {
      return addRegion(this.#map.current, region, this.#overlap);
    } catch (error) {
      this.#map.refused("add", region, error);
      throw error;
    }
  }

  /**
   * The state to start from, once it is clear that the region exists and a request may be made. Asked after options
   * have been read, since that may run code of the caller's.
   */
  #stateWith(region: Region): State {
    this.#map.check();
    const state = this.#map.current;
    if (state.regions.get(region) === undefined) throw new DisposedError(`Region "${region.name}"`);
    return state;
  }

  /** Says so where a region that is mapped shows nowhere: who maps one does it to be seen. */
  #warnIfHidden(region: Region): void {
    const { regions, visible } = this.#map.committed;
    if (!regions.get(region)?.params || fragments(visible, region).length > 0) return;
    const { start, end } = region.range;
    const names = new Set(visible.overlapping(start, end).map(({ value }) => `"${value.name}" ${value.range}`));
    this.#map.onlookers.logger.warn(
      `Region "${region.name}" ${region.range} is mapped and shows nowhere: ${[...names].join(", ")} hides it`,
    );
  }
}
