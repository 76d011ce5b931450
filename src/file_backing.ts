import type { Mappable } from "../ffi/mappable.ts";
import type { Region } from "./core/overlap.ts";
import type { RangeMap } from "./core/range_map.ts";
import { normalize, type Span } from "./core/span.ts";
import type { Backing, Mapping, State } from "./core/state.ts";

/**
 * The manager's own handle of the file behind a mapping, shared by all pieces that the mapping has been cut into.
 *
 * The core passes it through untouched. `pieces` counts how many entries of how many regions refer to it; the last
 * one that goes closes the handle.
 */
export class FileBacking implements Backing {
  readonly mappable: Mappable;
  readonly file: object;
  readonly pageSize: number;
  readonly mayFailLate: boolean;
  pieces = 0;

  /** Takes over `mappable`. */
  constructor(mappable: Mappable) {
    this.mappable = mappable;
    this.file = mappable.file;
    this.pageSize = mappable.pageSize;
    this.mayFailLate = mappable.mayFailLate;
  }
}

/** The file behind a mapping, `null` for private memory. */
export function mappableOf(mapping: Mapping): Mappable | null {
  // SAFETY: the manager puts nothing but its own FileBacking into a state.
  return mapping.backing === null ? null : (mapping.backing as FileBacking).mappable;
}

/** Counts `by` more pieces of `mapping`, and closes its file with the last one. */
export function countPieces(mapping: Mapping, by: 1 | -1): void {
  if (mapping.backing === null) return;
  const backing = mapping.backing as FileBacking;
  backing.pieces += by;
  if (backing.pieces === 0) backing.mappable[Symbol.dispose]();
}

/** Closes the file of a mapping that no region uses. */
export function closeUnused(mapping: Mapping): void {
  if (mapping.backing === null) return;
  const backing = mapping.backing as FileBacking;
  if (backing.pieces === 0) backing.mappable[Symbol.dispose]();
}

/** Where the mappings of a region were edited, and the mapping that was added there. */
export interface Edit extends Span {
  readonly region: Region;
  readonly added?: Mapping;
}

/** Counts the pieces that came and went between two states, and closes the files whose last piece went. */
export function settleFiles(old: State, next: State, edits: readonly Edit[]): void {
  const [first] = edits;
  if (first === undefined) return;
  if (edits.length === 1) return settleRegion(old, next, first.region, edits);
  for (const [region, own] of Map.groupBy(edits, (edit) => edit.region)) settleRegion(old, next, region, own);
}

function settleRegion(old: State, next: State, region: Region, edits: readonly Edit[]): void {
  const before = old.regions.get(region.id)?.mappings;
  const after = next.regions.get(region.id)?.mappings;
  // An edit cuts the pieces at its ends, so what may have changed is all of the pieces it touched.
  const touched: Span[] = [];
  for (const edit of edits) {
    touched.push(edit);
    if (before === undefined) continue;
    for (const entry of before.overlapping(edit.start, edit.end)) touched.push(entry);
  }
  const spans = normalize(touched);
  for (const { start, end } of spans) countOver(after, start, end, 1);
  for (const { start, end } of spans) countOver(before, start, end, -1);
}

function countOver(mappings: RangeMap<Mapping> | undefined, start: number, end: number, by: 1 | -1): void {
  if (mappings === undefined) return;
  for (const entry of mappings.overlapping(start, end)) countPieces(entry.value, by);
}
