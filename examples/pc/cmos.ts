/**
 * The battery-backed memory of a PC's clock (MC146818), where firmware finds how much RAM there is.
 *
 * Ports 0x70 (index) and 0x71 (data). The clock itself does not tick: no date is set, and no update is ever under way.
 *
 * @module
 */

import type { PortDevice } from "../pc/port_bus.ts";

/** Its first port; the second one follows. */
export const CMOS_PORT = 0x70;

const KIB = 1024;
const MIB = 1024 * KIB;

/** The registers, by the indices that PC firmware has agreed on. */
const BASE_MEMORY = 0x15; // KiB below 640 KiB, two bytes
const EXTENDED_MEMORY = 0x30; // KiB above 1 MiB, two bytes
const MEMORY_ABOVE_16M = 0x34; // 64 KiB units above 16 MiB, two bytes

/** The index and data ports over 128 bytes. */
export class Cmos implements PortDevice {
  readonly #bytes = new Uint8Array(128);
  #index = 0;

  /** `ram` is the RAM below 4 GiB, in bytes. */
  constructor(ram: number) {
    this.#set16(BASE_MEMORY, 640);
    this.#set16(EXTENDED_MEMORY, Math.min((ram - MIB) / KIB, 0xffff));
    this.#set16(MEMORY_ABOVE_16M, Math.max(ram - 16 * MIB, 0) / (64 * KIB));
  }

  /** Reads the register chosen; the index port cannot be read. */
  read(port: number): number {
    return port === CMOS_PORT ? 0xff : this.#bytes[this.#index] ?? 0;
  }

  /** Chooses a register, or sets the one chosen. */
  write(port: number, _size: number, value: number): void {
    if (port === CMOS_PORT) this.#index = value & 0x7f; // bit 7 masks NMIs
    else this.#bytes[this.#index] = value;
  }

  #set16(index: number, value: number): void {
    this.#bytes[index] = value & 0xff;
    this.#bytes[index + 1] = value >>> 8;
  }
}
