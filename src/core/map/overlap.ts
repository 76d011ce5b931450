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
 * Regions of one priority are disjoint or share one range; among the latter the oldest wins, so a layer maps a range
 * to the group of regions on it.
 *
 * @module
 */

import { RegionOverlapError } from "../errors.ts";
import { paint } from "../paint.ts";
import { type Entry, RangeMap } from "../range_map.ts";
import { clip, type Span } from "../span.ts";
import type { Region } from "./region.ts";

/** `"nested"`: of two overlapping regions the higher one contains the lower. `"any"`: no such rule. */
export type OverlapRule = "nested" | "any";

/** Regions of one priority on one range: most often a single one, else by id, so that the oldest comes first. */
type Group = Region | RangeMap<Region>;

function oldest(group: Group): Region {
  // A map in a group is never empty.
  return group instanceof RangeMap ? group.first()!.value : group;
}

function joined(group: Group | undefined, region: Region): Group {
  if (group === undefined) return region;
  const { id } = region;
  if (group === region) return group;
  if (group instanceof RangeMap) return group.get(id) === region ? group : group.set(id, id + 1, region);
  return RangeMap.of(group.id, group.id + 1, group).set(id, id + 1, region);
}

function groupWithout(group: Group, { id }: Region): Group | undefined {
  if (!(group instanceof RangeMap)) return group.id === id ? undefined : group;
  const left = group.delete(id, id + 1);
  return left.size > 1 ? left : left.first()?.value;
}

interface Layer {
  readonly priority: number;
  /** Regions by range. */
  readonly groups: RangeMap<Group>;
}

/** Regions by priority, highest first. Immutable. */
export type Layers = readonly Layer[];

function layerIndex(layers: Layers, priority: number): number {
  let index = 0;
  while (index < layers.length && layers[index]!.priority > priority) index++;
  return index;
}

/** The layers with `region` in them. */
export function addToLayers(layers: Layers, region: Region): Layers {
  const { priority, range: { start, end } } = region;
  const index = layerIndex(layers, priority);
  const layer = layers[index];
  if (layer?.priority !== priority) {
    return layers.toSpliced(index, 0, { priority, groups: RangeMap.of<Group>(start, end, region) });
  }
  const old = layer.groups.get(start);
  const group = joined(old, region);
  return group === old ? layers : layers.with(index, { priority, groups: layer.groups.set(start, end, group) });
}

/** All regions in `layers`, oldest first. */
export function regionsIn(layers: Layers): Region[] {
  const regions: Region[] = [];
  for (const { groups } of layers) {
    for (const { value: group } of groups) {
      if (group instanceof RangeMap) { for (const { value } of group) regions.push(value); }
      else regions.push(group);
    }
  }
  return regions.sort((a, b) => a.id - b.id);
}

/** The layers without `region`. */
export function removeFromLayers(layers: Layers, region: Region): Layers {
  const { priority, range: { start, end } } = region;
  const index = layerIndex(layers, priority);
  const layer = layers[index];
  const group = layer?.groups.get(start);
  if (layer === undefined || group === undefined) return layers;
  const left = groupWithout(group, region);
  if (left === group) return layers;
  const groups = left === undefined ? layer.groups.delete(start, end) : layer.groups.set(start, end, left);
  return groups.isEmpty ? layers.toSpliced(index, 1) : layers.with(index, { priority, groups });
}

/**
 * Throws unless `region` may join `layers` under `rule`.
 *
 * Regions of one layer are disjoint and in order, so only the first and the last of those in the way can stick out.
 *
 * @throws {RegionOverlapError} Naming both regions.
 */
export function checkOverlap(layers: Layers, region: Region, rule: OverlapRule): void {
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
      } else if (rule === "nested") {
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
  return a.priority > b.priority || (a.priority === b.priority && a.id < b.id);
}

const isSame = (a: Region, b: Region) => a === b;

/** The one winner of all of `[start, end)` among layers of at most `priority`, `null` for none; `undefined` for several. */
function winnerThroughout(layers: Layers, priority: number, start: number, end: number): Region | null | undefined {
  for (const layer of layers) {
    if (layer.priority > priority) continue;
    const group = layer.groups.throughout(start, end);
    if (group === undefined) return undefined;
    if (group !== null) return oldest(group);
  }
  return null;
}

/** The winners of `[start, end)` among layers of at most `priority`; nothing where there is no region. */
function winners(layers: Layers, priority: number, start: number, end: number): Entry<Region>[] {
  const won: Entry<Region>[] = [];
  let open: Span[] = [{ start, end }];
  for (const layer of layers) {
    if (layer.priority > priority) continue;
    if (open.length === 0) break;
    const left: Span[] = [];
    for (const gap of open) {
      if (!layer.groups.overlaps(gap.start, gap.end)) {
        left.push(gap);
        continue;
      }
      let cursor = gap.start;
      for (const entry of layer.groups.overlapping(gap.start, gap.end)) {
        const taken = clip(entry, gap.start, gap.end);
        if (cursor < taken.start) left.push({ start: cursor, end: taken.start });
        won.push({ start: taken.start, end: taken.end, value: oldest(entry.value) });
        cursor = taken.end;
      }
      if (cursor < gap.end) left.push({ start: cursor, end: gap.end });
    }
    open = left;
  }
  return won.sort((a, b) => a.start - b.start);
}

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
