/**
 * What backs each address: the mappings of visible regions, cut to where those are visible.
 *
 * Worked out when asked for and never stored, so that a change of the memory map is an edit of its region alone.
 *
 * @module
 */

import type { Entry } from "../range_map.ts";
import type { Piece } from "./region.ts";
import { Sight } from "./sight.ts";
import type { State } from "./state.ts";

/**
 * What backs `[start, end)`, by default everything there is, cut to it, in order. Left out are holes, and what an undo
 * could not put back.
 */
export function piecesIn(
  state: State,
  start: number = 0,
  end: number = Number.MAX_SAFE_INTEGER,
): readonly Entry<Piece>[] {
  const pieces: Entry<Piece>[] = [];
  const sight = new Sight(state);
  for (let at = start; at < end;) {
    sight.move(at);
    const stop = sight.end < end ? sight.end : end;
    const value = sight.lost ? null : sight.piece();
    if (value !== null) pieces.push({ start: at, end: stop, value });
    at = stop;
  }
  return pieces;
}

/** What backs the byte at `gpa`, as far as it reaches in both directions, whether or not an undo lost it. */
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
