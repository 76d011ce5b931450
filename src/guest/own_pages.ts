/**
 * Where the memory of RAM regions is that is in no file: the pages of copy-on-write mappings that were written, and
 * anonymous memory. It shows, or it is parked.
 *
 * @module
 */

import { dropPages, privatePages, writeBack } from "../../ffi/host/private_pages.ts";
import type { Mapping } from "../core/map/region.ts";
import type { Span } from "../core/span.ts";
import type { RegionHandle } from "../regions/region_handle.ts";
import type { RegionInternals } from "../regions/region_internals.ts";

/** A stretch of such memory: GPAs, and the host address of the first. */
export interface OwnPlace extends Span {
  readonly mapping: Mapping;
  readonly address: number;
  /** Whether the guest sees it there. */
  readonly shows: boolean;
}

/** All places of a region's memory that is in no file. */
export function ownPlaces(internals: RegionInternals, region: RegionHandle): OwnPlace[] {
  const places: OwnPlace[] = [];
  for (const { start, end, value: mapping } of internals.mappings(region)) {
    if (mapping.own === null) continue;
    for (const piece of internals.pieces(start, end)) {
      if (piece.value.mapping !== mapping) continue;
      places.push({
        start: piece.start,
        end: piece.end,
        mapping,
        address: internals.base + piece.start,
        shows: true,
      });
    }
    for (const parked of internals.parked(mapping, start, end)) places.push({ ...parked, mapping, shows: false });
  }
  return places;
}

/** The pages of a place that are its own, as GPAs with the host address of the first, in runs. */
export function ownPages({ start, end, address }: OwnPlace): (Span & { readonly address: number })[] {
  return privatePages(address, end - start).map((run) => ({
    start: start + run.start - address,
    end: start + run.end - address,
    address: run.start,
  }));
}

/** Writes the own pages of a place into a file in which GPA x is at `x + delta`. */
export function copyOwnPages(place: OwnPlace, fd: number, delta: number): void {
  for (const { start, end, address } of ownPages(place)) writeBack(address, end - start, fd, start + delta);
}

/** Gives up the own pages of a place, which then shows its file again, or zeros. `onDrop` is told of each run beforehand. */
export function dropOwnPages(place: OwnPlace, onDrop: (run: Span) => void): void {
  for (const { start, end, address } of ownPages(place)) {
    onDrop({ start, end });
    dropPages(address, end - start);
  }
}
