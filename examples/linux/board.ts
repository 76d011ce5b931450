/**
 * The board: every device of the machine, and the way from an access of the guest to the device it is meant for.
 *
 * @module
 */

import { Cmos, CMOS_PORT } from "../pc/cmos.ts";
import { PortBus } from "../pc/port_bus.ts";
import type { Access } from "./mailbox.ts";
import { PM, PM_PORTS, Power } from "./power.ts";
import { COM1, Uart } from "./uart.ts";

/** Something that answers at addresses. Values are as they are in memory, lowest byte first. */
export interface MmioDevice {
  /** Where it is. */
  readonly gpa: number;
  /** How long it is, in bytes. */
  readonly length: number;
  /** The guest reads: fills `data`. */
  read(offset: number, data: Uint8Array): void;
  /** The guest has written. */
  write(offset: number, data: Uint8Array): void;
}

/** What the board is made of. */
export interface BoardOptions {
  /** The RAM below 4 GiB, in bytes. */
  readonly ram: number;
  /** Is told each byte that goes to the serial port. */
  readonly onByte: (byte: number) => void;
  /** Sets an interrupt line. */
  readonly setIrq: (irq: number, level: boolean) => void;
  /** Is told that the guest switches the machine off. */
  readonly onOff: (why: "off" | "reset") => void;
  /** Is told of accesses to addresses at which there is nothing, or ROM that the guest wants to write. */
  readonly onStray: (gpa: number, isWrite: boolean) => void;
  /** Devices that answer at addresses. */
  readonly devices: readonly MmioDevice[];
}

/** Port 0x61, which is the speaker, of which nothing is heard, and 0x80, to which is written to pass time. */
const SILENT_PORTS = [0x61, 0x80] as const;

/** The devices. */
export class Board {
  /** The serial port. */
  readonly uart: Uart;
  readonly #ports = new PortBus();
  readonly #devices: readonly MmioDevice[];
  readonly #onStray: (gpa: number, isWrite: boolean) => void;

  /** Puts everything in its place. */
  constructor({ ram, onByte, setIrq, onOff, onStray, devices }: BoardOptions) {
    this.#devices = devices;
    this.#onStray = onStray;
    this.uart = new Uart(onByte, (level) => setIrq(COM1.irq, level));
    this.#ports.attach(this.uart, COM1.port, COM1.ports);
    this.#ports.attach(new Cmos(ram), CMOS_PORT, 2);
    this.#ports.attach(new Power(onOff), PM.events, PM_PORTS);
    for (const port of SILENT_PORTS) this.#ports.attach({ read: () => 0, write: () => {} }, port);
  }

  /** Answers an access. */
  answer({ isPort, isWrite, address, size, count, data }: Access): void {
    if (isPort) {
      const direction = isWrite ? "out" : "in";
      return this.#ports.handle({ kind: "io", direction, port: address, size, count, data });
    }
    const device = this.#devices.find(({ gpa, length }) => address >= gpa && address < gpa + length);
    if (device === undefined) {
      this.#onStray(address, isWrite);
      // Writes to ROM and to nothing are lost, and nothing reads as all ones.
      if (!isWrite) data.fill(0xff);
      return;
    }
    if (isWrite) device.write(address - device.gpa, data);
    else device.read(address - device.gpa, data);
  }
}
