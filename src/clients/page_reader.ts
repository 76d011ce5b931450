import { MembackingError } from "../core/errors.ts";
import type { MemoryKind, PieceRegion } from "../memory/memory_piece.ts";
import {
  ACCESS_BITS,
  CODE,
  FAN_OUT,
  KINDS,
  REGION_ROW,
  rootLevel,
  ROW,
  ROW_SHIFT,
  spanOf,
  UNITS_PER_NUMBER,
} from "../serving/page_codes.ts";

/** What all of a piece has: the row, and whether it may be written. */
const PIECE_BITS = ~(CODE.truncatable | CODE.closing);
/** How many regions are remembered; reading one takes some microseconds. */
const REMEMBERED = 256;
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

/** What a piece of memory is. */
export interface Nature {
  readonly region: PieceRegion;
  readonly kind: MemoryKind;
  /** File offset minus GPA, in bytes; for private memory it says nothing. */
  readonly delta: number;
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
  readonly #regions = new Map<number, PieceRegion>();
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
    return this.#around(code, exact || (code & CODE.truncatable) !== 0 ? -1 : ACCESS_BITS, NEIGHBOURS);
  }

  /** The piece of memory at `gpa`, all of it; `undefined` for nothing. */
  pieceAt(gpa: number): Shown | undefined {
    if (gpa >= this.#length) return undefined;
    const code = this.#descend(gpa);
    return code === 0 ? undefined : this.#around(code, PIECE_BITS, Infinity);
  }

  /** How far what is at the present entry is seen to reach, in the bits of `mask`. */
  #around(code: number, mask: number, neighbours: number): Shown {
    let start = this.#first(code, mask);
    let end = this.#last(code, mask);
    for (let nodes = 0; nodes < neighbours && end < this.#length; nodes++) {
      if (!isSame(this.#descend(end), code, mask)) break;
      end = this.#last(code, mask);
    }
    for (let nodes = 0; nodes < neighbours && start > 0; nodes++) {
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

  /** The row of a code, `undefined` for memory that no file holds. */
  row(code: number): Row | undefined {
    const row = code >> ROW_SHIFT;
    const at = this.#rowAt(row);
    if (row === 0 || this.#numbers[at + ROW.kind] !== 0) return undefined;
    return {
      fd: this.#numbers[at + ROW.fd] ?? -1,
      delta: this.#numbers[at + ROW.delta] ?? 0,
      serial: this.#numbers[at + ROW.serial] ?? 0,
      file: this.#numbers[at + ROW.file] ?? 0,
    };
  }

  /**
   * What the memory of a code is.
   *
   * @throws {MembackingError} If somebody else has written over the map.
   */
  nature(code: number): Nature {
    const at = this.#checkedRowAt(code >> ROW_SHIFT);
    const kind = KINDS[this.#numbers[at + ROW.kind] ?? NaN];
    const delta = this.#numbers[at + ROW.delta];
    if (kind === undefined || !Number.isSafeInteger(delta)) throw senseless();
    return { kind, delta: Number(delta), region: this.#region(this.#numbers[at + ROW.region] ?? 0) };
  }

  #region(row: number): PieceRegion {
    let at = this.#checkedRowAt(row);
    const [id, traits, units] = [REGION_ROW.id, REGION_ROW.traits, REGION_ROW.units].map((i) => this.#numbers[at + i]);
    const known = this.#regions.get(Number(id));
    if (known !== undefined) return known;
    if (!isWhole(id, Number.MAX_SAFE_INTEGER) || !isWhole(traits, 511) || !isWhole(units, this.#numbers.length * 3)) {
      throw senseless();
    }
    let name = "";
    let text: number = REGION_ROW.text;
    while (true) {
      for (; text < ROW.length && name.length < units; text++) {
        const number = this.#numbers[at + text] ?? NaN;
        if (!isWhole(number, 2 ** (16 * UNITS_PER_NUMBER) - 1)) throw senseless();
        name += String.fromCharCode(number, number / 2 ** 16, number / 2 ** 32);
      }
      if (name.length >= units) break;
      at = this.#checkedRowAt(this.#numbers[at + REGION_ROW.next] ?? 0);
      text = REGION_ROW.more;
    }
    const region: PieceRegion = Object.freeze({
      id,
      name: name.slice(0, units),
      priority: traits >> 1,
      type: (traits & 1) !== 0 ? "device" : "ram",
    });
    if (this.#regions.size >= REMEMBERED) this.#regions.clear();
    this.#regions.set(id, region);
    return region;
  }

  /** Where a row begins. */
  #rowAt(row: number): number {
    const at = row * ROW.length;
    if (at + ROW.length > this.#numbers.length) this.#numbers = numbersOf(this.#rows);
    return at;
  }

  #checkedRowAt(row: number): number {
    if (!isWhole(row, Number.MAX_SAFE_INTEGER) || row === 0) throw senseless();
    return this.#rowAt(row);
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

function isWhole(value: number | undefined, most: number): value is number {
  return Number.isSafeInteger(value) && Number(value) >= 0 && Number(value) <= most;
}

function senseless(): MembackingError {
  return new MembackingError("The memory map that the owner shares makes no sense here, somebody has written over it");
}
