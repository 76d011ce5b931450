import { checkSignal } from "../core/abort.ts";
import type { MemoryRange } from "../core/memory_range.ts";

/** How `GuestMemoryManager.prefault` works. */
export interface PrefaultOptions {
  /** Ends it early. What is in by then stays in. */
  readonly signal?: AbortSignal;
  /** Is told how far it is, in bytes of RAM. Called after each slice, the last time with `done === total`. */
  onProgress?(done: number, total: number): void;
}

/** The least that is brought in without a pause, in bytes: a large page. */
const MIN_SLICE = 2 ** 21;
const MAX_SLICE = 2 ** 26;
/** How long the event loop should have to wait, in milliseconds. */
const PAUSE = 8;

/** Calls `populate` for slices of `ranges`, and lets the event loop run in between. */
export async function prefault(
  ranges: readonly MemoryRange[],
  populate: (start: number, end: number) => void,
  options: PrefaultOptions,
): Promise<void> {
  const { signal } = options;
  const total = ranges.reduce((sum, { length }) => sum + length, 0);
  let done = 0;
  let slice = MIN_SLICE;
  checkSignal(signal);
  for (const { start, end } of ranges) {
    for (let at = start; at < end;) {
      // Slices end at multiples of their size, so that none cuts a large page.
      const stop = Math.min(end, (Math.floor(at / slice) + 1) * slice);
      const before = performance.now();
      populate(at, stop);
      const took = performance.now() - before;
      if (took < PAUSE / 2) slice = Math.min(slice * 2, MAX_SLICE);
      else if (took > PAUSE) slice = Math.max(slice / 2, MIN_SLICE);
      done += stop - at;
      at = stop;
      options.onProgress?.(done, total);
      if (done < total) await nextTurn();
      signal?.throwIfAborted();
    }
  }
}

function nextTurn(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 0));
}
