import type { WindowMarks } from "./write_marks.ts";

/** Host memory is looked at in windows of this many bytes, so that offsets into them are small integers. */
export const WINDOW: number = 2 ** 30;

/**
 * A piece of guest memory that is backed in one way, as far as it lies in one window. The views on it end where it
 * ends, so that nothing done through them leaves it.
 */
export class View {
  /** The GPA of its first byte. */
  readonly base: number;
  /** Its length in bytes. */
  readonly end: number;
  /** Its length where it may be written, else -1; -1 too before the first write while writes are tracked. */
  writableEnd: number;
  /** While writes are tracked, once there was one: a byte for each page, to be set to 1 where it is written. */
  marked: Uint8Array | null = null;
  /** What its bytes are in: all of host memory. */
  readonly buffer: ArrayBuffer;
  /** Where in the buffer its first byte is. */
  readonly offset: number;
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
    const length = end - base;
    this.base = base;
    this.end = length;
    this.writableEnd = writable && marks === null ? length : -1;
    this.#marks = writable ? marks : null;
    this.buffer = buffer;
    this.offset = offset;
    this.data = new DataView(buffer, offset, length);
    this.bytes = new Uint8Array(buffer, offset, length);
  }

  /** Marks `length` bytes from the offset `at` on as written, if that is to be known. Before the first write to it. */
  mark(at: number, length: number): void {
    const marks = this.#marks;
    if (marks === null) return;
    if (this.marked === null) {
      this.marked = marks.arm();
      this.writableEnd = this.end;
    }
    marks.mark(at, at + length);
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
export const NO_VIEW: View = new View(new ArrayBuffer(0), 2 ** 53, 2 ** 53, false, null, 0);
