/**
 * What a picture of a memory map consists of, however it is drawn: rows of pieces. Pure functions of plain data.
 *
 * @module
 */

import type { InspectMapping, InspectNode, InspectPartition, InspectRegion } from "../regions/inspect.ts";
import type { Look, Piece, Row } from "./draw_strip.ts";

/** A piece of the row of a region. */
interface LayerPiece extends Piece {
  /** What to write where the guest sees it, the longest first. */
  readonly seenAs: readonly string[];
  /** Whether it is all of a region that is a part of another one, by its name. */
  readonly isPart: boolean;
}

/** Regions that share a row, by address: parts of one thing, such as RAM of which a chipset switches some ranges. */
interface Family {
  readonly name: string;
  readonly priority: number;
  readonly members: readonly InspectRegion[];
}

/** The colours of families: SGR foreground codes, in the order in which they are given out. */
export const HUES: readonly number[] = [36, 33, 35, 32, 34, 31];
const NO_HUE = 37;

const MAX_ROWS = 24;
const MAX_STRIPS = 6;
const NAME_WIDTH = 15;
/** How many neighbours that look the same are drawn as one where they may be. */
const MIN_RUN = 4;

/** The rows of a picture. */
export interface Rows {
  /** The regions, highest priority on top. */
  readonly layers: readonly Row[];
  /** What comes of them: what the guest sees, and what each target was told. */
  readonly results: readonly Row[];
}

/** The rows of the picture of `map`. */
export function rowsOf(map: InspectNode): Rows {
  const families = familiesOf([...map.regions].sort((a, b) => b.priority - a.priority || a.id - b.id));
  const drawn = families.toReversed()
    .map((family, i) => ({ family, pieces: familyPieces(family, HUES[i % HUES.length] ?? NO_HUE) })).reverse();
  const layers = layerRows(drawn);
  const edges = new Set(boundaries(layers));
  const results: Row[] = [
    { label: label("", "guest sees"), pieces: drawn.flatMap(({ pieces }) => seenPieces(pieces)) },
    ...map.partitions.map((partition) => partitionRow(partition, edges)),
    ...map.dmaTargets.map(({ name, ranges }) => spanRow(name, ranges, "dma", edges)),
  ];
  if (map.locks.length > 0) results.push(spanRow("locked", map.locks.map(({ range }) => range), "locked", edges));
  if (map.outOfStep.length > 0) results.push(spanRow("out of step", map.outOfStep, "?", edges));
  return { layers, results };
}

/** Every address at which a piece begins or ends, ascending. */
function boundaries(rows: readonly Row[]): number[] {
  const cuts = new Set<number>();
  for (const { pieces } of rows) for (const { start, end } of pieces) cuts.add(start).add(end);
  return [...cuts].sort((a, b) => a - b);
}

/**
 * The boundaries that a picture shows: all there are, in as many strips as it takes; or, where that would be more than
 * six, as many as fit into one, with equally many left out between any two.
 */
export function axisOf(rows: readonly Row[], perStrip: number): { axis: readonly number[]; crowded: boolean } {
  const cuts = boundaries(rows);
  const crowded = cuts.length - 1 > perStrip * MAX_STRIPS;
  if (!crowded) return { axis: cuts, crowded };
  const axis = Array.from({ length: perStrip + 1 }, (_, i) => cuts[Math.round(i * (cuts.length - 1) / perStrip)] ?? 0);
  return { axis, crowded };
}

/**
 * Puts regions of one priority together that are disjoint and belong together by their names: these are the same, or
 * begin with the name of another one and a space.
 */
function familiesOf(regions: readonly InspectRegion[]): Family[] {
  const names = new Set(regions.map(({ priority, name }) => `${priority} ${name}`));
  const rootOf = ({ priority, name }: InspectRegion) => {
    for (let at = name.indexOf(" "); at >= 0; at = name.indexOf(" ", at + 1)) {
      if (at > 0 && names.has(`${priority} ${name.slice(0, at)}`)) return name.slice(0, at);
    }
    return name;
  };
  return [...Map.groupBy(regions, (region) => `${region.priority} ${rootOf(region)}`).values()].flatMap((members) => {
    const sorted = members.map((region) => ({ region, bounds: parseRange(region.range) }))
      .sort((a, b) => a.bounds[0] - b.bounds[0]);
    const isDisjoint = sorted.every(({ bounds: [start] }, i) => start >= (sorted[i - 1]?.bounds[1] ?? 0));
    if (!isDisjoint) {
      return members.map((region) => ({ name: region.name, priority: region.priority, members: [region] }));
    }
    const [first] = members;
    if (first === undefined) return [];
    return [{ name: rootOf(first), priority: first.priority, members: sorted.map(({ region }) => region) }];
  });
}

/** One row per family of regions, or one per priority where there are many, and a last one for what is still too much. */
function layerRows(drawn: readonly { family: Family; pieces: readonly LayerPiece[] }[]): Row[] {
  if (drawn.length <= MAX_ROWS) {
    return drawn.map(({ family: { priority, name, members }, pieces }) => ({
      label: label(priority, name, members.length > 1 ? ` ×${members.length}` : ""),
      pieces,
    }));
  }
  const layers = [...Map.groupBy(drawn, ({ family }) => family.priority)];
  const rows = layers.slice(0, layers.length > MAX_ROWS ? MAX_ROWS - 1 : MAX_ROWS).map(([priority, families]) => {
    const regions = families.reduce((sum, { family }) => sum + family.members.length, 0);
    return {
      label: label(priority, regions === 1 ? families[0]?.family.name ?? "" : `${count(regions)} regions`),
      pieces: families.flatMap(({ pieces }) => pieces),
    };
  });
  const rest = layers.slice(rows.length);
  if (rest.length === 0) return rows;
  return [...rows, {
    label: label("…", `${count(rest.length)} more layers`),
    pieces: rest.flatMap(([, families]) => families.flatMap(({ pieces }) => pieces)),
  }];
}

function label(priority: number | string, name: string, suffix = ""): string {
  const width = NAME_WIDTH - suffix.length;
  const short = name.length > width ? `${name.slice(0, width - 1)}…` : name;
  return `${String(priority).padStart(3)} ${short}${suffix}`;
}

/** What a family contributes to its row. Parts that are neighbours and in the same state are one, if there are several. */
function familyPieces({ name: root, members }: Family, hue: number): LayerPiece[] {
  const pieces = members.flatMap((region) => regionPieces(region, root, hue));
  return joined(pieces, (a, b) => a.isPart && b.isPart, (run) => ({
    ...run[0]!,
    texts: [`${run.length} regions`, `×${run.length}`],
    seenAs: [root],
  }));
}

/** What one region contributes to the row of its family. */
function regionPieces(region: InspectRegion, root: string, hue: number): LayerPiece[] {
  const [start, end] = parseRange(region.range);
  const { name, mapParams } = region;
  const isPart = name !== root;
  // In a shared row the name says more than the file, which is that of the other parts.
  const names = isPart ? [name, name.slice(root.length + 1)] : [name];
  const piece = (from: number, to: number, look: Look, texts: readonly string[]): LayerPiece => ({
    ...{ start: from, end: to, look, texts: isPart ? names : texts, hue, seenAs: names },
    isPart: isPart && from === start && to === end,
  });
  if (mapParams === null) return [piece(start, end, "unmapped", backing(region.mappings[0]))];
  const shown = region.visible.map(parseRange);
  const pieces: LayerPiece[] = [];
  for (const [mapping, from, to] of withHoles(region.mappings, start, end)) {
    for (const [inside, a, b] of cutBy(shown, from, to)) {
      if (mapping === null) {
        pieces.push({ ...piece(a, b, inside ? "hole" : "hidden", []), texts: [] });
        continue;
      }
      const look = !inside ? "hidden" : mapParams.writable && mapping.writable ? "writable" : "read-only";
      pieces.push(piece(a, b, look, backing(mapping, a - from)));
    }
  }
  return pieces;
}

/** What the guest sees of a family. */
function seenPieces(pieces: readonly LayerPiece[]): Piece[] {
  return pieces
    .filter(({ look }) => look === "writable" || look === "read-only" || look === "hole")
    .map((piece) => ({ ...piece, texts: piece.look === "hole" ? [] : piece.seenAs }));
}

function partitionRow({ name, offset, ranges }: InspectPartition, edges: ReadonlySet<number>): Row {
  const pieces = ranges.map(({ range, writable }): Piece => {
    const [start, end] = parseRange(range);
    const texts = [writable ? "rw" : "ro"];
    return { start, end, look: writable ? "slot-rw" : "slot-ro", texts, hue: NO_HUE };
  });
  const fullName = offset === 0 ? name : `${name}+0x${offset.toString(16)}`;
  return { label: label("", fullName), pieces: countedPieces(pieces, edges) };
}

function spanRow(name: string, ranges: readonly string[], text: string, edges: ReadonlySet<number>): Row {
  const pieces = ranges.map((range): Piece => {
    const [start, end] = parseRange(range);
    return { start, end, look: "slot-rw", texts: [text], hue: NO_HUE };
  });
  return { label: label("", name), pieces: countedPieces(pieces, edges) };
}

/** Draws neighbours as one, if there are several, and if none of the rows above has an edge where they meet. */
function countedPieces(pieces: readonly Piece[], edges: ReadonlySet<number>): Piece[] {
  return joined(pieces, ({ end }) => !edges.has(end), (run) => {
    const [first] = run;
    return { ...first!, texts: [`${run.length} × ${first!.texts[0]}`, ...first!.texts] };
  });
}

/** Makes `MIN_RUN` and more neighbours one if they look the same and `mayJoin` each other. */
function joined<P extends Piece>(
  pieces: readonly P[],
  mayJoin: (a: P, b: P) => boolean,
  join: (run: readonly P[]) => P,
): P[] {
  const result: P[] = [];
  let run: P[] = [];
  const endRun = () => {
    const last = run.at(-1);
    if (last !== undefined && run.length >= MIN_RUN) result.push({ ...join(run), end: last.end });
    else result.push(...run);
    run = [];
  };
  for (const piece of pieces) {
    const last = run.at(-1);
    const goesOn = last?.end === piece.start && last.look === piece.look && mayJoin(last, piece);
    if (!goesOn) endRun();
    run.push(piece);
  }
  endRun();
  return result;
}

/** The mappings of `[start, end)` in order, with `null` for what lies between them. */
function* withHoles(
  mappings: readonly InspectMapping[],
  start: number,
  end: number,
): Generator<[InspectMapping | null, number, number]> {
  let at = start;
  for (const mapping of mappings) {
    const [from, to] = parseRange(mapping.range);
    if (at < from) yield [null, at, from];
    yield [mapping, from, to];
    at = to;
  }
  if (at < end) yield [null, at, end];
}

/** Cuts `[start, end)` into what is inside one of the ranges and what is not. */
function* cutBy(ranges: readonly [number, number][], start: number, end: number): Generator<[boolean, number, number]> {
  let at = start;
  for (const [from, to] of ranges) {
    const a = Math.max(from, at);
    const b = Math.min(to, end);
    if (a >= b) continue;
    if (at < a) yield [false, at, a];
    yield [true, a, b];
    at = b;
  }
  if (at < end) yield [false, at, end];
}

function backing(mapping: InspectMapping | undefined, delta = 0): string[] {
  if (mapping === undefined) return [];
  if (mapping.fileOffset === null) return [mapping.backing];
  const name = mapping.backing.match(/"(?:.*\/)?([^"]+)"/)?.[1] ?? mapping.backing;
  return [`${name} +0x${(mapping.fileOffset + delta).toString(16)}`, name];
}

function parseRange(range: string): [number, number] {
  const [start, end] = range.split("-").map(Number);
  return [start ?? 0, end ?? 0];
}

function count(n: number): string {
  return n.toLocaleString("en-US");
}
