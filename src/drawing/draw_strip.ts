/**
 * A part of the address axis with rows of pieces above it, drawn as lines of characters.
 *
 * @module
 */

import { size } from "./draw_summary.ts";

/** What a piece of a row stands for, from the least to the most important. */
export type Look = "unmapped" | "hole" | "hidden" | "read-only" | "writable" | "slot-ro" | "slot-rw";

export interface Piece {
  readonly start: number;
  readonly end: number;
  readonly look: Look;
  /** What to write into it, the longest first. */
  readonly texts: readonly string[];
  /** An SGR foreground colour, 31 to 36. */
  readonly hue: number;
}

/** A row of the picture. */
export interface Row {
  readonly label: string;
  readonly pieces: readonly Piece[];
}

/** What each look is drawn with. */
export const FILL: Readonly<Record<Look, string>> = {
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
/** The SGR code of what is not the point. */
export const DIM = "2";
/** The least width of a cell between two boundaries, in columns. */
export const MIN_CELL = 7;

/** A part of the address axis, and how rows are drawn above it. */
export class Strip {
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
    for (const { first, last, piece } of runsIn(row, this.cuts)) this.#run(line, first, last, piece);
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

/** What is drawn from one boundary to another one. */
export interface Run {
  /** The index of the first boundary. */
  readonly first: number;
  /** The index of the last. */
  readonly last: number;
  /** What is drawn. */
  readonly piece: Piece;
  /** How many pieces it stands for. */
  readonly count: number;
}

/** The pieces of a row between boundaries. Where several have their edges between two boundaries, they are counted. */
export function* runsIn(row: Row, cuts: readonly number[]): Generator<Run> {
  const crowds = new Map<number, Piece[]>();
  for (const piece of row.pieces) {
    const start = Math.max(piece.start, cuts[0] ?? 0);
    const end = Math.min(piece.end, cuts.at(-1) ?? 0);
    if (start >= end) continue;
    const first = lowerBound(cuts, start);
    let last = lowerBound(cuts, end);
    if (start !== cuts[first]) crowd(crowds, first - 1, piece);
    if (end !== cuts[last] && last-- > first) crowd(crowds, last, piece);
    if (first < last) yield { first, last, piece, count: 1 };
  }
  for (const [cell, pieces] of crowds) {
    const strongest = pieces.reduce((a, b) => STRENGTH.indexOf(a.look) < STRENGTH.indexOf(b.look) ? b : a);
    const n = pieces.length < 1000 ? `${pieces.length}` : `${(pieces.length / 1000).toFixed(1)}k`;
    const texts = [`${n} pieces`, n];
    yield { first: cell, last: cell + 1, piece: { ...strongest, texts }, count: pieces.length };
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
export class Line {
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
