/**
 * What backs each address: the mappings of visible regions, cut to where those are visible.
 *
 * Worked out when asked for and never stored, so that a change of the memory map is an edit of its region alone.
 *
 * @module
 */

import type { Region } from "./overlap.ts";
import type { Entry, RangeMap } from "../range_map.ts";
import { gaps } from "../span.ts";
import type { MapParams, Mapping, State } from "./state.ts";

/** A mapping as it is shown. */
export interface Piece {
  /** What backs it. */
  readonly mapping: Mapping;
  /** The region that shows it. */
  readonly region: Region;
  /** How the region is mapped. */
  readonly params: MapParams;
  /** Region writable and mapping writable. */
  readonly writable: boolean;
}

/** A part of a mapped region that wins its addresses, holes included. */
export interface Fragment {
  /** The first GPA. */
  readonly start: number;
  /** One past the last. */
  readonly end: number;
  /** The region that shows there. */
  readonly region: Region;
  /** How it is mapped. */
  readonly params: MapParams;
  /** What backs it, all of the region's. */
  readonly mappings: RangeMap<Mapping>;
}

/** The fragments in `[start, end)`, by default all, cut to it, in order. */
export function fragmentsIn(state: State, start: number = 0, end: number = Number.MAX_SAFE_INTEGER): Fragment[] {
  const fragments: Fragment[] = [];
  for (const entry of state.visible.overlapping(start, end)) {
    const region = entry.value;
    const owner = state.regions.get(region);
    if (owner === undefined || owner.params === null) continue;
    fragments.push({
      start: entry.start < start ? start : entry.start,
      end: entry.end > end ? end : entry.end,
      region,
      params: owner.params,
      mappings: owner.mappings,
    });
  }
  return fragments;
}

/** The pieces of `fragments`, each cut to its own. */
export function piecesOf(fragments: readonly Fragment[]): readonly Entry<Piece>[] {
  const [only] = fragments;
  return only !== undefined && fragments.length === 1 ? piecesOfOne(only) : fragments.flatMap(piecesOfOne);
}

function piecesOfOne({ start, end, region, params, mappings }: Fragment): Entry<Piece>[] {
  return mappings.overlapping(start, end).map(({ start: first, end: last, value: mapping }) => ({
    start: first < start ? start : first,
    end: last > end ? end : last,
    value: { mapping, region, params, writable: params.writable && mapping.writable },
  }));
}

/** What backs `[start, end)`, by default everything there is, cut to it, in order. Holes are left out. */
export function piecesIn(
  state: State,
  start: number = 0,
  end: number = Number.MAX_SAFE_INTEGER,
): readonly Entry<Piece>[] {
  return piecesOf(fragmentsIn(state, start, end));
}

/** The parts of `entries` whose host addresses are not lost for good. */
export function unpoisoned<V>(entries: readonly Entry<V>[], { poisoned }: State): readonly Entry<V>[] {
  if (poisoned.size === 0) return entries;
  return entries.flatMap(({ start, end, value }) =>
    gaps(start, end, poisoned.overlapping(start, end)).map((gap) => ({ ...gap, value }))
  );
}

/** What backs the byte at `gpa`, as far as it reaches in both directions. */
export function pieceAt(state: State, gpa: number): Entry<Piece> | undefined {
  const shown = state.visible.entryAt(gpa);
  if (shown === undefined) return undefined;
  const owner = state.regions.get(shown.value);
  if (owner === undefined || owner.params === null) return undefined;
  const entry = owner.mappings.entryAt(gpa);
  if (entry === undefined) return undefined;
  const { params } = owner;
  const mapping = entry.value;
  return {
    start: entry.start < shown.start ? shown.start : entry.start,
    end: entry.end > shown.end ? shown.end : entry.end,
    value: { mapping, region: shown.value, params, writable: params.writable && mapping.writable },
  };
}
