/**
 * System control port A of the PS/2, 0x92: bit 1 is the A20 line, which firmware switches on and expects to read back.
 * The guest's addresses are never cut off here, whatever it says.
 *
 * @module
 */

import type { PortDevice } from "../pc/port_bus.ts";

/** Its port. */
export const SYSTEM_CONTROL_PORT = 0x92;

/** A register that reads back. */
export class SystemControl implements PortDevice {
  #value = 0;

  /** What was written last. */
  read(): number {
    return this.#value;
  }

  /** Keeps what is written. */
  write(_port: number, _size: number, value: number): void {
    this.#value = value & 0xff;
  }
}
