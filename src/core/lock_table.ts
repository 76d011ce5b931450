import { RangeMap } from "./range_map.ts";
import type { Span } from "./span.ts";

const isSame = (a: number, b: number) => a === b;

/** How often each address is locked. Adding and removing cost O(log n + how finely the range is locked already). */
export class LockTable {
  #counts: RangeMap<number> = RangeMap.EMPTY;

  /** Whether nothing is locked. */
  get isEmpty(): boolean {
    return this.#counts.size === 0;
  }

  /** Locks `[start, end)` once more. */
  add(start: number, end: number): void {
    this.#change(start, end, 1);
  }

  /** Takes one lock of `[start, end)` away again. */
  remove(start: number, end: number): void {
    this.#change(start, end, -1);
  }

  /** The first locked span that overlaps `[start, end)`. */
  conflict(start: number, end: number): Span | undefined {
    return this.#counts.overlaps(start, end) ? this.#counts.overlapping(start, end)[0] : undefined;
  }

  /** The locked spans with how often each is locked, in order. */
  entries(): { start: number; end: number; value: number }[] {
    return this.#counts.overlapping(0, Infinity);
  }

  #change(start: number, end: number, by: 1 | -1): void {
    const pieces: { start: number; end: number; value: number }[] = [];
    const push = (from: number, to: number, value: number) => {
      if (from >= to || value === 0) return;
      const last = pieces.at(-1);
      if (last !== undefined && last.end === from && last.value === value) last.end = to;
      else pieces.push({ start: from, end: to, value });
    };
    let cursor = start;
    for (const entry of this.#counts.overlapping(start, end)) {
      const from = Math.max(entry.start, start);
      const to = Math.min(entry.end, end);
      push(cursor, from, by);
      push(from, to, entry.value + by);
      cursor = to;
    }
    push(cursor, end, by);
    this.#counts = this.#counts.paint(start, end, pieces, isSame);
  }
}
