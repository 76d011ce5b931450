/**
 * The power registers of ACPI: by them Linux switches the machine off, or starts it again.
 *
 * Specified in section 4.8 of the ACPI specification. No event ever happens, and ACPI is always on.
 *
 * @module
 */

import type { PortDevice } from "../pc/port_bus.ts";

/** Where they are, and the interrupt that would tell of events. */
export const PM = { events: 0x600, control: 0x604, reset: 0x606, resetValue: 1, irq: 9 } as const;
/** How many ports there are, from `PM.events` on. */
export const PM_PORTS = 7;
/** The number that means "off" in the sleep type of the control register. */
export const SLEEP_TYPE_OFF = 5;

const ACPI_IS_ON = 1;
const SLEEP_ENABLE = 1 << 13;
const SLEEP_TYPE_SHIFT = 10;

/** The registers. */
export class Power implements PortDevice {
  readonly #registers = new Uint8Array(PM_PORTS);
  readonly #onOff: (why: "off" | "reset") => void;

  /** `onOff` is told when the guest wants to end. */
  constructor(onOff: (why: "off" | "reset") => void) {
    this.#onOff = onOff;
  }

  /** The status is never anything; enable bits and control read back. */
  read(port: number, size: number): number {
    let value = 0;
    for (let i = size - 1; i >= 0; i--) value = value * 0x100 + this.#byte(port + i);
    return value;
  }

  /** Takes a register. */
  write(port: number, size: number, value: number): void {
    if (port === PM.reset) {
      if (value === PM.resetValue) this.#onOff("reset");
      return;
    }
    for (let i = 0; i < size; i++) this.#registers[port + i - PM.events] = Math.floor(value / 0x100 ** i);
    const isOff = (value >> SLEEP_TYPE_SHIFT & 7) === SLEEP_TYPE_OFF;
    if (port === PM.control && size === 2 && (value & SLEEP_ENABLE) !== 0 && isOff) this.#onOff("off");
  }

  #byte(port: number): number {
    const isStatus = port < PM.events + 2;
    const value = isStatus ? 0 : this.#registers[port - PM.events] ?? 0;
    return port === PM.control ? value | ACPI_IS_ON : value;
  }
}
