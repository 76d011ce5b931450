/**
 * Who wins each address: priority layers -> visible view.
 *
 * ```
 *   priority 2        [ C ]                 layers: one RangeMap per priority in use, highest first
 *   priority 1   [ B     ]     [ B' ]
 *   priority 0 [          A             ]
 *   visible    [A|B|  C  |A   |  B' |  A]   one RangeMap: the winner of each address
 * ```
 *
 * Of regions of equal priority the oldest wins.
 *
 * @module
 */

import { RegionOverlapError } from "../errors.ts";
import { paint } from "../paint.ts";
import type { RangeMap } from "../range_map.ts";
import type { Span } from "../span.ts";
import { addToLayers, type Layers, oldest, removeFromLayers, winners, winnerThroughout } from "./layers.ts";
import type { Region } from "./region.ts";

/** `"nested"`: of two overlapping regions the higher one contains the lower. `"any"`: no such rule. */
export type OverlapRule = "nested" | "any";

/**
 * Throws unless `region` may join `layers` under `rule`.
 *
 * Under the nested rule regions of one layer are disjoint or on one range, so only the first and the last of those in the
 * way can stick out.
 *
 * @throws {RegionOverlapError} Naming both regions.
 */
export function checkOverlap(layers: Layers, region: Region, rule: OverlapRule): void {
  if (rule === "any") return;
  const { start, end } = region.range;
  for (const { priority, groups } of layers) {
    const last = groups.lastBelow(end);
    if (last === undefined || last.end <= start) continue;
    const first = groups.entryAt(start) ?? last;
    for (const { start: otherStart, end: otherEnd, value } of [first, last]) {
      const other = oldest(value);
      if (priority === region.priority) {
        if (otherStart !== start || otherEnd !== end) {
          throw new RegionOverlapError(other, region, "regions of equal priority must be disjoint or identical");
        }
      } else {
        const contained = priority > region.priority
          ? otherStart <= start && otherEnd >= end
          : start <= otherStart && end >= otherEnd;
        if (!contained) {
          throw new RegionOverlapError(other, region, "the region of higher priority must contain the other one");
        }
      }
    }
  }
}

/** Whether `a` is shown where both are mapped. */
function beats(a: Region, b: Region): boolean {
  return a.priority > b.priority || (a.priority === b.priority && a.age < b.age);
}

const isSame = (a: Region, b: Region) => a === b;

/** Who is shown where. */
export interface View {
  /** The winner of each address. */
  readonly visible: RangeMap<Region>;
  /**
   * The mapped regions that have been beaten somewhere since they were mapped: nobody else can appear where another
   * region goes. Most regions never are, which spares them the entry here.
   */
  readonly beaten: Layers;
}

/** A view in which one region more or less is mapped. */
export interface Repainted extends View {
  /** Where the winner changed, in order. */
  readonly changed: readonly Span[];
}

/** The view once `region`, which was not mapped, is. */
export function show({ visible, beaten }: View, region: Region): Repainted {
  const { start, end } = region.range;
  const before = visible.throughout(start, end);
  if (before === undefined) return showAmong(visible, beaten, region);
  if (before !== null && beats(before, region)) {
    return { visible, beaten: addToLayers(beaten, region), changed: [] };
  }
  return {
    visible: visible.set(start, end, region),
    beaten: before === null ? beaten : addToLayers(beaten, before),
    changed: [{ start, end }],
  };
}

/** The same where others are shown in parts of its range. */
function showAmong(visible: RangeMap<Region>, beaten: Layers, region: Region): Repainted {
  const { start, end } = region.range;
  let losers = beaten;
  const changed: { start: number; end: number }[] = [];
  let cursor = start;
  const take = (to: number) => {
    if (cursor >= to) return;
    const last = changed.at(-1);
    if (last?.end === cursor) last.end = to;
    else changed.push({ start: cursor, end: to });
  };
  for (const other of visible.overlapping(start, end)) {
    const wins = beats(other.value, region);
    losers = addToLayers(losers, wins ? region : other.value);
    if (!wins) continue;
    take(other.start);
    cursor = other.end;
  }
  take(end);
  let painted = visible;
  for (const span of changed) painted = painted.set(span.start, span.end, region);
  return { visible: painted, beaten: losers, changed };
}

/** The view once `region` is mapped no longer and gives way to the best beneath it. */
export function hide({ visible, beaten }: View, region: Region): Repainted {
  const changed = fragments(visible, region);
  const left = removeFromLayers(beaten, region);
  let painted = visible;
  for (const { start, end } of changed) {
    const only = winnerThroughout(left, region.priority, start, end);
    painted = only === null
      ? painted.delete(start, end)
      : only !== undefined && only.range.start === start && only.range.end === end
      ? painted.set(start, end, only)
      : paint(painted, start, end, winners(left, region.priority, start, end), isSame);
  }
  return { visible: painted, beaten: left, changed };
}

/** Where `region` is shown inside `[start, end)`, by default anywhere. */
export function fragments(
  visible: RangeMap<Region>,
  region: Region,
  start: number = region.range.start,
  end: number = region.range.end,
): Span[] {
  if (visible.throughout(start, end) === region) return [{ start, end }];
  const found: Span[] = [];
  for (const entry of visible.overlapping(start, end)) {
    if (entry.value !== region) continue;
    found.push({ start: Math.max(entry.start, start), end: Math.min(entry.end, end) });
  }
  return found;
}
