/**
 * Numbers on their way into the kernel's structs.
 *
 * Why it is safe: a `DataView` cuts what does not fit, and a cut descriptor or address is somebody else's. So every
 * number of a caller's is checked against the width of its field, once, and the checked value is the one that is used.
 *
 * @module
 */

import { checkNumber } from "../../src/core/memory_range.ts";

/** What is too much for so many bits. Written down, since to work it out takes longer than the rest of a check. */
const LIMITS = { 8: 2 ** 8, 16: 2 ** 16, 31: 2 ** 31, 32: 2 ** 32 } as const;
const LIMIT_64 = 1n << 64n;

/**
 * `value`, if it is an integer of so many bits without a sign. `what` it is in messages, and a field `of` what.
 *
 * @throws {TypeError} If it is no number.
 * @throws {RangeError} If it does not fit.
 */
export function unsigned(value: number, bits: keyof typeof LIMITS, what: string, of?: string): number {
  if (!Number.isInteger(value) || value < 0 || value >= LIMITS[bits]) refuse(value, bits, nameOf(what, of));
  return value + 0; // minus zero is zero
}

function refuse(value: number, bits: number, what: string): never {
  checkNumber(value, what);
  throw new RangeError(`${what} ${value} does not fit ${bits} bits`);
}

/**
 * `value`, if it is a bigint of 64 bits without a sign. `what` it is in messages, and a field `of` what.
 *
 * @throws {TypeError} If it is no bigint.
 * @throws {RangeError} If it does not fit.
 */
export function unsigned64(value: bigint, what: string, of?: string): bigint {
  if (typeof value !== "bigint") {
    const got: unknown = value;
    const must = `${nameOf(what, of)} must be a bigint, got`;
    throw new TypeError(
      typeof got === "number"
        ? `${must} the number ${got}: it has 64 bits, write ${Math.trunc(got)}n or BigInt(...)`
        : `${must} ${typeof got}`,
    );
  }
  if (value < 0n || value >= LIMIT_64) {
    throw new RangeError(
      `${nameOf(what, of)} ${value} does not fit 64 bits without a sign; BigInt.asUintN(64, ...) makes it fit`,
    );
  }
  return value;
}

function nameOf(what: string, of: string | undefined): string {
  return of === undefined ? what : `${of}.${what}`;
}

/**
 * An array of its own with the elements of `list`, so that what sizes a buffer is what fills it.
 *
 * @throws {TypeError} If it is no array.
 * @throws {RangeError} If it has more than `most` elements.
 */
export function copyOf<T>(list: readonly T[], most: number, what: string): T[] {
  if (!Array.isArray(list)) {
    throw new TypeError(`${what} must be an array, got ${list === null ? "null" : typeof list}`);
  }
  const length: unknown = list.length;
  if (typeof length !== "number" || !(length <= most)) {
    throw new RangeError(`There can be at most ${most} ${what} at a time, got ${String(length)}`);
  }
  const copy: T[] = [];
  // Read by index, up to a length that was read once: neither an iterator nor a method of the caller's has a say.
  for (let i = 0; i < length; i++) copy.push(list[i] as T);
  return copy;
}
