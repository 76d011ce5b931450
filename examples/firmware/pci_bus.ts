/**
 * The PCI bus: configuration space as a guest reaches it, by mechanism 1 of the PCI specification. A write to port
 * 0xcf8 chooses a register of a function, 0xcfc-0xcff are its four bytes.
 *
 * @module
 */

import type { PortDevice } from "../pc/port_bus.ts";

/** The first of the eight ports. */
export const PCI_PORT = 0xcf8;
/** How many there are. */
export const PCI_PORTS = 8;

const DATA = 0xcfc;
const ENABLE = 0x8000_0000;

/** The configuration space of one function, 256 bytes. */
export abstract class PciFunction {
  /** What the guest reads. */
  protected readonly config: Uint8Array<ArrayBuffer> = new Uint8Array(256);
  /** The same, for fields of more than a byte. */
  protected readonly fields: DataView<ArrayBuffer> = new DataView(this.config.buffer);
  /** The bits a guest may change. */
  readonly #writable = new Uint8Array(256);

  /** Is told that the guest wrote bytes `[start, end)`, once they have their new value. */
  protected abstract written(start: number, end: number): void;

  /** Lets the guest change the bits of `mask` in the four bytes at `offset`. */
  protected allow(offset: number, mask: number): void {
    new DataView(this.#writable.buffer).setUint32(offset, mask, true);
  }

  /** What the guest reads, `size` bytes. */
  read(offset: number, size: number): number {
    let value = 0;
    for (let i = size - 1; i >= 0; i--) value = value * 0x100 + (this.config[offset + i] ?? 0xff);
    return value;
  }

  /** The guest writes `size` bytes. */
  write(offset: number, size: number, value: number): void {
    for (let i = 0; i < size; i++) {
      const mask = this.#writable[offset + i] ?? 0;
      const byte = Math.floor(value / 0x100 ** i);
      this.config[offset + i] = (this.config[offset + i] ?? 0) & ~mask | byte & mask;
    }
    this.written(offset, offset + size);
  }
}

/** Bus 0 with its functions, and the ports to reach them. */
export class PciBus implements PortDevice {
  readonly #functions = new Map<number, PciFunction>();
  #address = 0;

  /** Puts a function into a slot. */
  plug(slot: number, pciFunction: PciFunction): void {
    this.#functions.set(slot << 3, pciFunction);
  }

  /** Reads the address port whole, or bytes of the register chosen. */
  read(port: number, size: number): number {
    if (port === PCI_PORT && size === 4) return this.#address;
    const floating = 0x100 ** size - 1;
    if (port < DATA) return floating;
    return this.#chosen()?.read(this.#offset(port), size) ?? floating;
  }

  /** Chooses a register, or writes to the one chosen. */
  write(port: number, size: number, value: number): void {
    if (port === PCI_PORT && size === 4) this.#address = value;
    else if (port >= DATA) this.#chosen()?.write(this.#offset(port), size, value);
  }

  #chosen(): PciFunction | undefined {
    return this.#address >= ENABLE ? this.#functions.get((this.#address >>> 8) & 0xffff) : undefined;
  }

  #offset(port: number): number {
    return (this.#address & 0xfc) + port - DATA;
  }
}
