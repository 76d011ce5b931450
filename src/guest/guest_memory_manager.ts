import { hostOf, VaMapper } from "../../ffi/host/va_mapper.ts";
import { DisposedError } from "../core/errors.ts";
import { checkAligned, checkNumber, type MemoryRange, ownFilledRange } from "../core/memory_range.ts";
import { checkAlias, layOutRam, RAM_ALIGNMENT, RAM_PRIORITY } from "../core/ram_layout.ts";
import type { Partition, VaTarget } from "../core/targets.ts";
import type { Mappable } from "../../ffi/files/mappable.ts";
import type { DirtyTracker } from "../memory/dirty_tracker.ts";
import type { GuestMemory } from "../memory/guest_memory.ts";
import { internalsOf, RegionManager } from "../regions/region_manager.ts";
import { checkPriority } from "../targets/checks.ts";
import { reportTo } from "../targets/report.ts";
import { deviceHost } from "./device_host.ts";
import { DeviceMemory, type DeviceMemoryOptions } from "./device_memory.ts";
import { inspectGuest, type InspectGuestMemory } from "./inspect_guest.ts";
import type { AttachOptions, GuestMemoryOptions } from "./options.ts";
import { PartitionHalf } from "./partition_half.ts";
import { prefault, type PrefaultOptions } from "./prefault.ts";
import { Ram } from "./ram.ts";
import { ownBacking, type RamBacking, ramRequest } from "./ram_backing.ts";
import { RamHandle } from "./ram_handle.ts";
import type { RamVisibility } from "./ram_visibility.ts";
import { ShareableRegions, type SharedRegion, type SharedRegionsListener } from "./shareable_regions.ts";

/**
 * The memory of one guest: RAM, device memory, and everything that has to follow them.
 *
 * Where a VMM begins: `create` builds the RAM, `attachPartition` gives it to a virtual machine, and `memory` reads and
 * writes it. RAM has priority 255 and device memory 0, so RAM hides device memory until it is switched off.
 *
 * @example Usage
 * ```ts
 * import { GuestMemoryManager, MemoryRange } from "membacking";
 * import { RecordingPartition } from "membacking/testing";
 *
 * using guest = GuestMemoryManager.create({
 *   maxAddress: 0x1_0000_0000,
 *   ram: [{ ranges: [new MemoryRange(0, 0x800_0000)] }],
 *   x86Legacy: true,
 * });
 * const vm = new RecordingPartition(); // or the KvmVm of membacking/kvm
 * using _attached = guest.attachPartition(vm);
 *
 * guest.memory.write(0x10_0000, new TextEncoder().encode("kernel"));
 * guest.setRamVisibility(new MemoryRange(0xa0000, 0xc0000), "unmapped"); // the VGA window
 * console.assert(vm.accessAt(0x9ffff) !== null && vm.accessAt(0xa0000) === null);
 * ```
 */
export class GuestMemoryManager implements Disposable {
  /** The regions of guest memory, for everything that is not covered here. */
  readonly regions: RegionManager;
  readonly #va: VaTarget<Mappable>;
  /** The reservation, if it is this manager's own. */
  readonly #reserved: VaMapper | null;
  readonly #ram: Ram;
  readonly #pin: boolean;
  readonly #pageSize: number;
  readonly #shareable: ShareableRegions;
  readonly #devices = new Set<DeviceMemory>();
  /** The two halves of partitions that were attached with an alias, so that attaching one twice is found out. */
  readonly #halves = new WeakMap<Partition, readonly [PartitionHalf, PartitionHalf]>();

  private constructor(options: GuestMemoryOptions, stack: DisposableStack) {
    const { maxAddress, ram, x86Legacy = false, pin = false, overlap, logger, quiesce, va } = options;
    const { ramPriority = RAM_PRIORITY } = options;
    checkPriority(ramPriority, "ramPriority");
    const report = reportTo(logger);
    checkAligned(maxAddress, "maxAddress");
    if (maxAddress === 0) throw new RangeError("maxAddress must not be 0");
    if (!Array.isArray(ram)) throw new TypeError("ram must be an array of RAM backings");
    const backings = Array.from(ram, ownBacking);
    const layouts = layOutRam(backings.map(ramRequest), { maxAddress, x86Legacy });
    this.#pageSize = Math.max(RAM_ALIGNMENT, ...layouts.map(({ pageSize }) => pageSize));
    this.#reserved = va === undefined ? stack.use(VaMapper.reserve(maxAddress, { alignment: this.#pageSize })) : null;
    const given = va ?? this.#reserved;
    if (given === null) throw new TypeError("va must not be null");
    if (!(given.length >= maxAddress)) {
      throw new RangeError(`va has ${given.length} bytes, and maxAddress of ${maxAddress} needs as many`);
    }
    this.#va = hostOf(given);
    this.regions = stack.use(
      new RegionManager(given, {
        ...(logger !== undefined && { logger }),
        ...(overlap !== undefined && { overlap }),
        ...(quiesce !== undefined && { quiesce }),
      }),
    );
    this.#pin = pin;
    this.#ram = new Ram(this.regions, {
      maxAddress,
      priority: ramPriority,
      hasMemory: this.#va.view !== undefined,
      report,
    });
    this.#shareable = new ShareableRegions(this.regions, () => this.#ram.regions, report);
    this.#ram.add(backings, layouts);
  }

  /**
   * Reserves addresses, makes the RAM and maps it, all of it readable and writable.
   *
   * @example Two NUMA nodes, and a gap for devices below 4 GiB
   * ```ts
   * import { GuestMemoryManager, MemoryRange } from "membacking";
   *
   * using guest = GuestMemoryManager.create({
   *   maxAddress: 0x2_0000_0000,
   *   ram: [
   *     { name: "node 0", ranges: [new MemoryRange(0, 0xc000_0000)], hostNumaNode: 0 },
   *     { name: "node 1", ranges: [new MemoryRange(0x1_0000_0000, 0x1_4000_0000)], transparentHugepages: true },
   *   ],
   * });
   * console.assert(guest.shareableRegions().length === 2);
   * ```
   *
   * @throws {RamLayoutError} If the backings and options do not go together; `kind` and `range` say why.
   * @throws {RegionOverlapError} If two RAM ranges overlap.
   * @throws {RangeError} If a number is out of its range, or a RAM range is empty or ends beyond `maxAddress`.
   * @throws {MappingError} If a file that exists is too short or read-only.
   * @throws {OsError} If the host is out of addresses or memory; for huge pages the message names the pool to raise.
   */
  static create(options: GuestMemoryOptions): GuestMemoryManager {
    using stack = new DisposableStack();
    const manager = new GuestMemoryManager(options, stack);
    stack.move();
    return manager;
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
   * Attaches a partition, such as a `KvmVm`: gives it all memory that is visible, and every change from now on, until
   * the handle returned is disposed, which takes everything away from it again.
   *
   * With `aliasOffset` all of it appears twice, in half of the partition's memory slots each.
   *
   * @example Usage
   * ```ts
   * import { GuestMemoryManager, MemoryRange } from "membacking";
   * import { RecordingPartition } from "membacking/testing";
   *
   * using guest = GuestMemoryManager.create({
   *   maxAddress: 0x100_0000,
   *   ram: [{ ranges: [new MemoryRange(0, 0x80_0000)] }],
   * });
   * const vm = new RecordingPartition();
   * using _attached = guest.attachPartition(vm, { aliasOffset: 0x4000_0000 });
   * console.assert(vm.hvaAt(0x1000) === vm.hvaAt(0x4000_1000));
   * ```
   *
   * @throws {RamLayoutError} If the alias would overlap guest memory, end beyond 2^52, or break up huge pages.
   * @throws {TypeError} If the partition is attached already.
   * @throws {MappingError} If the partition failed; everything has been undone.
   * @throws {LimitError} If it cannot hold that many ranges.
   */
  attachPartition(partition: Partition, options: AttachOptions = {}): Disposable {
    const { regions } = this;
    const { aliasOffset } = options;
    if (aliasOffset === undefined) return regions.addPartition(partition, { pin: this.#pin });
    checkNumber(aliasOffset, "Alias offset");
    checkAlias(aliasOffset, this.#va.length, this.#pageSize);
    const known = this.#halves.get(partition);
    const [main, alias] = known ?? [new PartitionHalf(partition, false), new PartitionHalf(partition, true)] as const;
    if (known === undefined) this.#halves.set(partition, [main, alias]);
    const [first, second] = regions.batch(() => [
      regions.addPartition(main, { pin: this.#pin }),
      regions.addPartition(alias, { offset: aliasOffset }),
    ]);
    return {
      [Symbol.dispose]() {
        if (regions.disposed) return;
        regions.batch(() => {
          second?.[Symbol.dispose]();
          first?.[Symbol.dispose]();
        });
      },
    };
  }

  /**
   * Begins to track which pages of guest memory are written, by whomever: see `DirtyTracker`.
   *
   * @throws {MappingError} If a partition cannot be told; nothing has changed then.
   */
  trackDirty(): DirtyTracker {
    return this.regions.trackDirty();
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
   * Makes memory for a device, such as a PCI BAR: nothing mapped in it, and not in the guest yet. Disposing the manager
   * disposes it.
   *
   * @param name For messages and inspection; need not be unique.
   * @param length In bytes; page-aligned, above 0.
   * @throws {RangeError} If the length is 0 or not page-aligned.
   */
  newDeviceMemory(name: string, length: number, options: DeviceMemoryOptions = {}): DeviceMemory {
    if (this.regions.disposed) throw new DisposedError("The guest memory manager");
    const memory = new DeviceMemory(
      deviceHost(this.regions),
      name,
      length,
      options,
      (gone) => this.#devices.delete(gone),
    );
    this.#devices.add(memory);
    return memory;
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

  /** The device memory that has not been disposed, oldest first, whether the guest has it or not. */
  get devices(): readonly DeviceMemory[] {
    return [...this.#devices];
  }

  /**
   * The memory map and what it is made of, as plain data, safe for JSON. `drawMemoryMap` draws it.
   *
   * Asks the kernel for the memory really in use, which takes some milliseconds per gigabyte; `regions.inspect()` does
   * not.
   */
  inspect(): InspectGuestMemory {
    return inspectGuest(this.regions.inspect(), this.#ram.inspect(), this.#devices);
  }

  /**
   * Takes all memory away from partitions and DMA targets, revokes locks, disposes device memory and gives the host's
   * memory back. What fails does not keep the rest from being done. Does nothing the second time.
   *
   * @throws {MembackingError} If a step failed; its `cause` is an `AggregateError` of all that did.
   */
  [Symbol.dispose](): void {
    // Nobody else uses the addresses: with this said, the manager unmaps them as a whole and need not empty them first.
    this.#reserved?.[Symbol.dispose]();
    try {
      this.regions[Symbol.dispose]();
    } finally {
      // Not where a callback of the manager tried it: that disposes nothing.
      if (this.regions.disposed) {
        for (const device of this.#devices) device[Symbol.dispose]();
      }
    }
  }
}
