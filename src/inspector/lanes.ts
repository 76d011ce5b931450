/**
 * What the picture of a memory map consists of: lanes of pieces, in one window of an axis.
 *
 * @module
 */

import type { Span } from "../core/span.ts";
import type { Layers } from "../core/map/layers.ts";
import type { Mapping, Region, RegionState } from "../core/map/region.ts";
import type { State } from "../core/map/state.ts";
import { RangeMap } from "../core/range_map.ts";
import { labelOf } from "../memory/file_backing.ts";
import { nameOf } from "../requests/carry_out.ts";
import type { Window } from "./axis.ts";
import { seenIn, stretchBefore } from "./walk.ts";

/** What a piece stands for. `many`: more than can be told apart, zoom in. */
export type Look =
  | "writable"
  | "read-only"
  | "hidden"
  | "hole"
  | "unmapped"
  | "slot-rw"
  | "slot-ro"
  | "dma"
  | "locked"
  | "lost"
  | "difference"
  | "client"
  | "heat"
  | "many";

/** A piece of a lane: first GPA, one past the last, what it stands for, what to write into it, the region it is of. */
export type LanePiece = readonly [start: number, end: number, look: Look, text: string, region: number | null];

/** A strip of the picture. */
export interface Lane {
  /** The same lane of another window or moment has the same key. */
  readonly key: string;
  /** What kind of lane it is. */
  readonly kind:
    | "seen"
    | "was"
    | "differences"
    | "layer"
    | "devices"
    | "partition"
    | "dma"
    | "locks"
    | "client"
    | "heat"
    | "lost";
  /** What to call it. */
  readonly label: string;
  /** In order, disjoint. */
  readonly pieces: readonly LanePiece[];
}

/** How many regions on one range are drawn below each other. */
const MOST_ROWS = 8;

/** The lanes that a state says all about. `devices` are its regions of that type. */
export function lanesOf(state: State, window: Window, devices: readonly Region[]): Lane[] {
  return [
    { key: "seen", kind: "seen", label: "guest sees", pieces: seenPieces(state, window) },
    ...layerLanes(state, window),
    ...(devices.length === 0 ? [] : [deviceLane(state, window, devices)]),
    ...state.partitions.map(({ id, target, offset, slots }) => ({
      key: `partition ${id}`,
      kind: "partition" as const,
      label: `${nameOf(target, "partition")}${offset === 0 ? "" : ` +0x${offset.toString(16)}`}`,
      pieces: bookPieces(slots.held, window, ({ writable }) => writable ? ["slot-rw", "rw"] : ["slot-ro", "ro"]),
    })),
    ...state.dmaTargets.map(({ id, target, mappings }) => ({
      key: `dma ${id}`,
      kind: "dma" as const,
      label: nameOf(target, "DMA target"),
      pieces: bookPieces(mappings.held, window, () => ["dma", "dma"]),
    })),
    ...(state.damage.outOfStep.isEmpty ? [] : [{
      key: "lost",
      kind: "lost" as const,
      label: "out of step",
      pieces: bookPieces(state.damage.outOfStep, window, () => ["lost", "?"]),
    }]),
  ];
}

/** A lane of spans that all look alike and may overlap. */
export function spanLane(lane: Omit<Lane, "pieces">, spans: readonly Span[], look: Look, window: Window): Lane {
  let map: RangeMap<true> = RangeMap.EMPTY;
  for (const { start, end } of spans) map = map.set(start, end, true);
  return { ...lane, pieces: bookPieces(map, window, () => [look, ""]) };
}

/** The lanes of one layer: more than one where regions share a range. */
function* layerLanes(state: State, window: Window): Generator<Lane> {
  for (const { priority, rows } of layerRows(state.layers, window)) {
    for (const [i, regions] of rows.entries()) {
      const pieces: LanePiece[] = [];
      for (const [start, end, region] of regions) {
        if (region === null) push(pieces, [start, end, "many", "", null]);
        else regionPieces(pieces, state, region, start, end, window);
      }
      pieces.reverse();
      const label = `${priority}${rows.length > 1 ? ` · ${i + 1}` : ""}`;
      yield { key: `layer ${priority} ${i}`, kind: "layer", label, pieces };
    }
  }
}

type Placed = [start: number, end: number, region: Region | null];

/** Which regions are drawn in which row, from the right to the left; `null` for more than can be told apart. */
function* layerRows(layers: Layers, window: Window): Generator<{ priority: number; rows: Placed[][] }> {
  for (const { priority, groups } of layers) {
    const rows: Placed[][] = [[]];
    for (const { start, end, value: group, many } of seenIn(groups, window)) {
      const members = group instanceof RangeMap ? [...group].map(({ value }) => value) : [group];
      if (many) rows[0]?.push([start, end, null]);
      else members.slice(0, MOST_ROWS).forEach((region, i) => place(rows[i] ??= [], start, end, region));
    }
    yield { priority, rows };
  }
}

/** Adds a region to the left of the others, or to itself where others of its priority overlap it in part. */
function place(row: Placed[], start: number, end: number, region: Region): void {
  const right = row.at(-1);
  if (right?.[2] === region && right[0] === end) right[0] = start;
  else row.push([start, end, region]);
}

/** Adds a piece to the left of the others. Neighbours that cannot be told apart are one. */
function push(pieces: LanePiece[], piece: LanePiece): void {
  const right = pieces.at(-1);
  const isOne = piece[2] === "many" && right?.[2] === "many" && right[0] === piece[1] && right[4] === piece[4];
  if (isOne) pieces[pieces.length - 1] = [piece[0], right[1], "many", "", right[4]];
  else pieces.push(piece);
}

/** What one region shows and hides in `[from, to)`, from the right to the left. */
function regionPieces(
  pieces: LanePiece[],
  state: State,
  region: Region,
  from: number,
  to: number,
  window: Window,
): void {
  const own = state.regions.get(region);
  if (own === undefined) return;
  const { id, name } = region;
  if (own.params === null) return push(pieces, [from, to, "unmapped", name, id]);
  let at = to;
  while (at > from) {
    const shown = stretchBefore(state.visible, from, at);
    const mapped = stretchBefore(own.mappings, from, at);
    const start = Math.max(shown.start, mapped.start);
    const isShown = shown.value === region;
    const look = isShown ? lookOf(own, mapped.value) : "hidden";
    if (window.isWide(start, at) || start === from && at === to) {
      push(pieces, [start, at, look, isShown ? textOf(region, mapped.value) : name, id]);
      at = start;
      continue;
    }
    const column = Math.max(from, window.columnBefore(at));
    push(pieces, column < start ? [column, at, "many", "", id] : [start, at, look, name, id]);
    at = Math.min(start, column);
  }
}

/** What the guest sees, cut where anything about it changes. */
function seenPieces(state: State, window: Window): readonly LanePiece[] {
  const pieces: LanePiece[] = [];
  for (const { start, end, value: region, many } of seenIn(state.visible, window)) {
    if (many) push(pieces, [start, end, "many", "", null]);
    else regionPieces(pieces, state, region, start, end, window);
  }
  return pieces.reverse();
}

/** Devices, one after the other where they overlap: the older one is drawn over the newer. */
function deviceLane(state: State, window: Window, devices: readonly Region[]): Lane {
  let map: RangeMap<Region> = RangeMap.EMPTY;
  for (const region of devices.toReversed()) {
    if (region.range.end <= window.start || region.range.start >= window.end) continue;
    map = map.set(region.range.start, region.range.end, region);
  }
  const pieces: LanePiece[] = [];
  for (const { start, end, value: region, many } of seenIn(map, window)) {
    if (many) push(pieces, [start, end, "many", "", null]);
    else regionPieces(pieces, state, region, start, end, window);
  }
  return { key: "devices", kind: "devices", label: "devices", pieces: pieces.reverse() };
}

function bookPieces<V>(
  book: RangeMap<V>,
  window: Window,
  describe: (value: V) => readonly [Look, string],
): readonly LanePiece[] {
  const pieces: LanePiece[] = [];
  for (const { start, end, value, many } of seenIn(book, window)) {
    const [look, text] = describe(value);
    // Slots that touch are two all the same: not joined.
    if (many) push(pieces, [start, end, "many", "", null]);
    else pieces.push([start, end, look, text, null]);
  }
  return pieces.reverse();
}

/** How a mapping of a region that is seen looks. */
export function lookOf({ params }: RegionState, mapping: Mapping | null): Look {
  if (params === null) return "unmapped";
  if (mapping === null) return "hole";
  return params.writable && mapping.writable ? "writable" : "read-only";
}

function textOf({ name }: Region, mapping: Mapping | null): string {
  if (mapping === null) return name;
  const file = fileNameOf(mapping) ?? "private";
  return file === name ? name : `${name} · ${file}`;
}

/** The name of the file behind a mapping, without its folders; `null` for private memory. */
function fileNameOf(mapping: Mapping): string | null {
  const label = labelOf(mapping);
  return label?.match(/"(?:.*\/)?([^"]+)"/)?.[1] ?? label ?? null;
}
