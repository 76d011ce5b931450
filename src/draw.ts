/**
 * Draws a memory map as text: one row per region, highest priority on top, then what the guest sees and what each
 * partition and DMA target was told. A pure function of plain data, so a map can be drawn from a log file as well as
 * from a live manager.
 *
 * @module
 */

import type { InspectMapping, InspectNode, InspectPartition, InspectRegion } from "./inspect.ts";

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

interface Row {
  readonly label: string;
  readonly pieces: readonly Piece[];
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

/**
 * Draws a memory map for a terminal.
 *
 * Addresses run from left to right, on an axis that shows every boundary however far apart they are. Where there are
 * more boundaries than fit, the picture continues below; where there are far more, neighbours are counted instead of
 * drawn, so that a map of any size stays a picture.
 *
 * @example Usage
 * ```ts
 * import { drawMemoryMap, Mappable, MemoryRange, RegionManager, VaMapper } from "membacking";
 *
 * using va = VaMapper.reserve(0x10000);
 * using regions = new RegionManager(va);
 * using file = Mappable.memfd("ram", 0x4000);
 * using ram = regions.newRegion({ name: "ram", range: new MemoryRange(0, 0x4000), priority: 0 });
 * ram.addMapping({ rangeInRegion: new MemoryRange(0, 0x4000), mappable: file });
 * ram.map();
 * console.log(drawMemoryMap(regions.inspect()));
 * ```
 */
export function drawMemoryMap(map: InspectNode, options: DrawOptions = {}): string {
  if (map.regions.length === 0) return "The memory map has no regions";
  const regions = [...map.regions].sort((a, b) => b.priority - a.priority || a.id - b.id);
  const hues = new Map(regions.toReversed().map((region, i) => [region, HUES[i % HUES.length] ?? NO_HUE]));
  const layers = layerRows(regions, (region) => regionPieces(region, hues.get(region) ?? NO_HUE));
  const results: Row[] = [
    {
      label: label("", "guest sees"),
      pieces: regions.flatMap((region) => seenPieces(region, hues.get(region) ?? NO_HUE)),
    },
    ...map.partitions.map(partitionRow),
    ...map.dmaTargets.map(({ name, ranges }) => spanRow(name, ranges, "dma")),
  ];
  if (map.locks.length > 0) results.push(spanRow("locked", map.locks.map(({ range }) => range), "locked"));
  if (map.outOfStep.length > 0) results.push(spanRow("out of step", map.outOfStep, "?"));

  const margin = Math.max(...[...layers, ...results].map((row) => row.label.length)) + 2;
  const total = Math.max(60, options.columns ?? 100);
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
  return lines.map((line) => line.toString(options.color ?? false)).join("\n");
}

/** One row per region, or one per priority where there are many, and a last one for what is still too much. */
function layerRows(regions: readonly InspectRegion[], piecesOf: (region: InspectRegion) => Piece[]): Row[] {
  if (regions.length <= MAX_ROWS) {
    return regions.map((region) => ({ label: label(region.priority, region.name), pieces: piecesOf(region) }));
  }
  const groups = [...Map.groupBy(regions, (region) => region.priority)];
  const rows = groups.slice(0, groups.length > MAX_ROWS ? MAX_ROWS - 1 : MAX_ROWS).map(([priority, members]) => ({
    label: label(priority, members.length === 1 ? members[0]?.name ?? "" : `${count(members.length)} regions`),
    pieces: members.flatMap(piecesOf),
  }));
  const rest = groups.slice(rows.length);
  if (rest.length === 0) return rows;
  return [...rows, {
    label: label("…", `${count(rest.length)} more layers`),
    pieces: rest.flatMap(([, members]) => members.flatMap(piecesOf)),
  }];
}

function label(priority: number | string, name: string): string {
  const short = name.length > NAME_WIDTH ? `${name.slice(0, NAME_WIDTH - 1)}…` : name;
  return `${String(priority).padStart(3)} ${short}`;
}

/** What one region contributes to its own row. */
function regionPieces(region: InspectRegion, hue: number): Piece[] {
  const [start, end] = parseRange(region.range);
  if (region.mapParams === null) return [{ start, end, look: "unmapped", texts: backing(region.mappings[0]), hue }];
  const shown = region.visible.map(parseRange);
  const pieces: Piece[] = [];
  for (const [mapping, from, to] of withHoles(region.mappings, start, end)) {
    for (const [inside, a, b] of cutBy(shown, from, to)) {
      if (mapping === null) {
        pieces.push({ start: a, end: b, look: inside ? "hole" : "hidden", texts: [], hue });
        continue;
      }
      const writable = region.mapParams.writable && mapping.writable;
      const look = !inside ? "hidden" : writable ? "writable" : "read-only";
      pieces.push({ start: a, end: b, look, texts: backing(mapping, a - from), hue });
    }
  }
  return pieces;
}

/** What one region contributes to what the guest sees. */
function seenPieces(region: InspectRegion, hue: number): Piece[] {
  if (region.mapParams === null) return [];
  return regionPieces(region, hue)
    .filter(({ look }) => look === "writable" || look === "read-only" || look === "hole")
    .map((piece) => ({ ...piece, texts: piece.look === "hole" ? [] : [region.name] }));
}

function partitionRow({ name, offset, ranges }: InspectPartition): Row {
  const pieces = ranges.map(({ range, writable }): Piece => {
    const [start, end] = parseRange(range);
    const texts = [writable ? "rw" : "ro"];
    return { start, end, look: writable ? "slot-rw" : "slot-ro", texts, hue: NO_HUE };
  });
  return { label: label("", offset === 0 ? name : `${name}+0x${offset.toString(16)}`), pieces };
}

function spanRow(name: string, ranges: readonly string[], text: string): Row {
  const pieces = ranges.map((range): Piece => {
    const [start, end] = parseRange(range);
    return { start, end, look: "slot-rw", texts: [text], hue: NO_HUE };
  });
  return { label: label("", name), pieces };
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

/** A length in the largest unit that is short: `4K`, `640K`, `1M`, `3.5G`. */
function size(bytes: number): string {
  let unit = 0;
  while (bytes >= 1024 && unit < UNITS.length - 1) {
    bytes /= 1024;
    unit++;
  }
  if (Number.isInteger(bytes)) return `${bytes}${UNITS[unit]}`;
  const rounded = bytes < 10 ? bytes.toFixed(1) : bytes.toFixed(0);
  return `~${rounded}${UNITS[unit]}`;
}
const UNITS = ["", "K", "M", "G", "T", "P"];

function count(n: number): string {
  return n.toLocaleString("en-US");
}
