import type { Mappable } from "../../ffi/files/mappable.ts";
import { type MemoryRange, ownFilledRange } from "../core/memory_range.ts";
import type { VaTarget } from "../core/targets.ts";
import type { GuestMemory } from "../memory/guest_memory.ts";
import { internalsOf, type RegionManager } from "../regions/region_manager.ts";
import type { GuestParts } from "./guest_parts.ts";
import { prefault, type PrefaultOptions } from "./prefault.ts";
import type { Ram } from "./ram.ts";
import { ownBacking, type RamBacking } from "./ram_backing.ts";
import { RamHandle } from "./ram_handle.ts";
import type { RamVisibility } from "./ram_visibility.ts";
import { ShareableRegions, type SharedRegion, type SharedRegionsListener } from "./shareable_regions.ts";

/**
 * The RAM of a guest, and its memory as a whole: what there is, how it is switched, what comes and goes. What every
 * `GuestMemoryManager` is.
 */
export class GuestRam {
  readonly #regions: RegionManager;
  readonly #va: VaTarget<Mappable>;
  readonly #ram: Ram;
  readonly #shareable: ShareableRegions;

  /** Made as a part of a `GuestMemoryManager`. */
  protected constructor({ regions, va, ram, report }: GuestParts) {
    this.#regions = regions;
    this.#va = va;
    this.#ram = ram;
    this.#shareable = new ShareableRegions(regions, () => ram.regions, report);
  }

  /** The regions of guest memory, for everything that is not covered here. */
  get regions(): RegionManager {
    return this.#regions;
  }

  /** Guest memory as it is visible now, to read and write. */
  get memory(): GuestMemory {
    return this.regions.memory;
  }

  /** The ranges of RAM that `setRamVisibility` switches, lowest first. */
  get ramRanges(): readonly MemoryRange[] {
    return this.#ram.ranges;
  }

  /**
   * Brings all RAM that is visible into host memory ahead of use, after transparent huge pages and NUMA nodes were asked
   * for. Works in slices of a few milliseconds, between which everything else goes on. RAM that is unmapped at its turn
   * is left out; read-only RAM is brought in for reading.
   *
   * @example Usage
   * ```ts
   * import { GuestMemoryManager, MemoryRange } from "membacking";
   *
   * using guest = GuestMemoryManager.create({
   *   maxAddress: 0x100_0000,
   *   ram: [{ ranges: [new MemoryRange(0, 0x80_0000)] }],
   * });
   * await guest.prefault({
   *   signal: AbortSignal.timeout(60_000),
   *   onProgress: (done, total) => console.log(`${(100 * done / total).toFixed()} %`),
   * });
   * ```
   *
   * @throws {OsError} ENOMEM if the host runs out of memory, EFAULT if a file has been truncated.
   * @throws {DisposedError} If the manager is disposed meanwhile.
   * @throws The signal's reason, if it aborts first.
   */
  prefault(options: PrefaultOptions = {}): Promise<void> {
    const populate = (start: number, end: number) => {
      for (const piece of internalsOf(this.regions).pieces(start, end)) {
        const { region, mapping, writable } = piece.value;
        // To write to copy-on-write memory would copy all of its file.
        const writes = writable && mapping.kind !== "copy-on-write";
        if (region.type === "ram") this.#va.populate?.(piece.start, piece.end, writes);
      }
    };
    return prefault(this.ramRanges, populate, options);
  }

  /**
   * Switches a range of RAM: to ordinary RAM, to RAM the guest can only read (its writes are MMIO exits), or off, so that
   * device memory below it shows. The contents stay.
   *
   * @example A chipset makes the firmware's shadow RAM read-only
   * ```ts
   * import { GuestMemoryManager, MemoryRange } from "membacking";
   *
   * using guest = GuestMemoryManager.create({
   *   maxAddress: 0x100_0000,
   *   ram: [{ ranges: [new MemoryRange(0, 0x80_0000)] }],
   *   x86Legacy: true,
   * });
   * guest.setRamVisibility(new MemoryRange(0xf0000, 0x10_0000), "read-only");
   * console.assert(guest.memory.readUint8(0xf0000) === 0);
   * ```
   *
   * @param range Exactly one of `ramRanges`; use `regions.batch` to switch several in one request.
   * @throws {RamLayoutError} If it is not; the message names the nearest ones.
   * @throws {MappingError} If a target failed.
   * @throws {MemoryLockedError} If the range is locked.
   */
  setRamVisibility(range: MemoryRange, to: RamVisibility): void {
    this.#ram.setVisibility(range, to);
  }

  /**
   * Adds RAM, mapped and writable, which is like RAM that was there from the beginning: for partitions and DMA targets
   * that are attached, `ramRanges`, `setRamVisibility`, `shareableRegions`, and `inspect`. Disposing the handle takes it
   * away again; so does disposing the manager.
   *
   * @throws {RamLayoutError} If its ranges do not fit its page size.
   * @throws {RegionOverlapError} If it overlaps RAM, or other regions in a way the overlap rule forbids.
   * @throws {RangeError} If a number is out of its range, or a range is empty or ends beyond `maxAddress`.
   * @throws {MappingError} If a file that exists is too short or read-only, or a target failed.
   * @throws {LimitError} If memory slots or host mappings would run out.
   * @throws {OsError} If the host is out of memory.
   */
  addRam(backing: RamBacking): RamHandle {
    return new RamHandle(this.#ram, this.#ram.addOne(ownBacking(backing)));
  }

  /**
   * Gives the pages of RAM back to the host, as a balloon does: the range reads as zeros afterwards, to the guest as well,
   * and takes memory again when it is written. Inside a batch it happens once the batch has, and what then fails is
   * logged.
   *
   * Whatever the kind of RAM: of shared RAM the pages are punched out of the file, the caller's own too, so that other
   * processes read zeros as well; copy-on-write RAM does not show its file again. DMA targets are told of the range anew.
   * It cannot be undone.
   *
   * @param range Any part of RAM that the guest has, visible throughout.
   * @throws {MappingError} If a part is no RAM or switched off, cuts a huge page, or is pinned.
   * @throws {MemoryLockedError} If a part is locked.
   * @throws {OsError} If the file system cannot punch holes.
   */
  discard(range: MemoryRange): void {
    internalsOf(this.regions).discard(ownFilledRange(range, "discard"));
  }

  /**
   * The RAM that another process can map, lowest address first, whatever is visible of it: what has a file and is not
   * copy-on-write. Parts that continue each other in guest and file are one. So a table that is made of it need not
   * change when a chipset switches ranges on and off; `readOnly` says what the guest cannot write for now, which a
   * vhost-user back end cannot be told.
   */
  shareableRegions(): SharedRegion[] {
    return this.#shareable.list();
  }

  /**
   * Calls `listener` with the new list after each request that changed `shareableRegions()`, until the result is
   * disposed. The request is over then, so the listener may make requests of its own; what it throws is logged and
   * otherwise ignored. Disposing the manager is not announced.
   *
   * @example Usage
   * ```ts
   * import { GuestMemoryManager, MemoryRange } from "membacking";
   *
   * const low = new MemoryRange(0, 0x20_0000);
   * using guest = GuestMemoryManager.create({ maxAddress: 0x100_0000, ram: [{ ranges: [low] }] });
   * let table = guest.shareableRegions();
   * using _watching = guest.watchShareableRegions((regions) => table = regions);
   *
   * guest.addRam({ ranges: [MemoryRange.of(0x40_0000, 0x20_0000)] });
   * console.assert(table.length === 2);
   * ```
   */
  watchShareableRegions(listener: SharedRegionsListener): Disposable {
    return this.#shareable.watch(listener);
  }
}
