/**
 * How many kernel mappings (VMAs) the process may still make.
 *
 * Linux allows a process `vm.max_map_count` of them, 65530 by default, and running into the limit is not an error that
 * can be handled: V8 aborts the process when it cannot map memory. So guest memory stops well before, with an error of
 * its own.
 *
 * The budget is `vm.max_map_count`, less what the process used before it reserved its first guest memory, less
 * `KEPT_BACK` for what V8, Workers and libraries map later. It is shared by all reservations of a thread.
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
import { PROT_READ } from "../os/mman.ts";
import { countLines, readNumberFile } from "../os/proc_file.ts";

/** Mappings left to everything that is not guest memory. A Deno process uses some hundreds; a busy one, a few more. */
export const KEPT_BACK = 4096;

const DEFAULT_LIMIT = 65530;
const DEFAULT_BASELINE = 1024;

/** How many pages of the ballast are protected otherwise than those around them, which makes two mappings of each. */
const BALLAST_PAGES = 8;
const BALLAST_LENGTH = (2 * BALLAST_PAGES + 1) * PAGE_SIZE;

let budget: number | undefined;
let used = 0;
let ballast: number | undefined;

/** Takes the measure of the process. Called before the first reservation, so that no guest memory is counted. */
export function measureBudget(): void {
  if (budget !== undefined) return;
  takeBallast();
  budget = (readNumberFile("/proc/sys/vm/max_map_count") ?? DEFAULT_LIMIT) -
    (countLines("/proc/self/maps") ?? DEFAULT_BASELINE) - KEPT_BACK;
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
  return Math.max(0, (budget ?? 0) - used);
}
