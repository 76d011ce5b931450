import { ACCESS_BITS, CODE, FAN_OUT, rootLevel, ROW, ROW_SHIFT, spanOf } from "./page_codes.ts";

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
}

/** A client's side of the shared memory map. Read only while the gate is held. */
export class PageReader {
  readonly #length: number;
  readonly #level: number;
  readonly #nodes: SharedArrayBuffer;
  readonly #rows: SharedArrayBuffer;
  #words: Int32Array;
  #numbers: Float64Array;

  /** For `length` bytes of guest memory. */
  constructor(length: number, nodes: SharedArrayBuffer, rows: SharedArrayBuffer) {
    this.#length = length;
    this.#level = rootLevel(length);
    this.#nodes = nodes;
    this.#rows = rows;
    this.#words = new Int32Array(nodes, 0, nodes.byteLength >>> 2);
    this.#numbers = new Float64Array(rows, 0, rows.byteLength >>> 3);
  }

  /**
   * What is mapped at `gpa`, and as far as the same holds around it; `undefined` for nothing. "The same" is the access
   * alone, unless `exact`: then it is the row too.
   */
  at(gpa: number, exact: boolean): Shown | undefined {
    if (gpa >= this.#length) return undefined;
    let node = 0;
    let base = 0;
    let level = this.#level;
    let span = spanOf(level);
    let index = Math.floor(gpa / span);
    let entry = this.#entry(index);
    while (entry < 0) {
      node = ~entry * FAN_OUT;
      base += index * span;
      span = spanOf(--level);
      index = Math.floor((gpa - base) / span);
      entry = this.#entry(node + index);
    }
    if (entry === 0) return undefined;
    const mask = exact || (entry & CODE.truncatable) !== 0 ? -1 : ACCESS_BITS;
    const same = (i: number) => {
      const other = this.#entry(node + i);
      return other > 0 && ((other ^ entry) & mask) === 0;
    };
    let first = index;
    while (first > 0 && same(first - 1)) first--;
    let last = index + 1;
    while (last < FAN_OUT && same(last)) last++;
    return { start: base + first * span, end: Math.min(base + last * span, this.#length), code: entry };
  }

  /** The row of a code, `undefined` for private memory. */
  row(code: number): Row | undefined {
    const row = code >> ROW_SHIFT;
    if (row === 0) return undefined;
    if ((row + 1) * ROW.length > this.#numbers.length) {
      this.#numbers = new Float64Array(this.#rows, 0, this.#rows.byteLength >>> 3);
    }
    const at = row * ROW.length;
    return {
      fd: this.#numbers[at + ROW.fd] ?? -1,
      delta: this.#numbers[at + ROW.delta] ?? 0,
      serial: this.#numbers[at + ROW.serial] ?? 0,
    };
  }

  #entry(at: number): number {
    // Views of a fixed length are read faster, so a new one is made when the owner has added nodes.
    if (at >= this.#words.length) this.#words = new Int32Array(this.#nodes, 0, this.#nodes.byteLength >>> 2);
    return this.#words[at] ?? 0;
  }
}
