/**
 * Draws a memory map as text: one row per region, highest priority on top, then what the guest sees and what each
 * partition and DMA target was told. A pure function of plain data, so a map can be drawn from a log file as well as
 * from a live manager.
 *
 * @module
 */

import { size, summary } from "./draw_summary.ts";
import type { InspectMapping, InspectNode, InspectPartition, InspectRegion } from "./inspect.ts";
import type { InspectGuestMemory } from "./inspect_guest.ts";

/** How {@linkcode drawMemoryMap} draws. */
export interface DrawOptions {
  /** The width to stay within, in columns; 100 when left out, and never less than 60. */
  readonly columns?: number;
  /** Whether ANSI colour is added. The characters are the same with and without. */
  readonly color?: boolean;
}

/** What a piece of a row stands for, from the least to the most important. */
type Look = "unmapped" | "hole" | "hidden" | "read-only" | "writable" | "slot-ro" | "slot-rw";

interface Piece {
  readonly start: number;
  readonly end: number;
  readonly look: Look;
  /** What to write into it, the longest first. */
  readonly texts: readonly string[];
  /** An SGR foreground colour, 31 to 36. */
  readonly hue: number;
}

/** A piece of the row of a region. */
interface LayerPiece extends Piece {
  /** What to write where the guest sees it, the longest first. */
  readonly seenAs: readonly string[];
  /** Whether it is all of a region that is a part of another one, by its name. */
  readonly isPart: boolean;
}

interface Row {
  readonly label: string;
  readonly pieces: readonly Piece[];
}

/** Regions that share a row, by address: parts of one thing, such as RAM of which a chipset switches some ranges. */
interface Family {
  readonly name: string;
  readonly priority: number;
  readonly members: readonly InspectRegion[];
}

const FILL: Readonly<Record<Look, string>> = {
  "unmapped": "┄",
  "hole": "·",
  "hidden": "░",
  "read-only": "▓",
  "writable": "█",
  "slot-ro": "─",
  "slot-rw": "═",
};
/** Where pieces are too small to be drawn one by one, the last of these to occur is drawn for all. */
const STRENGTH: readonly Look[] = ["unmapped", "hole", "hidden", "slot-ro", "slot-rw", "read-only", "writable"];
const LEGEND: readonly (readonly [Look, string])[] = [
  ["writable", "writable"],
  ["read-only", "read-only"],
  ["hidden", "hidden by a higher priority"],
  ["hole", "hole"],
  ["unmapped", "region not mapped"],
];

const HUES: readonly number[] = [36, 33, 35, 32, 34, 31];
const NO_HUE = 37;
const DIM = "2";

const MAX_ROWS = 24;
const MAX_STRIPS = 6;
const NAME_WIDTH = 15;
const MIN_CELL = 7;
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

/** A part of the address axis, and how rows are drawn above it. */
class Strip {
  /** The column of each boundary. */
  readonly #columns: number[];

  constructor(readonly cuts: readonly number[], margin: number, columns: number) {
    const cells = cuts.length - 1;
    const spare = columns - 1 - cells * MIN_CELL;
    // Logarithmic, so that a gigabyte is wider than a page and both can be seen.
    const weights = cuts.slice(1).map((cut, i) => Math.log2(cut - (cuts[i] ?? 0)) - 9);
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    let sum = 0;
    this.#columns = [
      margin,
      ...weights.map((weight, i) => {
        sum += weight;
        return margin + (i + 1) * MIN_CELL + Math.floor(spare * sum / total);
      }),
    ];
  }

  #column(index: number): number {
    return this.#columns[index] ?? 0;
  }

  get #last(): number {
    return this.cuts.length - 1;
  }

  touches(row: Row): boolean {
    const [low, high] = [this.cuts[0] ?? 0, this.cuts[this.#last] ?? 0];
    return row.pieces.some(({ start, end }) => start < high && low < end);
  }

  /** The addresses, in as many lines as keep them apart, and the sizes between them. */
  axis(): Line[] {
    const lines: Line[] = [];
    const free: number[] = [];
    this.cuts.forEach((cut, i) => {
      const text = `0x${cut.toString(16)}`;
      const column = Math.min(this.#column(i), this.#column(this.#last) + 1 - text.length);
      let level = free.findIndex((from) => from <= column);
      if (level < 0) level = free.push(0) - 1;
      free[level] = column + text.length + 1;
      (lines[level] ??= new Line()).put(column, text);
      for (let lower = 0; lower < level; lower++) lines[lower]?.putIfFree(this.#column(i), "╷", DIM);
    });
    lines.reverse();
    const sizes = new Line();
    sizes.put(0, "pri region", DIM);
    for (let i = 0; i < this.#last; i++) {
      const text = size((this.cuts[i + 1] ?? 0) - (this.cuts[i] ?? 0));
      const width = this.#column(i + 1) - this.#column(i) - 1;
      sizes.put(this.#column(i), "╷", DIM);
      sizes.put(this.#column(i) + 1 + ((width - text.length) >> 1), text, DIM);
    }
    sizes.put(this.#column(this.#last), "╷", DIM);
    return [...lines, sizes];
  }

  rule(): Line {
    const line = new Line();
    for (let i = 0; i < this.#last; i++) {
      line.put(this.#column(i), i === 0 ? "├" : "┼", DIM);
      line.put(this.#column(i) + 1, "─".repeat(this.#column(i + 1) - this.#column(i) - 1), DIM);
    }
    line.put(this.#column(this.#last), "┤", DIM);
    return line;
  }

  row(row: Row): Line {
    const line = new Line();
    line.put(0, row.label);
    for (let i = 0; i <= this.#last; i++) line.put(this.#column(i), "┊", DIM);
    const crowds = new Map<number, Piece[]>();
    for (const piece of row.pieces) {
      const start = Math.max(piece.start, this.cuts[0] ?? 0);
      const end = Math.min(piece.end, this.cuts[this.#last] ?? 0);
      if (start >= end) continue;
      const first = lowerBound(this.cuts, start);
      let last = lowerBound(this.cuts, end);
      if (start !== this.cuts[first]) crowd(crowds, first - 1, piece);
      if (end !== this.cuts[last] && last-- > first) crowd(crowds, last, piece);
      if (first < last) this.#run(line, first, last, piece);
    }
    for (const [cell, pieces] of crowds) {
      const strongest = pieces.reduce((a, b) => STRENGTH.indexOf(a.look) < STRENGTH.indexOf(b.look) ? b : a);
      const n = pieces.length < 1000 ? `${pieces.length}` : `${(pieces.length / 1000).toFixed(1)}k`;
      const texts = [`${n} pieces`, n];
      this.#run(line, cell, cell + 1, { ...strongest, texts });
    }
    return line;
  }

  #run(line: Line, first: number, last: number, piece: Piece): void {
    const from = this.#column(first);
    const to = this.#column(last);
    const width = to - from - 1;
    const faint = piece.look === "hidden" || piece.look === "unmapped" || piece.look === "hole";
    const style = faint ? `${DIM};${piece.hue}` : `${piece.hue}`;
    line.put(from, FILL[piece.look].repeat(to - from + 1), style);
    // The fill has to show on either side of the text; spaces between the two are a luxury.
    const text = piece.texts.find((text) => text.length + 4 <= width) ??
      piece.texts.find((text) => text.length + 2 <= width) ??
      piece.texts.at(-1)?.slice(0, width - 3).concat("…");
    if (text !== undefined) {
      const padded = text.length + 4 <= width ? ` ${text} ` : text;
      const at = from + 1 + ((width - padded.length) >> 1);
      line.put(at, padded, piece.look === "writable" ? `30;${piece.hue + 10}` : style);
    }
    // A piece that goes on in another strip has no edge here.
    if (piece.start >= (this.cuts[first] ?? 0)) line.put(from, "│", DIM);
    if (piece.end <= (this.cuts[last] ?? 0)) line.put(to, "│", DIM);
  }
}

function crowd(crowds: Map<number, Piece[]>, cell: number, piece: Piece): void {
  const pieces = crowds.get(cell);
  if (pieces === undefined) crowds.set(cell, [piece]);
  else pieces.push(piece);
}

/** The index of the first boundary at or above `address`; one past the last where there is none. */
function lowerBound(cuts: readonly number[], address: number): number {
  let low = 0;
  let high = cuts.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if ((cuts[middle] ?? 0) < address) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** A line of characters, each with its own SGR codes. */
class Line {
  readonly #cells: { char: string; style: string }[] = [];

  put(column: number, text: string, style = ""): this {
    for (const char of text) {
      while (this.#cells.length < column) this.#cells.push({ char: " ", style: "" });
      this.#cells[column++] = { char, style };
    }
    return this;
  }

  putIfFree(column: number, text: string, style: string): void {
    if ((this.#cells[column]?.char ?? " ") === " ") this.put(column, text, style);
  }

  toString(color: boolean): string {
    if (!color) return this.#cells.map(({ char }) => char).join("").trimEnd();
    let text = "";
    let current = "";
    for (const { char, style } of this.#cells) {
      if (style !== current) text += `\x1b[0${style === "" ? "" : `;${style}`}m`;
      current = style;
      text += char;
    }
    return current === "" ? text.trimEnd() : `${text}\x1b[0m`;
  }
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
