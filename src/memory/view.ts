import { PAGE_SIZE } from "../core/memory_range.ts";
import type { WindowMarks } from "./write_marks.ts";

/** Host memory is looked at in windows of this many bytes, so that offsets into them are small integers. */
export const WINDOW: number = 2 ** 30;

// An array all the same: where a field has always been one, the engine need not ask.
const NO_MARKS = new Uint8Array(0);

/**
 * A piece of guest memory that is backed in one way, as far as it lies in one window. The views on it end where it
 * ends, so that nothing done through them leaves it.
 */
export class View {
  // All numbers have values from the start: a field that has been undefined once, however briefly, is no longer known to
  // be a number, and each access asks what it is.
  /** The GPA of its first byte. */
  readonly base: number = 0;
  /** Its length in bytes. */
  readonly end: number = 0;
  /** Whether it may be written. */
  readonly isWritable: boolean;
  /** Where it may be written without more ado: all of it while nobody tracks writes, else the page that was marked last. */
  writableStart: number = 0;
  /** The bits of an offset that say where in that sense it lies: what has the same of them begins at the same byte. */
  writableMask: number = -WINDOW;
  /** How many bytes can be written from there on; -1 for none. */
  writableLength: number = -1;
  /** Once there was a write that is tracked, a byte for each page, to be set to 1 where it is written. */
  marked: Uint8Array = NO_MARKS;
  /**
   * The first page for which that may be done without more ado. These are numbers, as the length of an array is asked
   * for at the price of asking whether it still has its memory.
   */
  markedFrom: number = 0;
  /** One past the last one; 0 for none. */
  markedEnd: number = 0;
  /** What its bytes are in: all of host memory. */
  readonly buffer: ArrayBuffer;
  /** Where in the buffer its first byte is. */
  readonly offset: number = 0;
  readonly data: DataView;
  readonly bytes: Uint8Array<ArrayBuffer>;
  // Made when first used: most views never are used atomically.
  #halves: Uint16Array | null = null;
  #words: Uint32Array | null = null;
  #quads: BigUint64Array | null = null;
  /** Where writes are marked; `null` while nobody tracks them, and where there can be none. */
  readonly #marks: WindowMarks | null;

  /** Of GPAs `[base, end)`, which begin at byte `offset` of the buffer. Writes are to be marked in `marks`, if any. */
  constructor(
    buffer: ArrayBuffer,
    base: number,
    end: number,
    writable: boolean,
    marks: WindowMarks | null = null,
    offset: number = base,
  ) {
    // Windows are short: a small integer for the engine too.
    const length = (end - base) | 0;
    this.base = base;
    this.end = length;
    this.isWritable = writable;
    this.writableLength = writable && marks === null ? length : -1;
    this.#marks = writable ? marks : null;
    this.buffer = buffer;
    this.offset = offset;
    this.data = new DataView(buffer, offset, length);
    this.bytes = new Uint8Array(buffer, offset, length);
  }

  /** Whether somebody wants to know what is written. */
  get isTracked(): boolean {
    return this.#marks !== null;
  }

  /** Marks `length` bytes from the offset `at` on as written, if that is to be known. Before the first write to it. */
  mark(at: number, length: number): void {
    const marks = this.#marks;
    if (marks === null) return;
    if (length === 0) return;
    marks.mark(at, at + length);
    this.marked = marks.pages;
    this.markedFrom = marks.openFrom;
    this.markedEnd = marks.openEnd;
    this.writableStart = at & -PAGE_SIZE;
    this.writableMask = -PAGE_SIZE;
    this.writableLength = PAGE_SIZE;
  }

  /** Its 16-bit values. */
  get halves(): Uint16Array {
    return this.#halves ??= new Uint16Array(this.buffer, this.offset, this.end >>> 1);
  }

  /** Its 32-bit values. */
  get words(): Uint32Array {
    return this.#words ??= new Uint32Array(this.buffer, this.offset, this.end >>> 2);
  }

  /** Its 64-bit values. */
  get quads(): BigUint64Array {
    return this.#quads ??= new BigUint64Array(this.buffer, this.offset, this.end >>> 3);
  }
}

/** A view of nothing: no address lies in it. */
export const NO_VIEW: View = new View(new ArrayBuffer(0), NaN, NaN, false, null, 0);
