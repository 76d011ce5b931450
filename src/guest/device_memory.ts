import { checkBoolean } from "../core/check_boolean.ts";
import { DisposedError, MappingError } from "../core/errors.ts";
import { hex } from "../core/hex.ts";
import { checkAligned, MemoryRange } from "../core/memory_range.ts";
import { RangeMap } from "../core/range_map.ts";
import { type OwnRange, touchedIn } from "../core/map/edits.ts";
import type { HostMemory } from "../core/targets.ts";
import type { Mapping } from "../core/map/region.ts";
import { closeFile, FileBacking, labelOf, mappableOf, releaseFiles } from "../memory/file_backing.ts";
import type { MappingOptions, RegionHandle } from "../regions/region_handle.ts";
import type { RegionOptions } from "../regions/options.ts";
import { checkDeviceMapping, checkDeviceMemory, rangeInDevice } from "./device_checks.ts";
import type { DeviceMapping, DeviceMemoryOptions } from "./device_options.ts";

/** What device memory needs of a region manager, or of a client of one. */
export interface DeviceMemoryHost {
  /** Whether it is gone. */
  isDisposed(): boolean;
  /** The age of what is made now, where age decides who wins an address. */
  nextAge(): number;
  /** Adds a region that is as old as `age` says. */
  newRegion(options: RegionOptions, age: number): RegionHandle;
  /** Makes several requests one, which messages call `name`. */
  batch<T>(requests: () => T, name?: string): T;
  /** Calls back once it is known whether the batch under way came true: at once where there is none. */
  whenDecided(outcome: (committed: boolean) => void): void;
  /** What copy-on-write memory takes, whose written pages move with it; `null` where there can be none. */
  readonly copies: {
    /** Adds a mapping that shows `own` again. */
    addMapping(region: RegionHandle, mapping: MappingOptions, own: HostMemory | null): void;
    /** Removes a region whose memory is to show elsewhere, now or later. */
    removeKeeping(region: RegionHandle): void;
    /** Gives such memory up. */
    forget(ranges: readonly OwnRange[]): void;
  } | null;
}

/** Device memory as it was when inspected. */
export interface InspectDeviceMemory {
  /** Its name. */
  readonly name: string;
  /** Its length in bytes. */
  readonly length: number;
  /** Where the guest has it, `null` where it has not. */
  readonly gpa: number | null;
  /** What backs it, by offset. */
  readonly mappings: readonly {
    /** The offsets, such as `"0x1000-0x3000"`. */
    readonly range: string;
    /** Where in the file it begins, in bytes. */
    readonly fileOffset: number;
    /** Whether it may be written where the guest has it writable. */
    readonly writable: boolean;
    /** The file. */
    readonly backing: string;
  }[];
}

/**
 * Memory of a device, such as a PCI BAR or a DAX window: an address range that files are mapped into by offset, and
 * that as a whole comes and goes, and moves, in guest memory. RAM at the same addresses hides it.
 *
 * What is mapped stays mapped while the guest does not have it. Every request is all or nothing: if it throws, the
 * memory is where it was, with what it had.
 *
 * @example A BAR that the guest moves
 * ```ts
 * import { GuestMemoryManager, Mappable, MemoryRange } from "membacking";
 *
 * using guest = GuestMemoryManager.create({
 *   maxAddress: 0x20_0000,
 *   ram: [{ ranges: [new MemoryRange(0, 0x10_0000)] }],
 * });
 * using bar = guest.newDeviceMemory("frame buffer", 0x4000);
 * using pixels = Mappable.memfd("pixels", 0x4000);
 * bar.map({ offset: 0, mappable: pixels, length: 0x4000 });
 *
 * bar.mapToGuest(0x10_0000, true);
 * guest.memory.writeUint32(0x10_0000, 0xff_00ff);
 * bar.mapToGuest(0x18_0000, true);
 * console.assert(guest.memory.readUint32(0x18_0000) === 0xff_00ff);
 * ```
 */
export class DeviceMemory implements Disposable {
  /** What its region is called. */
  readonly name: string;
  /** Its length in bytes. */
  readonly length: number;
  readonly #regions: DeviceMemoryHost;
  readonly #holes: "exit" | "fault";
  readonly #priority: number;
  readonly #age: number;
  readonly #onDispose: (memory: DeviceMemory) => void;
  /** What is mapped, by offset; the guest's region, if there is one, has the same. */
  #mappings: RangeMap<Mapping> = RangeMap.EMPTY;
  #region: RegionHandle | null = null;
  #disposed = false;

  /** Made by `newDeviceMemory` of a `GuestMemoryManager` or a `SyncRegionManagerClient`. */
  constructor(
    regions: DeviceMemoryHost,
    name: string,
    length: number,
    options: DeviceMemoryOptions,
    onDispose: (memory: DeviceMemory) => void,
  ) {
    const { holes, priority } = checkDeviceMemory(name, length, options);
    this.name = name;
    this.length = length;
    this.#regions = regions;
    this.#holes = holes;
    this.#priority = priority;
    this.#age = regions.nextAge();
    this.#onDispose = onDispose;
  }

  /** The GPA at which the guest has it, `null` where it has not. */
  get gpa(): number | null {
    return this.#region?.range.start ?? null;
  }

  /**
   * The GPA ranges at which the guest sees it, holes included: all of it, or what RAM does not hide. Empty while the
   * guest does not have it.
   */
  get visible(): readonly MemoryRange[] {
    return this.#region?.visible ?? [];
  }

  /**
   * Maps a part of a file. What is mapped there is replaced, and split where it reaches out of the range; under a running
   * guest that is one `mmap`, without a moment in which nothing is there. Keeps its own clone of the file.
   *
   * @throws {RangeError} If a number is not aligned, or the range is empty or reaches beyond the device memory.
   * @throws {MappingError} If the file is too short or read-only, or a target failed.
   * @throws {MemoryLockedError} If memory that would change is locked.
   * @throws {LimitError} If memory slots or host mappings would run out.
   * @throws {DisposedError} If this or the mappable has been disposed.
   */
  map(mapping: DeviceMapping): void {
    this.#check();
    const { range, mappable, fileOffset, writable, copyOnWrite } = checkDeviceMapping(mapping, this);
    if (copyOnWrite && this.#regions.copies === null) {
      throw new TypeError("Clients cannot have device memory that is copy-on-write, make it at the owner");
    }
    if (this.#ownIn(range).length > 0) {
      throw new MappingError(
        `Device memory "${this.name}" has copy-on-write memory there, whose written pages would be lost, unmap it first`,
        range,
      );
    }
    const backing = new FileBacking(mappable);
    const delta = fileOffset - range.start;
    const noted: Mapping = copyOnWrite
      ? { ...{ kind: "copy-on-write", backing, delta, writable, policy: undefined }, own: ownOf(fileOffset, range) }
      : { kind: "shared", backing, own: null, delta, writable, policy: undefined };
    // One request that is all or nothing by itself; noting it down cannot fail.
    try {
      if (this.#region !== null) this.#addTo(this.#region, range, noted);
    } catch (error) {
      closeFile(noted);
      throw error;
    }
    this.#edit(range, noted);
  }

  /**
   * Takes away whatever is mapped in `[offset, offset + length)`, splitting what reaches out of it. Nothing mapped
   * there is no error.
   *
   * @param offset In bytes; page-aligned.
   * @param length In bytes; page-aligned, above 0.
   * @throws {RangeError} If a number is not aligned, or the range is empty or reaches beyond the device memory.
   * @throws {MappingError} If a huge page would be cut, or a target failed.
   * @throws {MemoryLockedError} If memory that would change is locked.
   * @throws {DisposedError} If this has been disposed.
   */
  unmap(offset: number, length: number): void {
    this.#check();
    const range = rangeInDevice(offset, length, this);
    if (this.#region !== null) this.#region.removeMappings(range);
    else this.#regions.copies?.forget(this.#ownIn(range));
    this.#edit(range, null);
  }

  /**
   * Gives the guest the memory at `gpa`, or moves it there: the old place goes and the new one comes in one request, and
   * if that fails the old place stays.
   *
   * @param gpa Where, in bytes; page-aligned.
   * @param writable Whether the guest may write, where the mapping allows it too.
   * @throws {RangeError} If `gpa` is not a page-aligned number, or there is no room below the end of guest memory.
   * @throws {RegionOverlapError} If it would lie half on RAM, or over other device memory.
   * @throws {MappingError} If `gpa` is not a multiple of a mapped file's huge pages, or a target failed.
   * @throws {MemoryLockedError} If memory that would change is locked.
   * @throws {LimitError} If memory slots or host mappings would run out.
   * @throws {DisposedError} If this has been disposed.
   */
  mapToGuest(gpa: number, writable: boolean): void {
    this.#check();
    checkAligned(gpa, `Address of device memory "${this.name}"`);
    checkBoolean(writable, "writable");
    const old = this.#region;
    if (old?.range.start === gpa) return old.map({ writable });
    const range = MemoryRange.of(gpa, this.length);
    this.#regions.batch(() => {
      if (old !== null) this.#leave(old);
      const region = this.#regions.newRegion({
        name: this.name,
        range,
        priority: this.#priority,
        type: "device",
        holes: this.#holes,
      }, this.#age);
      for (const { start, end, value } of this.#mappings) this.#addTo(region, new MemoryRange(start, end), value);
      region.map({ writable });
      this.#place(region);
    }, "mapToGuest");
  }

  /**
   * Takes the memory away from the guest. What is mapped stays mapped, for the next `mapToGuest`.
   *
   * @throws {MappingError} If a target failed.
   * @throws {MemoryLockedError} If memory that would change is locked.
   * @throws {DisposedError} If this has been disposed.
   */
  unmapFromGuest(): void {
    this.#check();
    this.#regions.batch(() => {
      if (this.#region !== null) this.#leave(this.#region);
      this.#place(null);
    }, "unmapFromGuest");
  }

  /** What it is and has, as plain data, safe for JSON. */
  inspect(): InspectDeviceMemory {
    return {
      name: this.name,
      length: this.length,
      gpa: this.gpa,
      mappings: [...this.#mappings].map(({ start, end, value: mapping }) => ({
        range: `${hex(start)}-${hex(end)}`,
        fileOffset: start + mapping.delta,
        writable: mapping.writable,
        backing: labelOf(mapping) ?? "",
      })),
    };
  }

  /**
   * Takes the memory away from the guest and gives the files up. Does nothing the second time.
   *
   * @throws {MemoryLockedError} If it is locked; it stays as it is, and disposal may be tried again.
   * @throws {MappingError} If a target failed; it stays as it is, and disposal may be tried again.
   */
  [Symbol.dispose](): void {
    if (this.#disposed) return;
    const close = () => {
      this.#disposed = true;
      this.#edit(new MemoryRange(0, this.length), null);
      this.#regions.whenDecided((committed) => {
        if (committed) this.#onDispose(this);
        else this.#disposed = false;
      });
    };
    if (this.#regions.isDisposed()) {
      this.#region = null;
      return close();
    }
    this.#regions.batch(() => {
      if (this.#region !== null) this.#region[Symbol.dispose]();
      else this.#regions.copies?.forget(this.#ownIn(new MemoryRange(0, this.length)));
      this.#place(null);
      close();
    }, "dispose");
  }

  #check(): void {
    if (this.#disposed) throw new DisposedError(`Device memory "${this.name}"`);
  }

  /** Has a region show what is noted for `range`. */
  #addTo(region: RegionHandle, range: MemoryRange, noted: Mapping): void {
    const { delta, writable, own } = noted;
    const mappable = mappableOf(noted);
    if (mappable === null) return;
    const mapping = { rangeInRegion: range, mappable, fileOffset: range.start + delta, writable };
    if (own === null || this.#regions.copies === null) return region.addMapping(mapping);
    this.#regions.copies.addMapping(region, { ...mapping, copyOnWrite: true }, own);
  }

  /** Takes a region away; what has been written to copy-on-write memory stays, for the next place. */
  #leave(region: RegionHandle): void {
    if (this.#regions.copies === null) region[Symbol.dispose]();
    else this.#regions.copies.removeKeeping(region);
  }

  /** The memory in no file that is mapped in `range`. */
  #ownIn({ start, end }: MemoryRange): OwnRange[] {
    return this.#mappings.overlapping(start, end).flatMap(({ start: from, end: to, value: { own, delta } }) =>
      own === null ? [] : [{ memory: own, start: Math.max(from, start) + delta, end: Math.min(to, end) + delta }]
    );
  }

  /** Notes where the memory is, for as long as the request under way does not fail. */
  #place(region: RegionHandle | null): void {
    const old = this.#region;
    this.#region = region;
    this.#regions.whenDecided((committed) => {
      if (!committed) this.#region = old;
    });
  }

  /** Notes what is mapped, for as long as the request under way does not fail. */
  #edit({ start, end }: MemoryRange, mapping: Mapping | null): void {
    const old = this.#mappings;
    const touched = touchedIn(old, start, end);
    this.#mappings = mapping === null ? old.delete(start, end) : old.set(start, end, mapping);
    this.#regions.whenDecided((committed) => {
      if (committed) return releaseFiles(touched.gone, touched.split);
      this.#mappings = old;
      if (mapping !== null) closeFile(mapping);
    });
  }
}

/** Memory of its own for a part of a file. */
function ownOf(fileOffset: number, { length }: MemoryRange): HostMemory {
  return { start: fileOffset, end: fileOffset + length };
}
