import type { Mappable } from "../../ffi/files/mappable.ts";
import type { MemoryRange } from "../core/memory_range.ts";
import type { MapParams, Region } from "../core/map/region.ts";
import type { MemoryPolicy } from "../core/targets.ts";

/** What to put where in a region. */
export interface MappingOptions {
  /** Where in the region, in bytes from its start; page-aligned and not empty. */
  readonly rangeInRegion: MemoryRange;
  /** The file to map, of which the region keeps a clone of its own, or `"private"` for private anonymous memory. */
  readonly mappable: Mappable | "private";
  /** Where in the file the range begins, in bytes; page-aligned, 0 by default. */
  readonly fileOffset?: number;
  /** Whether it may be written where the region allows it too; `true` by default. */
  readonly writable?: boolean;
  /** Where the host should take the pages from. */
  readonly policy?: MemoryPolicy;
  /**
   * Whether the file is shown as it is until it is written: written pages are the mapping's own, and the file stays as it
   * is and may be read-only. Needs a file of ordinary pages that nobody can truncate. `false` by default.
   */
  readonly copyOnWrite?: boolean;
}

/** What a region handle asks of the manager that made it. */
export interface RegionRequests {
  map(region: Region, params: Partial<MapParams>): void;
  unmap(region: Region): void;
  addMapping(region: Region, mapping: MappingOptions): void;
  removeMappings(region: Region, rangeInRegion: MemoryRange): void;
  remove(region: Region): void;
  teardown(region: Region, signal: AbortSignal | undefined): Promise<void>;
  paramsOf(region: Region): MapParams | null;
  visibleOf(region: Region): readonly MemoryRange[];
}

/** The region behind a handle, for the package alone. */
export let regionOf: (handle: RegionHandle) => Region;

/**
 * A region of a `RegionManager`: a named, fixed range of guest-physical addresses with a priority, which is mapped
 * and unmapped as a whole. Disposing the handle removes the region and everything mapped in it.
 *
 * Every request is all or nothing: if it throws, the memory map is what it was.
 *
 * @example Usage
 * ```ts
 * import { Mappable, MemoryRange, RegionManager, VaMapper } from "membacking";
 *
 * using va = VaMapper.reserve(0x100000);
 * using regions = new RegionManager(va);
 * using file = Mappable.memfd("ram", 0x4000);
 *
 * using ram = regions.newRegion({ name: "ram", range: new MemoryRange(0x1000, 0x5000), priority: 1 });
 * ram.addMapping({ rangeInRegion: new MemoryRange(0, 0x4000), mappable: file });
 * ram.map();
 * console.assert(ram.visible[0]?.toString() === "0x1000-0x5000");
 * ```
 */
export class RegionHandle implements Disposable, AsyncDisposable {
  static {
    regionOf = (handle) => handle.#region;
  }

  readonly #region: Region;
  readonly #requests: RegionRequests;

  /** Made by `RegionManager.newRegion`. */
  constructor(region: Region, requests: RegionRequests) {
    this.#region = region;
    this.#requests = requests;
  }

  /** Unique in the manager; older regions have smaller ids. */
  get id(): number {
    return this.#region.id;
  }

  /** The name given to `newRegion`. */
  get name(): string {
    return this.#region.name;
  }

  /** The GPA range it occupies, in bytes. */
  get range(): MemoryRange {
    return this.#region.range;
  }

  /** Its priority, 0 to 255; the higher one wins an address. */
  get priority(): number {
    return this.#region.priority;
  }

  /** How it is mapped, `null` while it is not. */
  get mapParams(): MapParams | null {
    return this.#requests.paramsOf(this.#region);
  }

  /** The GPA ranges it is shown at now, holes between its mappings included. Empty when it is hidden or unmapped. */
  get visible(): readonly MemoryRange[] {
    return this.#requests.visibleOf(this.#region);
  }

  /**
   * Maps the region: it is shown wherever no region of higher priority is. Missing params are
   * `{ writable: true, executable: true, prefetch: false }`. The same params again do nothing; others change it.
   *
   * @throws {MappingError} If a target failed; everything has been undone.
   * @throws {MemoryLockedError} If memory that would change is locked.
   * @throws {LimitError} If memory slots or host mappings would run out.
   * @throws {DisposedError} If the region has been removed.
   */
  map(params: Partial<MapParams> = {}): void {
    this.#requests.map(this.#region, params);
  }

  /**
   * Unmaps the region, which keeps its mappings; what is below it shows again.
   *
   * @throws {MappingError} If a target failed.
   * @throws {MemoryLockedError} If memory that would change is locked.
   * @throws {DisposedError} If the region has been removed.
   */
  unmap(): void {
    this.#requests.unmap(this.#region);
  }

  /**
   * Backs a part of the region. What was mapped there is replaced, and split where it reaches out of the range; under
   * a running guest that is one `mmap`, without a moment in which nothing is there.
   *
   * @throws {RangeError} If the range is empty or reaches out of the region, or an offset is not aligned.
   * @throws {MappingError} If the file is too short or read-only, or a target failed.
   * @throws {MemoryLockedError} If memory that would change is locked.
   * @throws {LimitError} If memory slots or host mappings would run out.
   * @throws {DisposedError} If the region has been removed or the mappable is closed.
   */
  addMapping(mapping: MappingOptions): void {
    this.#requests.addMapping(this.#region, mapping);
  }

  /**
   * Takes away whatever is mapped in a part of the region, splitting what reaches out of it. Nothing mapped there is
   * no error.
   *
   * @throws {RangeError} If the range is empty or reaches out of the region.
   * @throws {MappingError} If a huge page would be cut, or a target failed.
   * @throws {MemoryLockedError} If memory that would change is locked.
   * @throws {DisposedError} If the region has been removed.
   */
  removeMappings(rangeInRegion: MemoryRange): void {
    this.#requests.removeMappings(this.#region, rangeInRegion);
  }

  /**
   * Removes the region once nobody holds a lock on its memory. New locks are refused from now on. Aborting leaves the
   * region as it was. Does nothing if the region is gone, or goes by other means meanwhile.
   *
   * @throws {MappingError} If a target failed; the region stays.
   * @throws The signal's reason, if it aborts first.
   */
  teardown(options: { signal?: AbortSignal } = {}): Promise<void> {
    return this.#requests.teardown(this.#region, options.signal);
  }

  /**
   * Removes the region. Does nothing the second time, or once the manager is gone.
   *
   * @throws {MemoryLockedError} If its memory is locked; the region stays and disposal may be tried again.
   * @throws {MappingError} If a target failed; the region stays and disposal may be tried again.
   */
  [Symbol.dispose](): void {
    this.#requests.remove(this.#region);
  }

  /** As `teardown`. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.teardown();
  }
}
