/**
 * Walks through range maps from the right to the left, no further than a picture can show.
 *
 * @module
 */

import type { RangeMap } from "../core/range_map.ts";
import type { Window } from "./axis.ts";

/** One stretch of addresses, and what is there: `null` for nothing. */
export interface Stretch<V> {
  readonly start: number;
  readonly value: V | null;
}

/** The stretch of `map` that holds the byte before `end`, as far to the left as `start` at most. */
export function stretchBefore<V>(map: RangeMap<V>, start: number, end: number): Stretch<V> {
  const entry = map.lastBelow(end);
  if (entry === undefined || entry.end <= start) return { start, value: null };
  if (entry.end < end) return { start: entry.end, value: null };
  return { start: Math.max(entry.start, start), value: entry.value };
}

/** Something from `start` to `end`; `many` where there is more than can be told apart. */
export interface Seen<V> {
  readonly start: number;
  readonly end: number;
  readonly value: V;
  readonly many: boolean;
}

/**
 * What `map` has in `window`, from the right to the left, cut to it. What is narrower than a column is given by a whole
 * column, and `many` says whether it shares that with others. Takes time by columns, not by entries.
 */
export function* seenIn<V>(map: RangeMap<V>, window: Window): Generator<Seen<V>> {
  let at = window.end;
  while (at > window.start) {
    const entry = map.lastBelow(at);
    if (entry === undefined || entry.end <= window.start) return;
    const start = Math.max(entry.start, window.start);
    const end = Math.min(entry.end, at);
    if (window.isWide(start, end)) {
      yield { start, end, value: entry.value, many: false };
      at = start;
      continue;
    }
    const column = window.columnBefore(end);
    const next = map.lastBelow(entry.start);
    const many = next !== undefined && next.end > column;
    yield { start: many ? column : start, end, value: entry.value, many };
    at = Math.min(start, column);
  }
}
