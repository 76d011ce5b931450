/**
 * Pages held in memory by `mlock`, counted.
 *
 * The kernel does not count: one `munlock` undoes any number of `mlock`s. Several virtual machines may pin the same
 * memory, so a page is given up here only when the last of them lets go. And because replacing a mapping silently drops
 * the lock on it, locking again always reaches the kernel, whatever the counts say.
 *
 * Why it is safe: mlock and munlock change no contents and no protection, only whether pages may be paged out.
 *
 * The counts are those of one thread's module instance: pin a range from one thread only.
 *
 * @module
 */

import { hex } from "../../src/core/hex.ts";
import { paint } from "../../src/core/paint.ts";
import { type Entry, RangeMap } from "../../src/core/range_map.ts";
import { libc } from "../os/libc.ts";
import { outcome, uninterrupted } from "../os/uninterrupted.ts";

let counts: RangeMap<number> = RangeMap.EMPTY;

const same = (a: number, b: number): boolean => a === b;

/** The counts of `[start, end)` without gaps: 0 where nothing is counted. */
function countsOf(start: number, end: number): Entry<number>[] {
  const pieces: Entry<number>[] = [];
  let at = start;
  for (const entry of counts.overlapping(start, end)) {
    if (entry.start > at) pieces.push({ start: at, end: entry.start, value: 0 });
    pieces.push({ start: Math.max(entry.start, start), end: Math.min(entry.end, end), value: entry.value });
    at = Math.min(entry.end, end);
  }
  if (at < end) pieces.push({ start: at, end, value: 0 });
  return pieces;
}

function setCounts(start: number, end: number, pieces: readonly Entry<number>[]): void {
  counts = paint(counts, start, end, pieces.filter((piece) => piece.value > 0), same);
}

function munlock(start: number, end: number): void {
  // Best effort: it fails only where nothing is mapped any more, and then nothing is locked either.
  libc().sys.munlock(BigInt(start), BigInt(end - start));
}

/**
 * Brings `[address, address + length)` of host memory in and keeps it there, without counting: for memory whose lock
 * was counted before and lost when its mapping was replaced.
 *
 * @throws {OsError} As `lockPages` does.
 */
export function relockPages(address: number, length: number): void {
  const { sys, errno } = libc();
  const at = BigInt(address);
  const size = BigInt(length);
  uninterrupted(
    "mlock",
    () => outcome(sys.mlock(at, size), errno[0]),
    () => `${hex(length)} bytes at ${hex(address)}; all of it must be mapped, and the limit (ulimit -l) must allow it`,
  );
}

/**
 * Brings `[address, address + length)` of host memory in and keeps it there until `unlockPages` was called as often.
 * Both are multiples of 4096.
 *
 * @throws {OsError} ENOMEM or EPERM if the limit on locked memory (RLIMIT_MEMLOCK, `ulimit -l`) is too low, ENOMEM also
 * if a part is not mapped or cannot be accessed. Nothing is counted then, and nothing new stays locked.
 */
export function lockPages(address: number, length: number): void {
  const end = address + length;
  const pieces = countsOf(address, end);
  try {
    relockPages(address, length);
  } catch (error) {
    // It may have got part of the way.
    for (const piece of pieces) if (piece.value === 0) munlock(piece.start, piece.end);
    throw error;
  }
  setCounts(address, end, pieces.map((piece) => ({ ...piece, value: piece.value + 1 })));
}

/** Undoes one `lockPages` of the range; pages that nobody holds any more may be paged out again. */
export function unlockPages(address: number, length: number): void {
  const end = address + length;
  const pieces = countsOf(address, end).map((piece) => ({ ...piece, value: Math.max(0, piece.value - 1) }));
  for (const piece of pieces) if (piece.value === 0) munlock(piece.start, piece.end);
  setCounts(address, end, pieces);
}

/** Forgets what was counted for addresses that are about to be unmapped. */
export function forgetLocks(address: number, length: number): void {
  counts = counts.delete(address, address + length);
}

/** How many holders the page at `address` has. */
export function lockCount(address: number): number {
  return counts.get(address) ?? 0;
}
