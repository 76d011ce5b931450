import { hex } from "./hex.ts";

/** The page size everything is aligned to, in bytes: 4 KiB, the base page of x86-64. */
export const PAGE_SIZE = 4096;

/** One past the highest guest-physical address x86-64 allows: 2^52. */
export const GPA_LIMIT = 2 ** 52;

/** Throws unless `value` is a safe integer of at least 0. `what` names it in the message. */
export function checkNumber(value: number, what: string): void {
  if (typeof value !== "number") throw new TypeError(`${what} must be a number, got ${typeof value}`);
  if (!Number.isSafeInteger(value) || value < 0) {
    throw new RangeError(`${what} must be a non-negative safe integer, got ${value}`);
  }
}

/** Throws unless `value` is a safe integer of at least 0 and a multiple of the page size. */
export function checkAligned(value: number, what: string, pageSize: number = PAGE_SIZE): void {
  // The one test that nearly everything passes, and by which everything that should not fails.
  if (typeof value === "number" && value >= 0 && value <= Number.MAX_SAFE_INTEGER && value % pageSize === 0) return;
  throw notAligned(value, what, pageSize);
}

function notAligned(value: number, what: string, pageSize: number): RangeError {
  checkNumber(value, what);
  return new RangeError(`${what} ${hex(value)} is not a multiple of ${hex(pageSize)}`);
}

const { freeze } = Object;

/** Whether `value` was made by `MemoryRange` itself, so that it can never change. */
let isPlain: (value: object) => boolean;

const RANGE = /^(0x[0-9a-f]+|[0-9]+)-(0x[0-9a-f]+|[0-9]+)$/i;

/**
 * A half-open, page-aligned range `[start, end)` of guest-physical addresses or of offsets, in bytes.
 *
 * Frozen. Both ends are checked once, here, so that every other part of the package can rely on them: safe integers,
 * multiples of 4096, `0 <= start <= end <= 2^52`.
 *
 * @example Usage
 * ```ts
 * import { MemoryRange } from "membacking";
 *
 * const ram = MemoryRange.of(0x1000, 0x2000);
 * console.assert(ram.toString() === "0x1000-0x3000");
 * console.assert(ram.containsAddress(0x2fff) && !ram.containsAddress(0x3000));
 * ```
 */
export class MemoryRange {
  /** The empty range at 0. */
  static readonly EMPTY: MemoryRange = new MemoryRange(0, 0);

  /** The first byte of the range. */
  readonly start: number;
  /** One past the last byte of the range. */
  readonly end: number;
  /** Tells what this class made from what only looks like it: a subclass, a Proxy, an object with its prototype. */
  readonly #isPlain: boolean;

  /**
   * Makes the range `[start, end)`.
   *
   * @throws {RangeError} If an end is not a page-aligned safe integer in 0..2^52, or if `end` is below `start`.
   */
  constructor(start: number, end: number) {
    checkAligned(start, "Range start");
    checkAligned(end, "Range end");
    if (end < start) throw new RangeError(`Range end ${hex(end)} is below its start ${hex(start)}`);
    if (end > GPA_LIMIT) throw new RangeError(`Range end ${hex(end)} is beyond ${hex(GPA_LIMIT)}`);
    // Minus zero is zero.
    this.start = start + 0;
    this.end = end + 0;
    this.#isPlain = new.target === MemoryRange;
    // A subclass may have fields of its own to set.
    if (this.#isPlain) freeze(this);
  }

  static {
    isPlain = (value) => #isPlain in value && value.#isPlain;
  }

  /**
   * Makes the range of `length` bytes from `start`.
   *
   * @throws {RangeError} As the constructor does.
   */
  static of(start: number, length: number): MemoryRange {
    checkAligned(start, "Range start");
    checkAligned(length, "Range length");
    return new MemoryRange(start, start + length);
  }

  /**
   * Makes the smallest range of whole pages that holds the bytes `[start, end)`.
   *
   * @throws {RangeError} If an end is not a safe integer in 0..2^52, or if `end` is below `start`.
   */
  static bounding(start: number, end: number): MemoryRange {
    checkNumber(start, "Range start");
    checkNumber(end, "Range end");
    if (end < start) throw new RangeError(`Range end ${hex(end)} is below its start ${hex(start)}`);
    return new MemoryRange(start - start % PAGE_SIZE, Math.ceil(end / PAGE_SIZE) * PAGE_SIZE);
  }

  /**
   * The range in the form that `toString` gives: `0x1000-0x3000`. Decimal numbers are understood as well.
   *
   * @throws {SyntaxError} If the text has another form.
   * @throws {RangeError} As the constructor does.
   */
  static parse(text: string): MemoryRange {
    if (typeof text !== "string") throw new TypeError(`A range to parse must be a string, got ${typeof text}`);
    const [, start, end] = RANGE.exec(text) ?? [];
    if (start === undefined || end === undefined) {
      throw new SyntaxError(`${JSON.stringify(text)} is not a range, which has the form 0x1000-0x3000`);
    }
    return new MemoryRange(Number(start), Number(end));
  }

  /** The length in bytes. */
  get length(): number {
    return this.end - this.start;
  }

  /** Whether the range holds no byte. */
  get isEmpty(): boolean {
    return this.start === this.end;
  }

  /** Whether every byte of `other` is in this range. An empty range is contained wherever its address lies. */
  contains(other: MemoryRange): boolean {
    return this.start <= other.start && other.end <= this.end;
  }

  /** Whether the byte at `gpa` is in this range. */
  containsAddress(gpa: number): boolean {
    return this.start <= gpa && gpa < this.end;
  }

  /** Whether the two ranges share a byte. */
  overlaps(other: MemoryRange): boolean {
    return Math.max(this.start, other.start) < Math.min(this.end, other.end);
  }

  /** The bytes in both ranges, `MemoryRange.EMPTY` where there are none. */
  intersect(other: MemoryRange): MemoryRange {
    const start = Math.max(this.start, other.start);
    const end = Math.min(this.end, other.end);
    return start < end ? new MemoryRange(start, end) : MemoryRange.EMPTY;
  }

  /**
   * The range moved by `delta` bytes, which may be negative.
   *
   * @throws {RangeError} If the result leaves 0..2^52 or is not page-aligned.
   * @throws {TypeError} If `delta` is no number.
   */
  offsetBy(delta: number): MemoryRange {
    if (typeof delta !== "number") throw new TypeError(`Delta must be a number, got ${typeof delta}`);
    return new MemoryRange(this.start + delta, this.end + delta);
  }

  /** Whether both ends are equal. */
  equals(other: MemoryRange): boolean {
    return this.start === other.start && this.end === other.end;
  }

  /** The range in the form `0x1000-0x3000`. */
  toString(): string {
    return `${hex(this.start)}-${hex(this.end)}`;
  }

  /** What `console.log` shows. */
  [Symbol.for("Deno.customInspect")](): string {
    return `MemoryRange ${this}`;
  }
}

/**
 * The range a caller passed, as one that never changes: `value` itself where `MemoryRange` made it, else a copy whose
 * ends were read once and checked. Every range goes through here where it enters the package.
 *
 * @throws {TypeError} If it is no `MemoryRange`; `what` says what needs one.
 * @throws {RangeError} If an object that passes for one has ends that a range cannot have.
 */
export function ownRange(value: MemoryRange, what: string | Named): MemoryRange {
  if (!(value instanceof MemoryRange)) throw new TypeError(`${textOf(what)} needs a MemoryRange`);
  return isPlain(value) ? value : new MemoryRange(value.start, value.end);
}

/**
 * As `ownRange`, and not empty.
 *
 * @throws {RangeError} If it is empty.
 */
export function ownFilledRange(value: MemoryRange, what: string | Named): MemoryRange {
  const range = ownRange(value, what);
  if (range.isEmpty) throw new RangeError(`${textOf(what)} needs a range that is not empty`);
  return range;
}

/** A region, which messages call by its name: the text is made where there is a message. */
interface Named {
  readonly name: string;
}

function textOf(what: string | Named): string {
  return typeof what === "string" ? what : `Region "${what.name}"`;
}
