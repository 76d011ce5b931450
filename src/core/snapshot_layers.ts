/**
 * Which snapshot of a chain has the bytes of each page.
 *
 * ```
 *   full      [ A ][ B ]       [ C ]
 *   1st diff       [ b ] zeros
 *   2nd diff                   [ c ]
 *   together  [ 0 ][ 1 ]       [ 2 ]      nothing: zeros
 * ```
 *
 * @module
 */

import { type Entry, RangeMap } from "./range_map.ts";
import type { SnapshotIndex } from "./snapshot_index.ts";

/** Offsets in the memory file -> the place in the chain of the snapshot that has the bytes. What is left out is zeros. */
export type Layers = RangeMap<number>;

/** Lays the snapshots of a chain over each other, the full one first. */
export function layersOf(chain: readonly SnapshotIndex[]): Layers {
  let layers: Layers = RangeMap.EMPTY;
  chain.forEach(({ stored, zeros }, place) => {
    for (const { start, end } of joined(stored)) layers = layers.set(start, end, place);
    for (const { start, end } of zeros) layers = layers.delete(start, end);
  });
  return layers;
}

/** Spans that touch, as one. */
function joined(spans: readonly { readonly start: number; readonly end: number }[]): { start: number; end: number }[] {
  const runs: { start: number; end: number }[] = [];
  for (const { start, end } of spans) {
    const last = runs.at(-1);
    if (last !== undefined && last.end === start) last.end = end;
    else runs.push({ start, end });
  }
  return runs;
}

/** What of a restored memory is mapped from a file, and what is copied because a mapping of its own would be too dear. */
export interface RestorePlan {
  /** What is mapped from a snapshot other than the full one: its bytes, or with `null` fresh zeros. */
  readonly mapped: readonly Entry<number | null>[];
  /** What is copied, or with `null` filled with zeros. */
  readonly copied: readonly Entry<number | null>[];
}

/**
 * How to lay a chain over a mapping of the full snapshot's file, with at most `mappings` mappings besides: the longest
 * runs are mapped, the others copied.
 */
export function restorePlan(chain: readonly SnapshotIndex[], mappings: number): RestorePlan {
  const [full] = chain;
  if (full === undefined || chain.length === 1) return { mapped: [], copied: [] };
  const layers = layersOf(chain);
  const runs: Entry<number | null>[] = [];
  for (const { start, end, value } of layers) {
    if (value > 0) runs.push({ start, end, value });
  }
  for (const { start, end } of joined(full.stored)) {
    let at = start;
    for (const entry of layers.overlapping(start, end)) {
      if (at < entry.start) runs.push({ start: at, end: entry.start, value: null });
      at = Math.max(at, entry.end);
    }
    if (at < end) runs.push({ start: at, end, value: null });
  }
  // Each run that is mapped cuts what is around it, too.
  const longest = runs.toSorted((a, b) => (b.end - b.start) - (a.end - a.start) || a.start - b.start);
  const inOrder = (entries: Entry<number | null>[]) => entries.sort((a, b) => a.start - b.start);
  const count = Math.floor(mappings / 2);
  return { mapped: inOrder(longest.slice(0, count)), copied: inOrder(longest.slice(count)) };
}
