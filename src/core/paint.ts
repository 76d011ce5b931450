import type { Entry, RangeMap } from "./range_map.ts";

/**
 * `map` with `[start, end)` replaced by `pieces`, which lie inside it, in order and disjoint; where one continues a
 * neighbour with the same value, the two become one entry.
 */
export function paint<V>(
  map: RangeMap<V>,
  start: number,
  end: number,
  pieces: readonly Entry<V>[],
  same: (a: V, b: V) => boolean,
): RangeMap<V> {
  const first = pieces[0];
  const last = pieces.at(-1);
  if (first === undefined || last === undefined) return map.delete(start, end);
  const left = first.start === start && start > 0 ? map.entryAt(start - 1) : undefined;
  const right = last.end === end ? map.entryAt(end) : undefined;
  const from = left !== undefined && same(left.value, first.value) ? left.start : start;
  const to = right !== undefined && same(right.value, last.value) ? right.end : end;
  if (from === start && to === end) return map.replace(start, end, pieces);
  const joined = pieces.map((piece, i) => ({
    start: i === 0 && from < start ? from : piece.start,
    end: i === pieces.length - 1 && to > end ? to : piece.end,
    value: piece.value,
  }));
  return map.replace(from, to, joined);
}
