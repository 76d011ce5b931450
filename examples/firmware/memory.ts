/**
 * What of the machine's memory is always the same: RAM, the VGA window, and the firmware's ROM in both its places. What
 * the guest moves about is in chipset_memory.ts.
 *
 * @module
 */

import { GuestMemoryManager, type Mappable, MemoryRange, type Quiesce } from "membacking";

const MIB = 0x10_0000;
const FOUR_GIB = 0x1_0000_0000;
const VGA_WINDOW = new MemoryRange(0xa_0000, 0xc_0000);
/** What of the ROM, its end, is also below 1 MiB. */
const LEGACY_ROM = new MemoryRange(0xe_0000, MIB);
const INTERRUPT_CONTROLLERS = 0xfec0_0000;

/** RAM has 255 and device memory 0. Shadow RAM is above the ROM. */
const ROM_PRIORITY = 1;

/** How the memory is made. */
export interface MachineMemoryOptions {
  /** The RAM below 4 GiB, in bytes. */
  readonly ram: number;
  /** The file that is the ROM. */
  readonly rom: Mappable;
  /** Keeps the vCPU out of the guest while memory changes. */
  readonly quiesce?: Quiesce;
}

/** The memory of the machine. */
export class MachineMemory implements Disposable {
  /** All of it, what the guest moves about included. */
  readonly guest: GuestMemoryManager;
  /** The addresses at which cards can be. */
  readonly bus: MemoryRange;

  /** Lays everything out as it is at power-on. */
  constructor({ ram, rom, quiesce }: MachineMemoryOptions) {
    this.bus = new MemoryRange(ram, INTERRUPT_CONTROLLERS);
    using stack = new DisposableStack();
    this.guest = stack.use(GuestMemoryManager.create({
      maxAddress: FOUR_GIB,
      ram: [{ ranges: [new MemoryRange(0, VGA_WINDOW.start), new MemoryRange(MIB, ram)] }],
      overlap: "any", // shadow RAM covers parts of the ROM
      ...(quiesce && { quiesce }),
    }));
    const { regions } = this.guest;
    // No screen: a region without mappings says that these addresses are taken, and leaves each access to the VMM.
    regions.newRegion({ name: "VGA window", range: VGA_WINDOW, priority: 0, type: "device" }).map();
    for (const range of [LEGACY_ROM, new MemoryRange(FOUR_GIB - rom.size, FOUR_GIB)]) {
      const region = regions.newRegion({ name: "ROM", range, priority: ROM_PRIORITY });
      const rangeInRegion = MemoryRange.of(0, range.length);
      region.addMapping({ rangeInRegion, mappable: rom, fileOffset: rom.size - range.length, writable: false });
      region.map({ writable: false });
    }
    stack.move();
  }

  /** Takes everything away from the virtual machine and gives it back to the host. */
  [Symbol.dispose](): void {
    this.guest[Symbol.dispose]();
  }
}
