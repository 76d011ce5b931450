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
 * Why it is safe: it reads two files of /proc and counts.
 *
 * @module
 */

import { countLines, readNumberFile } from "./proc_file.ts";

/** Mappings left to everything that is not guest memory. A Deno process uses some hundreds; a busy one, a few more. */
export const KEPT_BACK = 4096;

const DEFAULT_LIMIT = 65530;
const DEFAULT_BASELINE = 1024;

let budget: number | undefined;
let used = 0;

/** Takes the measure of the process. Called before the first reservation, so that no guest memory is counted. */
export function measureBudget(): void {
  budget ??= (readNumberFile("/proc/sys/vm/max_map_count") ?? DEFAULT_LIMIT) -
    (countLines("/proc/self/maps") ?? DEFAULT_BASELINE) - KEPT_BACK;
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
