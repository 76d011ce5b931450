import { DisposedError } from "../core/errors.ts";
import { checkNumber, type MemoryRange } from "../core/memory_range.ts";
import { checkAlias } from "../core/ram_layout.ts";
import type { Partition } from "../core/targets.ts";
import type { DirtyTracker } from "../memory/dirty_tracker.ts";
import { deviceHost } from "./device_host.ts";
import { DeviceMemory } from "./device_memory.ts";
import type { DeviceMemoryOptions } from "./device_options.ts";
import { Copies } from "./copies.ts";
import { FrozenMemory, type FrozenMoment } from "./frozen_memory.ts";
import { checkReal } from "./freezable.ts";
import { restoreSnapshot } from "./restore.ts";
import { saveMemory } from "./save.ts";
import type { SaveOptions } from "./save_options.ts";
import type { Snapshot } from "../snapshots/snapshot.ts";
import type { PageSet } from "../core/page_set.ts";
import { inspectGuest, type InspectGuestMemory } from "./inspect_guest.ts";
import { PartitionHalf } from "./partition_half.ts";
import type { AttachOptions, CloneOptions, GuestMemoryOptions, RestoreOptions } from "./options.ts";
import { type GuestParts, guestParts, type LaidOutRam, laidOutRam } from "./guest_parts.ts";
import { ownBacking } from "./ram_backing.ts";
import { GuestRam } from "./guest_ram.ts";

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
export class GuestMemoryManager extends GuestRam implements Disposable {
  readonly #parts: GuestParts;
  readonly #copies: Copies;
  readonly #devices = new Set<DeviceMemory>();
  /** The two halves of partitions that were attached with an alias, so that attaching one twice is found out. */
  readonly #halves = new WeakMap<Partition, readonly [PartitionHalf, PartitionHalf]>();

  private constructor(options: Omit<GuestMemoryOptions, "ram">, ram: LaidOutRam, stack: DisposableStack) {
    const parts = guestParts(options, ram, stack);
    super(parts);
    this.#parts = parts;
    this.#copies = new Copies(parts.regions, parts.ram, () => parts.pin);
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
    return GuestMemoryManager.#make(options, laidOutRam(options));
  }

  static #make(options: Omit<GuestMemoryOptions, "ram">, ram: LaidOutRam): GuestMemoryManager {
    using stack = new DisposableStack();
    const manager = new GuestMemoryManager(options, ram, stack);
    stack.move();
    return manager;
  }

  /**
   * Makes guest memory out of a snapshot: the same RAM, switched in the same way, and nothing else. The snapshot may be
   * disposed afterwards, and its directory removed.
   *
   * @example Usage
   * ```ts
   * import { GuestMemoryManager, MemoryRange } from "membacking";
   *
   * const ram = new MemoryRange(0, 0x80_0000);
   * using guest = GuestMemoryManager.create({ maxAddress: 0x100_0000, ram: [{ ranges: [ram] }] });
   * guest.memory.writeUint32(0x1000, 7);
   *
   * const folder = Deno.makeTempDirSync();
   * using snapshot = await guest.save(`${folder}/snapshot`);
   * using restored = GuestMemoryManager.restore(snapshot);
   * console.assert(restored.memory.readUint32(0x1000) === 7);
   * Deno.removeSync(folder, { recursive: true });
   * ```
   *
   * @throws {SnapshotError} If a file of it is shorter by now.
   * @throws {MembackingError} As `create` does, if its index, which somebody else may have made, or `options` ask for RAM
   * that cannot be.
   * @throws {DisposedError} If the snapshot has been disposed.
   * @throws {OsError} If the host is out of addresses or memory.
   */
  static restore(snapshot: Snapshot, options: RestoreOptions = {}): GuestMemoryManager {
    return restoreSnapshot(snapshot, options, (made) => {
      const guest = GuestMemoryManager.create(made);
      return { guest, regions: guest.regions, ram: guest.#parts.ram, copies: guest.#copies };
    });
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
    if (aliasOffset === undefined) return regions.addPartition(partition, { pin: this.#parts.pin });
    checkNumber(aliasOffset, "Alias offset");
    checkAlias(aliasOffset, this.#parts.va.length, this.#parts.pageSize);
    const known = this.#halves.get(partition);
    const [main, alias] = known ?? [new PartitionHalf(partition, false), new PartitionHalf(partition, true)] as const;
    if (known === undefined) this.#halves.set(partition, [main, alias]);
    const [first, second] = regions.batch(() => [
      regions.addPartition(main, { pin: this.#parts.pin }),
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
   * Makes a template of the RAM as it is now, from which any number of guests can be made. The guest goes on, on pages of
   * its own wherever it writes; devices are not part of it. One mmap a region, for which vCPUs are held; a second freeze
   * writes what has been written since to the file, or, while a template or clone needs that as it is, a whole new file.
   *
   * @example Guests from one that is warm
   * ```ts
   * import { GuestMemoryManager, MemoryRange } from "membacking";
   *
   * const ram = new MemoryRange(0, 0x80_0000);
   * using guest = GuestMemoryManager.create({ maxAddress: 0x100_0000, ram: [{ ranges: [ram] }] });
   * guest.memory.writeUint32(0x1000, 1);
   *
   * using template = guest.freeze();
   * using clone = template.clone();
   * clone.memory.writeUint32(0x1000, 2);
   * console.assert(guest.memory.readUint32(0x1000) === 1);
   * ```
   *
   * @throws {MappingError} If it cannot be frozen: RAM of huge pages, pinned or anonymous RAM, or a file that others may
   * have; names it and why. Nothing has changed.
   * @throws {MemoryLockedError} If another thread has locks, from the second freeze on; or if a lock reaches over memory that
   * may be written and memory that may not, since what it shows is another mapping of the file.
   */
  freeze(): Template {
    return templateOf(new FrozenMemory(this.#moment(), (moment, options) => this.#clone(moment, options)));
  }

  /**
   * Makes memory shared again that was frozen: vCPUs are held while what was written since goes to the file. Does nothing
   * if it is not frozen.
   *
   * @throws {MembackingError} If a template of the latest freeze or a clone of it is there, or memory is being saved.
   * @throws {MemoryLockedError} If another thread has a lock.
   */
  thaw(): void {
    this.#copies.thaw();
  }

  /**
   * Goes back to what RAM was at the latest freeze, or when it was cloned or restored, at the cost of what was written
   * since. vCPUs are held; their state, devices and the memory map are the VMM's to put back. RAM that was added since
   * stays as it is.
   *
   * @returns The pages that have other bytes now, which count as written.
   * @throws {MembackingError} If there is nothing to go back to, or a freeze or thaw that failed has written over it.
   * @throws {MemoryLockedError} If RAM is locked.
   */
  rollback(): PageSet {
    return this.#copies.rollback();
  }

  /**
   * Saves RAM as it is at the moment of the call to a new directory: layout, visibility and contents, without pages of
   * zeros, and whatever `state` is put beside. It appears there whole or not at all. Memory is frozen meanwhile, so that
   * later writes are not in it; what cannot be frozen is written in one go, without a turn of the event loop.
   *
   * @example A snapshot, and what has changed since
   * ```ts
   * import { GuestMemoryManager, MemoryRange, Snapshot } from "membacking";
   *
   * const ram = new MemoryRange(0, 0x80_0000);
   * using guest = GuestMemoryManager.create({ maxAddress: 0x100_0000, ram: [{ ranges: [ram] }] });
   * const folder = Deno.makeTempDirSync();
   * using tracker = guest.trackDirty();
   * using base = await guest.save(`${folder}/monday`, { live: true });
   *
   * guest.memory.writeUint32(0x1000, 7);
   * using difference = await guest.save(`${folder}/tuesday`, { base, pages: tracker.take() });
   * console.assert(difference.storedBytes === 0x1000);
   * using again = await Snapshot.open(`${folder}/tuesday`, { parents: [`${folder}/monday`], verify: true });
   * console.assert(again.parent === base.id);
   * Deno.removeSync(folder, { recursive: true });
   * ```
   *
   * @throws {SnapshotError} If there is something at `directory`, or `base` is of another layout.
   * @throws {MappingError} If `live` is asked for and memory cannot be frozen.
   * @throws {MemoryLockedError} If memory is locked so that it cannot be frozen, as `freeze` says.
   * @throws {OsError} If the disk is full or fails. Nothing is left of the snapshot.
   * @throws {MembackingError} If host memory is only recorded, or the quiesce hook adds RAM or takes RAM away.
   * @throws {TypeError} If an option is not what it should be, or inside a batch.
   * @throws The signal's reason, if it aborts first.
   */
  save(directory: string, options: SaveOptions = {}): Promise<Snapshot> {
    return saveMemory(directory, options, {
      regions: this.regions,
      ram: this.#parts.ram,
      copies: this.#copies,
      report: this.#parts.report,
      ...this.#parts.layout,
    });
  }

  #moment(): FrozenMoment {
    const { visibility } = this.#parts.ram;
    const ram = this.#copies.freeze();
    const backings = ram.blocks.map(({ backing }, i) =>
      ownBacking({ ...backing, backing: ram.frozen.files[i]!, copyOnWrite: true, fixedSize: false })
    );
    return { laidOut: { backings, layouts: ram.blocks.map(({ layout }) => layout) }, visibility, ram };
  }

  #clone({ laidOut, visibility, ram }: FrozenMoment, options: CloneOptions = {}): GuestMemoryManager {
    const { ramPriority = this.#parts.layout.ramPriority, ...others } = options;
    // The layout is the template's, whatever else it is asked for.
    const guest = GuestMemoryManager.#make({ ...others, ...this.#parts.layout, ramPriority, pin: false }, laidOut);
    try {
      checkReal(guest.regions);
      const switched = visibility.filter(({ to }) => to !== "read-write");
      if (switched.length > 0) {
        guest.regions.batch(() => switched.forEach(({ range, to }) => guest.setRamVisibility(range, to)));
      }
      guest.#copies.adopt(ram.frozen);
      return guest;
    } catch (error) {
      guest[Symbol.dispose]();
      throw error;
    }
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
    return inspectGuest(this.regions.inspect(), this.#parts.ram.inspect(), this.#devices);
  }

  /**
   * Takes all memory away from partitions and DMA targets, revokes locks, disposes device memory and gives the host's
   * memory back. What fails does not keep the rest from being done. Does nothing the second time.
   *
   * @throws {MembackingError} If a step failed; its `cause` is an `AggregateError` of all that did.
   */
  [Symbol.dispose](): void {
    // Nobody else uses the addresses: with this said, the manager unmaps them as a whole and need not empty them first.
    this.#parts.reserved?.[Symbol.dispose]();
    try {
      this.regions[Symbol.dispose]();
    } finally {
      // Not where a callback of the manager tried it: that disposes nothing.
      if (this.regions.disposed) {
        for (const device of this.#devices) device[Symbol.dispose]();
        this.#copies[Symbol.dispose]();
      }
    }
  }
}

/** Only a manager makes one. */
let templateOf: (frozen: FrozenMemory<GuestMemoryManager, CloneOptions>) => Template;

/**
 * RAM of one moment, made by `GuestMemoryManager.freeze`: any number of guests can be made of it. It holds the memory
 * until it is disposed, and its clones until they are, in any order.
 */
export class Template implements Disposable {
  readonly #frozen: FrozenMemory<GuestMemoryManager, CloneOptions>;

  static {
    templateOf = (frozen) => new Template(frozen);
  }

  private constructor(frozen: FrozenMemory<GuestMemoryManager, CloneOptions>) {
    this.#frozen = frozen;
  }

  /** The ranges of RAM that it has, lowest first. */
  get ranges(): readonly MemoryRange[] {
    return this.#frozen.ranges;
  }

  /**
   * Makes another guest's memory with the same RAM, switched in the same way, and nothing else: no devices, no partitions.
   * It takes a number of system calls that does not depend on how much RAM there is, reads no bytes, and costs memory
   * only for what the clone writes.
   *
   * @throws {DisposedError} After dispose.
   * @throws {OsError} If the host is out of addresses.
   * @throws {LimitError} If host mappings would run out.
   */
  clone(options?: CloneOptions): GuestMemoryManager {
    return this.#frozen.clone(options);
  }

  /** Lets go of the memory; clones keep theirs. Does nothing the second time. */
  [Symbol.dispose](): void {
    this.#frozen[Symbol.dispose]();
  }
}
