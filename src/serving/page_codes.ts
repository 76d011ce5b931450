/**
 * The memory map as clients see it: a tree in shared memory, built like the page tables of a processor.
 *
 * ```
 *   root    [ code | ~child | 0 | ... ]      512 entries; below 1 GiB an entry of the root spans 2 MiB,
 *                    |                       below 512 GiB it spans 1 GiB, and so on
 *   child           [ code | code | 0 | ... ]   512 entries of 4 KiB
 * ```
 *
 * An entry is one 32-bit word: 0 for nothing, a *code* that holds for all it spans, or the complement (negative) of the
 * number of the node below. A code has its access in the low bits and the number of a row above: a row says which file
 * backs the memory, and where, and which region shows there.
 *
 * @module
 */

/** Bits of a code. */
export const CODE = {
  /** Something is mapped. */
  readable: 1,
  /** It may be written. */
  writable: 2,
  /** It is reached through its file, which someone may truncate. */
  truncatable: 4,
  /** Its region is being torn down: no new locks. */
  closing: 8,
} as const;

/** What a plain access depends on. */
export const ACCESS_BITS: number = CODE.readable | CODE.writable | CODE.truncatable;

/** By how many bits the number of the row is shifted. */
export const ROW_SHIFT = 4;

/** Entries per node. */
export const FAN_OUT = 512;

const PAGE_BITS = 12;
const FAN_OUT_BITS = 9;

/** More levels than addresses have bits for. */
const SPANS: readonly number[] = Array.from({ length: 7 }, (_, level) => 2 ** (PAGE_BITS + FAN_OUT_BITS * level));

/** How many bytes one entry spans: 4 KiB at level 0, 512 times as many at each level above. */
export function spanOf(level: number): number {
  return SPANS[level]!;
}

/** The level of the root for `length` bytes of guest memory. */
export function rootLevel(length: number): number {
  let level = 0;
  while (spanOf(level + 1) < length) level++;
  return level;
}

/** One row of the table of memory, in 64-bit floating-point numbers. There is no row 0. */
export const ROW = {
  /** The owner's descriptor of the file. */
  fd: 0,
  /** File offset minus GPA, in bytes. */
  delta: 1,
  /** A number of this row's use that no other use has. */
  serial: 2,
  /** The owner's number for the file, which no other file has had; 0 where there is none that holds the memory. */
  file: 3,
  /** The row of the region that shows there. */
  region: 4,
  /** What the memory is, by its place in `KINDS`. */
  kind: 5,
  /** How many numbers there are. */
  length: 6,
} as const;

/** The kinds of memory, by their numbers. */
export const KINDS = ["shared", "private", "copy-on-write"] as const;

/** One row that says what a region is, in the same table; a longer name goes on in further rows. */
export const REGION_ROW = {
  /** The next row of its name, 0 for none. */
  next: 0,
  /** Its id. */
  id: 1,
  /** Twice its priority, and one more for a device. */
  traits: 2,
  /** The length of its name in UTF-16 code units. */
  units: 3,
  /** The first number of its name. */
  text: 4,
  /** The first number of its name in further rows. */
  more: 1,
} as const;

/** How many code units one number has, the first one in the lowest bits. */
export const UNITS_PER_NUMBER = 3;
