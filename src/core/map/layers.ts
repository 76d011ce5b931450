/**
 * Regions by priority, for finding who is beneath whom.
 *
 * ```
 *   priority 2        [ C ]                 one RangeMap per priority in use, highest first
 *   priority 1   [ B     ]     [ B' ]
 *   priority 0 [ A  [ A A'' ]  A'' ]        where regions of one priority overlap, a group: the oldest comes first
 * ```
 *
 * @module
 */

import { type Entry, RangeMap } from "../range_map.ts";
import type { Region } from "./region.ts";
import { clip, type Span } from "../span.ts";

/** The regions of one priority at one place: most often a single one, else by age. */
type Group = Region | RangeMap<Region>;

/** Who of a group wins. */
export function oldest(group: Group): Region {
  // A map in a group is never empty.
  return group instanceof RangeMap ? group.first()!.value : group;
}

function joined(group: Group, region: Region): Group {
  const { age } = region;
  if (group === region) return group;
  if (group instanceof RangeMap) return group.get(age) === region ? group : group.set(age, age + 1, region);
  return RangeMap.of(group.age, group.age + 1, group).set(age, age + 1, region);
}

function groupWithout(group: Group, region: Region): Group | undefined {
  if (!(group instanceof RangeMap)) return group === region ? undefined : group;
  if (group.get(region.age) !== region) return group;
  const left = group.delete(region.age, region.age + 1);
  return left.size > 1 ? left : left.first()?.value;
}

/** The regions of one priority. */
export interface Layer {
  /** Which. */
  readonly priority: number;
  /** Which of them are where. */
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
  const { groups } = layer;
  const there = groups.throughout(start, end);
  if (there === region) return layers;
  const next = there === null ? groups.set(start, end, region) : joinedAll(groups, region);
  return next === groups ? layers : layers.with(index, { priority, groups: next });
}

/** The groups with `region` in all of those in its range. */
function joinedAll(groups: RangeMap<Group>, region: Region): RangeMap<Group> {
  const { start, end } = region.range;
  let next = groups;
  let at = start;
  for (const entry of groups.overlapping(start, end)) {
    const taken = clip(entry, start, end);
    if (at < taken.start) next = next.set(at, taken.start, region);
    const group = joined(entry.value, region);
    if (group !== entry.value) next = next.set(taken.start, taken.end, group);
    at = taken.end;
  }
  return at < end ? next.set(at, end, region) : next;
}

/** All regions in `layers`, oldest first. */
export function regionsIn(layers: Layers): Region[] {
  const regions = new Set<Region>();
  for (const { groups } of layers) {
    for (const { value: group } of groups) {
      if (group instanceof RangeMap) { for (const { value } of group) regions.add(value); }
      else regions.add(group);
    }
  }
  return [...regions].sort((a, b) => a.id - b.id);
}

/** The layers without `region`. */
export function removeFromLayers(layers: Layers, region: Region): Layers {
  const { priority, range: { start, end } } = region;
  const index = layerIndex(layers, priority);
  const layer = layers[index];
  if (layer?.priority !== priority) return layers;
  let { groups } = layer;
  if (groups.throughout(start, end) === region) {
    groups = groups.delete(start, end);
  } else {
    for (const entry of layer.groups.overlapping(start, end)) {
      const left = groupWithout(entry.value, region);
      if (left === entry.value) continue;
      groups = left === undefined ? groups.delete(entry.start, entry.end) : groups.set(entry.start, entry.end, left);
    }
  }
  if (groups === layer.groups) return layers;
  return groups.isEmpty ? layers.toSpliced(index, 1) : layers.with(index, { priority, groups });
}

/** The one winner of all of `[start, end)` among layers of at most `priority`, `null` for none; `undefined` for several. */
export function winnerThroughout(
  layers: Layers,
  priority: number,
  start: number,
  end: number,
): Region | null | undefined {
  for (const layer of layers) {
    if (layer.priority > priority) continue;
    const group = layer.groups.throughout(start, end);
    if (group === undefined) return undefined;
    if (group !== null) return oldest(group);
  }
  return null;
}

/** The winners of `[start, end)` among layers of at most `priority`; nothing where there is no region. */
export function winners(layers: Layers, priority: number, start: number, end: number): Entry<Region>[] {
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
  return merged(won.sort((a, b) => a.start - b.start));
}

/** The same, neighbours of one region as one. */
function merged(won: readonly Entry<Region>[]): Entry<Region>[] {
  const result: Entry<Region>[] = [];
  for (const entry of won) {
    const last = result.at(-1);
    if (last === undefined || last.end !== entry.start || last.value !== entry.value) result.push(entry);
    else result[result.length - 1] = { start: last.start, end: entry.end, value: last.value };
  }
  return result;
}
