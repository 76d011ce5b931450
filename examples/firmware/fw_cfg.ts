/**
 * The firmware configuration device of QEMU's machines: named files that a VMM hands to firmware.
 *
 * Specified in QEMU's docs/specs/fw_cfg.rst. A 16-bit write to port 0x510 chooses an item and rewinds it, each byte
 * read from port 0x511 is the next one of it, and zeros follow after the end.
 *
 * @module
 */

import type { PortDevice } from "../pc/port_bus.ts";

/** Its first port; the second one follows. */
export const FW_CFG_PORT = 0x510;

/** Items that have a number instead of a name. */
const KEY = {
  signature: 0x00,
  id: 0x01,
  cpus: 0x05,
  bootMenu: 0x0e,
  maxCpus: 0x0f,
  directory: 0x19,
  firstFile: 0x20,
} as const;

const NAME_BYTES = 56;
const NOTHING = new Uint8Array(0);

/** A file for the firmware. */
export interface FwCfgFile {
  /** Its name, at most 55 characters of ASCII. */
  readonly name: string;
  /** What is in it. */
  readonly content: Uint8Array;
}

/** The two ports, and the items behind them. */
export class FwCfg implements PortDevice {
  readonly #items = new Map<number, Uint8Array>();
  #item: Uint8Array = NOTHING;
  #offset = 0;

  /** Offers `files`, for a machine of one CPU. */
  constructor(files: readonly FwCfgFile[]) {
    const set = (key: number, ...bytes: number[]) => this.#items.set(key, new Uint8Array(bytes));
    set(KEY.signature, ...new TextEncoder().encode("QEMU"));
    set(KEY.id, 1, 0, 0, 0); // the two ports, and no DMA
    set(KEY.cpus, 1, 0);
    set(KEY.maxCpus, 1, 0);
    set(KEY.bootMenu, 0, 0); // no waiting for a key
    this.#items.set(KEY.directory, directory(files));
    files.forEach(({ content }, i) => this.#items.set(KEY.firstFile + i, content));
  }

  /** The next byte of the item chosen. */
  read(port: number): number {
    return port === FW_CFG_PORT ? 0xff : this.#item[this.#offset++] ?? 0;
  }

  /** Chooses an item. Nothing else can be written. */
  write(port: number, size: number, value: number): void {
    if (port !== FW_CFG_PORT || size !== 2) return;
    this.#item = this.#items.get(value) ?? NOTHING;
    this.#offset = 0;
  }
}

/** The list of files: big-endian, 64 bytes for each. */
function directory(files: readonly FwCfgFile[]): Uint8Array {
  const bytes = new Uint8Array(4 + 64 * files.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, files.length);
  files.forEach(({ name, content }, i) => {
    const encoded = new TextEncoder().encode(name);
    if (encoded.length >= NAME_BYTES) throw new RangeError(`The name "${name}" is too long, use at most 55 bytes`);
    const at = 4 + 64 * i;
    view.setUint32(at, content.length);
    view.setUint16(at + 4, KEY.firstFile + i);
    bytes.set(encoded, at + 8);
  });
  return bytes;
}

/** A range of addresses, as the firmware is to tell it to operating systems. */
export interface E820Range {
  /** Its first address. */
  readonly start: number;
  /** How long it is, in bytes. */
  readonly length: number;
  /** 1 for RAM, 2 for reserved (the numbers of the BIOS call E820). */
  readonly type: 1 | 2;
}

/** The file `etc/e820`: little-endian, 20 bytes for each range. */
export function e820(ranges: readonly E820Range[]): FwCfgFile {
  const content = new Uint8Array(20 * ranges.length);
  const view = new DataView(content.buffer);
  ranges.forEach(({ start, length, type }, i) => {
    view.setBigUint64(20 * i, BigInt(start), true);
    view.setBigUint64(20 * i + 8, BigInt(length), true);
    view.setUint32(20 * i + 16, type, true);
  });
  return { name: "etc/e820", content };
}
