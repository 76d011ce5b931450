/**
 * How many kernel mappings (VMAs) the process may still make.
 *
 * Linux allows a process `vm.max_map_count` of them, 65530 by default, and running into the limit is not an error that
 * can be handled: V8 aborts the process when it cannot map memory. So guest memory stops well before, with an error of
 * its own.
 *
 * The budget is `vm.max_map_count`, less what the process has, less what is kept back for what V8, Workers and
 * libraries map later. What the process has is counted before its first guest memory, and again, now and then, once the
 * budget gets scarce: other threads, their guest memory and the JavaScript heap draw on the same limit.
 *
 * How much is kept back, as measured: a Worker takes 135 mappings, and 375 more with a heap of 100 MB; a JavaScript heap
 * takes up to 4 per megabyte. A quarter of the default limit is ten such Workers and a heap that grows by 2.5 GB.
 *
 * Should the limit be met all the same, because others have used up what was kept back, not even a mapping can be
 * replaced any more, and a request that got half-way could not be undone. So there are some mappings that are good for
 * nothing but to be given up then: the ballast.
 *
 * Why it is safe: it reads two files of /proc, counts, and unmaps only addresses that it has reserved itself and told
 * no one.
 *
 * @module
 */

import { PAGE_SIZE } from "../../src/core/memory_range.ts";
import { releaseAddresses, reserveAddresses } from "../os/address_space.ts";
import { libc } from "../os/libc.ts";
import { giveBackOldest } from "./retired_addresses.ts";
import { PROT_READ } from "../os/mman.ts";
import { countLines, readNumberFile } from "../os/proc_file.ts";

/** The most that is left to everything that is not guest memory; less where the limit is low. */
const KEPT_BACK = 16384;

/** Below this share of the limit, what others have is counted again. */
const SCARCE = 1 / 2;
/** How much longer than counting takes it is not done again, and the least, in milliseconds. */
const PAUSES = 20;
const SHORTEST_PAUSE = 50;

/** With less than this many left, addresses that were retired are given back. */
const RESERVE = 512;
/** But for so many, which are the newest. */
const KEPT_RETIRED = 64;

const DEFAULT_LIMIT = 65530;
const DEFAULT_COUNT = 1024;

/** How many pages of the ballast are protected otherwise than those around them, which makes two mappings of each. */
const BALLAST_PAGES = 8;
const BALLAST_LENGTH = (2 * BALLAST_PAGES + 1) * PAGE_SIZE;

let limit: number | undefined;
/** How many mappings the process had when they were counted, and how many of them were guest memory's. */
let counted = 0;
let usedThen = 0;
let used = 0;
/** When to count again, in milliseconds. */
let nextCount = 0;
let ballast: number | undefined;

/** How many mappings are left to everything that is not guest memory, where the kernel allows `limit`. */
export function keptBack(limit: number): number {
  return Math.min(KEPT_BACK, Math.floor(limit / 4));
}

/** Takes the measure of the process. Called before the first reservation. */
export function measureBudget(): void {
  if (limit !== undefined) return;
  takeBallast();
  limit = readNumberFile("/proc/sys/vm/max_map_count") ?? DEFAULT_LIMIT;
  count();
}

function count(): void {
  const before = performance.now();
  counted = countLines("/proc/self/maps") ?? DEFAULT_COUNT + used;
  // What is noted may be more than there is: neighbours that continue each other are one mapping to the kernel.
  usedThen = Math.min(used, counted);
  const now = performance.now();
  nextCount = now + Math.max(SHORTEST_PAUSE, PAUSES * (now - before));
}

/** Makes some kernel mappings available for undoing a request, until disposed. */
export function makeRoom(): Disposable {
  const given = ballast;
  ballast = undefined;
  if (given !== undefined) releaseAddresses(given, BALLAST_LENGTH);
  return { [Symbol.dispose]: () => takeBallast() };
}

function takeBallast(): void {
  if (ballast !== undefined) return;
  try {
    ballast = reserveAddresses(BALLAST_LENGTH, PAGE_SIZE);
  } catch {
    return; // No room even for that: the next undo has to do without.
  }
  const { sys } = libc();
  for (let i = 0; i < BALLAST_PAGES; i++) {
    // SAFETY: inside the range reserved above.
    if (sys.mprotect(BigInt(ballast + (2 * i + 1) * PAGE_SIZE), BigInt(PAGE_SIZE), PROT_READ) === -1) return;
  }
}

/** Says that one reservation now uses `change` mappings more than it did, or fewer. */
export function noteUse(change: number): void {
  used += change;
}

/** How many more mappings may be made; 0 where the budget is used up. */
export function spareMappings(): number {
  measureBudget();
  const most = limit ?? DEFAULT_LIMIT;
  if (spareOf(most) < most * SCARCE && performance.now() >= nextCount) count();
  // Before guest memory has to do without, what was only kept from being used goes.
  while (spareOf(most) < RESERVE && giveBackOldest(KEPT_RETIRED)) count();
  return Math.max(0, spareOf(most));
}

function spareOf(most: number): number {
  return most - keptBack(most) - counted - (used - usedThen);
}
