/**
 * The I/O ports of the machine.
 *
 * @module
 */

import type { KvmIoExit } from "membacking/kvm";

/** Something that answers at ports. Values are unsigned, little-endian, `size` bytes wide. */
export interface PortDevice {
  /** What the guest reads. */
  read(port: number, size: number): number;
  /** The guest wrote. */
  write(port: number, size: number, value: number): void;
}

/** What the guest asks of a port: an exit of KVM, or a copy of one. */
export type PortAccess = Omit<KvmIoExit, "data" | "value"> & { readonly data: Uint8Array };

/** Sends port accesses to devices. */
export class PortBus {
  readonly #devices = new Map<number, PortDevice>();

  /** Lets `device` answer at `count` ports from `first` on. */
  attach(device: PortDevice, first: number, count = 1): void {
    for (let port = first; port < first + count; port++) this.#devices.set(port, device);
  }

  /** Carries out what the guest asked for, which is many accesses in a row for a string instruction. */
  handle({ direction, port, size, count, data }: PortAccess): void {
    const device = this.#devices.get(port);
    // Nobody answers: the bus floats, and all lines read as ones.
    if (device === undefined) {
      if (direction === "in") data.fill(0xff);
      return;
    }
    for (let i = 0; i < count; i++) {
      const bytes = data.subarray(i * size, (i + 1) * size);
      if (direction === "out") device.write(port, size, little(bytes));
      else setLittle(bytes, device.read(port, size));
    }
  }
}

/** The number that `bytes` are, the lowest first. */
export function little(bytes: Uint8Array): number {
  return bytes.reduceRight((value, byte) => value * 0x100 + byte, 0);
}

/** Makes `bytes` the number `value`, the lowest first. */
export function setLittle(bytes: Uint8Array, value: number): void {
  for (let i = 0; i < bytes.length; i++) bytes[i] = Math.floor(value / 0x100 ** i) & 0xff;
}
