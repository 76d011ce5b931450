/**
 * A PCI card with two windows: registers, each access to which leaves the guest (BAR 0), and memory, which the guest
 * reaches without leaving (BAR 1).
 *
 * @module
 */

import type { MemoryRange } from "membacking";
import { Bar } from "./bar.ts";
import type { ChipsetMemory } from "./chipset_memory.ts";
import { PciFunction } from "./pci_bus.ts";

/** The length of the registers, in bytes. */
export const REGISTERS_LENGTH = 0x1000;
/** The length of the memory, in bytes. */
export const CARD_MEMORY_LENGTH = 0x10_0000;

/** The registers, by their offset in BAR 0. Each is 32 bits. */
export const REGISTER = {
  /** Reads `IDENTITY`. */
  identity: 0,
  /** Reads as the complement of what was written. */
  inverter: 4,
} as const;
/** What the identity register reads: "card". */
export const IDENTITY = 0x6472_6163;

/** Where it is plugged in. */
export const CARD_SLOT = 1;
/** The register that switches a function on. */
export const COMMAND = 0x04;
/** The bit of it by which its memory answers. */
export const COMMAND_MEMORY = 2;
/** Where its BARs are in configuration space. */
export const BAR_OFFSETS = { registers: 0x10, memory: 0x14 } as const;
const BARS = BAR_OFFSETS.registers;

/** The card. */
export class Card extends PciFunction {
  readonly #bars: readonly Bar[];
  readonly #onRefused: (error: unknown) => void;
  #cause = "";
  #inverted = 0xffff_ffff;

  /**
   * @param bus The addresses that reach the card.
   * @param memory What moves its windows.
   * @param onRefused Is told why a window did not go where the guest wanted it.
   */
  constructor(bus: MemoryRange, memory: ChipsetMemory, onRefused: (error: unknown) => void) {
    super();
    this.#onRefused = onRefused;
    this.#bars = [REGISTERS_LENGTH, CARD_MEMORY_LENGTH].map((length, i) =>
      new Bar({ name: `BAR ${i}`, length, bus, move: (gpa) => memory.placeBar(i, gpa, this.#cause) })
    );
    this.fields.setUint32(0x00, 0x10f0_1af4, true); // an identity set aside for experiments
    this.fields.setUint32(0x08, 0xff00_0000, true); // a class of its own
    this.allow(COMMAND, COMMAND_MEMORY);
    this.#bars.forEach((bar, i) => this.allow(BARS + 4 * i, bar.mask));
  }

  /** The BARs follow their registers, all that one write has changed. */
  protected override written(start: number, end: number): void {
    const enabled = (this.config[COMMAND] ?? 0) & COMMAND_MEMORY;
    this.#bars.forEach((bar, i) => {
      const offset = BARS + 4 * i;
      const commanded = start <= COMMAND && COMMAND < end;
      if (!commanded && (end <= offset || start >= offset + 4)) return;
      this.#cause = commanded ? `COMMAND <- memory ${enabled ? "on" : "off"}` : `BAR ${i} moved`;
      const { register, refused } = bar.follow(this.fields.getUint32(offset, true), enabled !== 0);
      this.fields.setUint32(offset, register, true);
      if (refused !== undefined) this.#onRefused(refused);
    });
  }

  /** Whether its registers are there. The guest reaches the memory by itself. */
  contains(gpa: number): boolean {
    return this.#bars[0]?.contains(gpa) ?? false;
  }

  /** Reads a register. */
  readMemory(gpa: number): number {
    switch (gpa - (this.#bars[0]?.placed ?? 0)) {
      case REGISTER.identity:
        return IDENTITY;
      case REGISTER.inverter:
        return this.#inverted;
      default:
        return 0;
    }
  }

  /** Writes a register. */
  writeMemory(gpa: number, value: number): void {
    if (gpa - (this.#bars[0]?.placed ?? 0) === REGISTER.inverter) this.#inverted = ~value >>> 0;
  }
}
