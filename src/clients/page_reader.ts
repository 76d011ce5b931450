import { ACCESS_BITS, CODE, FAN_OUT, rootLevel, ROW, ROW_SHIFT, spanOf } from "../serving/page_codes.ts";

/** How many nodes further on are looked at for more of the same, in each direction. */
const NEIGHBOURS = 8;

/** What is mapped over a range, as a client knows it. */
export interface Shown {
  /** The first GPA, in bytes. */
  readonly start: number;
  /** One past the last. */
  readonly end: number;
  /** Bits of `CODE`, and the number of the row above them. */
  readonly code: number;
}

/** What backs a mapping: the owner's descriptor, and where. */
export interface Row {
  readonly fd: number;
  /** File offset minus GPA, in bytes. */
  readonly delta: number;
  /** A number that only this use of the row has. */
  readonly serial: number;
  /** The owner's number for the file. */
  readonly file: number;
}

/** Nodes: memory that threads share, which may grow, or words that processes share, all there will be. */
export type PageNodes = SharedArrayBuffer | Int32Array;
/** Rows, in the same way. */
export type PageRows = SharedArrayBuffer | Float64Array;

/** A client's side of the shared memory map. Read only while the gate is held. */
export class PageReader {
  readonly #length: number;
  readonly #level: number;
  readonly #nodes: PageNodes;
  readonly #rows: PageRows;
  #words: Int32Array;
  #numbers: Float64Array;
  // Where `#descend` has come to: the first word of the node, the first GPA of the node, the entry and what it spans.
  #node = 0;
  #base = 0;
  #index = 0;
  #span = 0;

  /** For `length` bytes of guest memory. */
  constructor(length: number, nodes: PageNodes, rows: PageRows) {
    this.#length = length;
    this.#level = rootLevel(length);
    this.#nodes = nodes;
    this.#rows = rows;
    this.#words = wordsOf(nodes);
    this.#numbers = numbersOf(rows);
  }

  /**
   * What is mapped at `gpa`, and as far as the same is seen to hold around it; `undefined` for nothing. "The same" is
   * the access alone, unless `exact`: then it is the row too.
   */
  at(gpa: number, exact: boolean): Shown | undefined {
    if (gpa >= this.#length) return undefined;
    const code = this.#descend(gpa);
    if (code === 0) return undefined;
    const mask = exact || (code & CODE.truncatable) !== 0 ? -1 : ACCESS_BITS;
    let start = this.#first(code, mask);
    let end = this.#last(code, mask);
    for (let nodes = 0; nodes < NEIGHBOURS && end < this.#length; nodes++) {
      if (!isSame(this.#descend(end), code, mask)) break;
      end = this.#last(code, mask);
    }
    for (let nodes = 0; nodes < NEIGHBOURS && start > 0; nodes++) {
      if (!isSame(this.#descend(start - 1), code, mask)) break;
      start = this.#first(code, mask);
    }
    return { start, end: Math.min(end, this.#length), code };
  }

  /** Up to where what holds at `gpa` holds at least. */
  entryEnd(gpa: number): number {
    this.#descend(gpa);
    return this.#base + (this.#index + 1) * this.#span;
  }

  /** The row of a code, `undefined` for private memory. */
  row(code: number): Row | undefined {
    const row = code >> ROW_SHIFT;
    if (row === 0) return undefined;
    if ((row + 1) * ROW.length > this.#numbers.length) {
      this.#numbers = numbersOf(this.#rows);
    }
    const at = row * ROW.length;
    return {
      fd: this.#numbers[at + ROW.fd] ?? -1,
      delta: this.#numbers[at + ROW.delta] ?? 0,
      serial: this.#numbers[at + ROW.serial] ?? 0,
      file: this.#numbers[at + ROW.file] ?? 0,
    };
  }

  /** Goes to the entry that spans `gpa`, and returns its code. */
  #descend(gpa: number): number {
    this.#node = 0;
    this.#base = 0;
    let level = this.#level;
    while (true) {
      this.#span = spanOf(level);
      this.#index = Math.floor((gpa - this.#base) / this.#span);
      const entry = this.#entry(this.#node + this.#index);
      if (entry >= 0 || level === 0) return Math.max(entry, 0);
      this.#base += this.#index * this.#span;
      this.#node = ~entry * FAN_OUT;
      level--;
    }
  }

  /** Where what is at the present entry begins, as far as its node shows. */
  #first(code: number, mask: number): number {
    let first = this.#index;
    while (first > 0 && isSame(this.#entry(this.#node + first - 1), code, mask)) first--;
    return this.#base + first * this.#span;
  }

  /** Where it ends. */
  #last(code: number, mask: number): number {
    let last = this.#index + 1;
    while (last < FAN_OUT && isSame(this.#entry(this.#node + last), code, mask)) last++;
    return this.#base + last * this.#span;
  }

  #entry(at: number): number {
    // Views of a fixed length are read faster, so a new one is made when the owner has added nodes.
    if (at >= this.#words.length) this.#words = wordsOf(this.#nodes);
    return this.#words[at] ?? 0;
  }
}

function isSame(entry: number, code: number, mask: number): boolean {
  return entry > 0 && ((entry ^ code) & mask) === 0;
}

function wordsOf(nodes: PageNodes): Int32Array {
  return nodes instanceof SharedArrayBuffer ? new Int32Array(nodes, 0, nodes.byteLength >>> 2) : nodes;
}

function numbersOf(rows: PageRows): Float64Array {
  return rows instanceof SharedArrayBuffer ? new Float64Array(rows, 0, rows.byteLength >>> 3) : rows;
}
