/**
 * Draws a memory map as text: one row per region, highest priority on top, then what the guest sees and what each
 * partition and DMA target was told. A pure function of plain data, so a map can be drawn from a log file as well as
 * from a live manager.
 *
 * @module
 */

import { DIM, FILL, Line, type Look, MIN_CELL, type Piece, type Row, Strip } from "./draw_strip.ts";
import { summary } from "./draw_summary.ts";
import type { InspectMapping, InspectNode, InspectPartition, InspectRegion } from "../regions/inspect.ts";
import type { InspectGuestMemory } from "../guest/inspect_guest.ts";

/** How {@linkcode drawMemoryMap} draws. */
export interface DrawOptions {
  /** The width to stay within, in columns; 100 when left out, and never less than 60. */
  readonly columns?: number;
  /** Whether ANSI colour is added. The characters are the same with and without. */
  readonly color?: boolean;
}

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

const LEGEND: readonly (readonly [Look, string])[] = [
  ["writable", "writable"],
  ["read-only", "read-only"],
  ["hidden", "hidden by a higher priority"],
  ["hole", "hole"],
  ["unmapped", "region not mapped"],
];

const HUES: readonly number[] = [36, 33, 35, 32, 34, 31];
const NO_HUE = 37;

const MAX_ROWS = 24;
const MAX_STRIPS = 6;
const NAME_WIDTH = 15;
/** How many neighbours that look the same are drawn as one where they may be. */
const MIN_RUN = 4;

/**
 * Draws a memory map for a terminal.
 *
 * Addresses run from left to right, on an axis that shows every boundary however far apart they are. Where there are
 * more boundaries than fit, the picture continues below; where there are far more, neighbours are counted instead of
 * drawn, so that a map of any size stays a picture. Regions of one priority that belong together by their names (`"ram"`,
 * `"ram vga"`) share a row.
 *
 * @example Usage
 * ```ts
 * import { drawMemoryMap, GuestMemoryManager, MemoryRange } from "membacking";
 *
 * using guest = GuestMemoryManager.create({
 *   maxAddress: 0x100_0000,
 *   ram: [{ ranges: [new MemoryRange(0, 0x80_0000)] }],
 *   x86Legacy: true,
 * });
 * console.log(drawMemoryMap(guest.inspect()));
 * ```
 *
 * @param map What `inspect()` of a `RegionManager` gave, or of a `GuestMemoryManager`: then it is also said what the
 * memory is made of, and how much of the host's it takes.
 */
export function drawMemoryMap(map: InspectNode | InspectGuestMemory, options: DrawOptions = {}): string {
  const columns = Math.max(60, options.columns ?? 100);
  const lines = map.regions.length === 0 ? [new Line().put(0, "The memory map has no regions")] : picture(map, columns);
  if ("ram" in map) {
    lines.push(new Line());
    for (const { key, text } of summary(map, columns)) lines.push(new Line().put(0, key, DIM).put(key.length, text));
  }
  return lines.map((line) => line.toString(options.color ?? false)).join("\n");
}

function picture(map: InspectNode, total: number): Line[] {
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

  const margin = Math.max(...[...layers, ...results].map((row) => row.label.length)) + 2;
  const columns = total - margin;
  const perStrip = Math.floor((columns - 1) / MIN_CELL);
  const cuts = boundaries([...layers, ...results]);
  const crowded = cuts.length - 1 > perStrip * MAX_STRIPS;
  const axis = crowded ? thin(cuts, perStrip) : cuts;
  const strips = Math.ceil((axis.length - 1) / perStrip);
  const cells = Math.ceil((axis.length - 1) / strips);

  const lines: Line[] = [];
  for (let first = 0; first < axis.length - 1; first += cells) {
    const strip = new Strip(axis.slice(first, first + cells + 1), margin, columns);
    if (first > 0) lines.push(new Line());
    lines.push(...strip.axis());
    for (const row of layers) if (strips === 1 || strip.touches(row)) lines.push(strip.row(row));
    lines.push(strip.rule());
    for (const row of results) lines.push(strip.row(row));
  }
  lines.push(new Line(), ...legend([...layers, ...results], crowded, total));
  return lines;
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

function boundaries(rows: readonly Row[]): number[] {
  const cuts = new Set<number>();
  for (const { pieces } of rows) for (const { start, end } of pieces) cuts.add(start).add(end);
  return [...cuts].sort((a, b) => a - b);
}

/** Leaves `cells + 1` of the boundaries, with equally many taken out between any two. */
function thin(cuts: readonly number[], cells: number): number[] {
  return Array.from({ length: cells + 1 }, (_, i) => cuts[Math.round(i * (cuts.length - 1) / cells)] ?? 0);
}

function legend(rows: readonly Row[], crowded: boolean, columns: number): Line[] {
  const used = new Set(rows.flatMap((row) => row.pieces.map((piece) => piece.look)));
  const marks = LEGEND.filter(([look]) => used.has(look)).map(([look, meaning]) =>
    `${FILL[look].repeat(2)} ${meaning}`
  );
  if (crowded) marks.push("small pieces are counted");
  const lines: string[] = [];
  for (const mark of marks) {
    const last = lines.at(-1) ?? "";
    if (last !== "" && last.length + 3 + mark.length <= columns) lines[lines.length - 1] = `${last}   ${mark}`;
    else lines.push(`    ${mark}`);
  }
  return lines.map((text) => new Line().put(0, text, DIM));
}

function parseRange(range: string): [number, number] {
  const [start, end] = range.split("-").map(Number);
  return [start ?? 0, end ?? 0];
}

function count(n: number): string {
  return n.toLocaleString("en-US");
}
