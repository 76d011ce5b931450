/**
 * The memory of the machine, all of it by this package: RAM below and above a hole, a ROM that says what the machine is,
 * windows that devices answer at, and a card's memory that moves.
 *
 * @module
 */

import { type DeviceMemory, GuestMemoryManager, Mappable, MemoryRange, type Quiesce } from "membacking";

const MIB = 0x10_0000;
const FOUR_GIB = 0x1_0000_0000;

/** RAM below 1 MiB ends here: VGA and ROM follow. */
const LOW_RAM = new MemoryRange(0, 0xa_0000);
/** Where the ROM with the ACPI tables is: all that a kernel searches for tables and other ROMs. */
export const ROM = new MemoryRange(0xc_0000, MIB);
/** Where the registers of virtio devices are. */
export const VIRTIO_WINDOW = MemoryRange.of(0xd000_0000, 0x10_0000);
/** Where cards can be. */
export const CARDS = new MemoryRange(0xc000_0000, VIRTIO_WINDOW.start);
/** Where RAM that comes later can be. */
export const HOTPLUG = MemoryRange.of(0x2_0000_0000, 0x2000_0000);
/** Where guest memory ends. */
const MAX_ADDRESS = 0x3_0000_0000;

/** How the RAM is laid out. */
export interface RamOptions {
  /** The RAM below the hole, in bytes. */
  readonly below: number;
  /** The RAM above 4 GiB, in bytes. */
  readonly above: number;
  /** Keeps the vCPUs out of the guest while memory changes. */
  readonly quiesce: Quiesce;
}

/** New RAM, below and above a hole. */
export function newRam({ below, above, quiesce }: RamOptions): GuestMemoryManager {
  const ranges = [LOW_RAM, new MemoryRange(MIB, below), MemoryRange.of(FOUR_GIB, above)];
  return GuestMemoryManager.create({ maxAddress: MAX_ADDRESS, ram: [{ ranges }], quiesce });
}

/** Kinds of memory, as the BIOS call E820 numbers them. */
export const E820 = { ram: 1, reserved: 2 } as const;

/** A range of memory that the kernel is told of. */
export interface MemoryKind {
  /** Where it is. */
  readonly range: MemoryRange;
  /** One of `E820`. */
  readonly kind: number;
}

/** The memory. */
export class LinuxMemory implements Disposable {
  /** All of it. */
  readonly guest: GuestMemoryManager;
  readonly #rom: Mappable;
  readonly #resources: DisposableStack;

  /** Lays everything out around the RAM of `guest`, which is this object's from now on, with an empty ROM. */
  constructor(guest: GuestMemoryManager) {
    using stack = new DisposableStack();
    this.guest = stack.use(guest);
    this.#rom = stack.use(Mappable.memfd("rom", ROM.length));
    const { regions } = guest;
    const rom = regions.newRegion({ name: "ROM", range: ROM, priority: 1 });
    rom.addMapping({ rangeInRegion: MemoryRange.of(0, ROM.length), mappable: this.#rom, writable: false });
    rom.map({ writable: false });
    // A region without mappings says that these addresses are taken, and leaves each access to the VMM.
    regions.newRegion({ name: "virtio registers", range: VIRTIO_WINDOW, priority: 0, type: "device" }).map();
    this.#resources = stack.move();
  }

  /** Burns the ROM. The guest cannot. */
  burn(bytes: Uint8Array): void {
    this.#rom.write(0, bytes);
  }

  /** What the kernel is told of memory, which is how it is: RAM, and the ROM as reserved. */
  get kinds(): readonly MemoryKind[] {
    const ram = this.guest.ramRanges.map((range) => ({ range, kind: E820.ram }));
    return [...ram, { range: ROM, kind: E820.reserved }].sort((a, b) => a.range.start - b.range.start);
  }

  /** A card's memory, nowhere yet. */
  newCard(length: number): DeviceMemory {
    return this.guest.newDeviceMemory("card", length);
  }

  /** Takes everything away from the virtual machine and gives it back to the host. */
  [Symbol.dispose](): void {
    this.#resources[Symbol.dispose]();
  }
}
