/**
 * The exits that carry data: port and MMIO accesses, whose bytes lie in the page that vCPU and VMM share.
 *
 * Why it is safe: it reads and writes through typed arrays that check bounds, and never more than they hold.
 *
 * @module
 */

import type { KvmIoExit, KvmMmioExit } from "./exits.ts";

const NOTHING: Uint8Array<ArrayBuffer> = new Uint8Array(0);
/** The longest access that is shown as a number; what is longer is a bigint. */
const NUMBER_BYTES = 4;

/** A port access; one object for all of a vCPU. */
export class IoExit implements KvmIoExit {
  readonly kind = "io";
  direction: "in" | "out" = "in";
  port = 0;
  size = 0;
  count = 0;
  data: Uint8Array<ArrayBuffer> = NOTHING;

  get value(): number {
    return Number(read(this.data, this.size));
  }

  set value(value: number) {
    const { data, size } = this;
    const bits = checked(value, size);
    for (let at = 0; at < data.length; at += size) write(data, at, size, bits);
  }
}

/** An MMIO access; one object for all of a vCPU. */
export class MmioExit implements KvmMmioExit {
  readonly kind = "mmio";
  gpa = 0;
  isWrite = false;
  length = 0;
  data: Uint8Array<ArrayBuffer> = NOTHING;

  get value(): number | bigint {
    return read(this.data, this.length);
  }

  set value(value: number | bigint) {
    write(this.data, 0, this.length, checked(value, this.length));
  }
}

function read(data: Uint8Array, length: number): number | bigint {
  if (length <= NUMBER_BYTES) {
    let value = 0;
    for (let i = length - 1; i >= 0; i--) value = value * 0x100 + (data[i] ?? 0);
    return value;
  }
  let value = 0n;
  for (let i = length - 1; i >= 0; i--) value = value << 8n | BigInt(data[i] ?? 0);
  return value;
}

function write(data: Uint8Array, at: number, length: number, value: number | bigint): void {
  let rest = value;
  for (let i = 0; i < length; i++) {
    if (typeof rest === "bigint") {
      data[at + i] = Number(rest & 0xffn);
      rest >>= 8n;
    } else {
      data[at + i] = rest % 0x100;
      rest = Math.floor(rest / 0x100);
    }
  }
}

function checked(value: number | bigint, length: number): number | bigint {
  const fits = typeof value === "bigint"
    ? value >= 0n && value < 1n << BigInt(8 * length)
    : Number.isSafeInteger(value) && value >= 0 && value < 2 ** (8 * length);
  if (!fits) {
    if (typeof value !== "number" && typeof value !== "bigint") {
      throw new TypeError(`The value of an access must be a number or a bigint, got ${typeof value}`);
    }
    throw new RangeError(`${value} is no integer of ${length} bytes without a sign`);
  }
  return value;
}
