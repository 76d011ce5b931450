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
  /** Its length where it may be written, else -1. */
  readonly writableEnd: number;
  /** All of host memory, in which byte `base` is the view's first. */
  readonly buffer: ArrayBuffer;
  readonly data: DataView;
  readonly bytes: Uint8Array<ArrayBuffer>;
  // Made when first used: most views never are used atomically.
  #halves: Uint16Array | null = null;
  #words: Uint32Array | null = null;
  #quads: BigUint64Array | null = null;

  /** Of GPAs `[base, end)`, which begin at byte `offset` of the buffer. */
  constructor(buffer: ArrayBuffer, base: number, end: number, writable: boolean, offset: number = base) {
    const length = end - base;
    this.base = base;
    this.end = length;
    this.writableEnd = writable ? length : -1;
    this.buffer = buffer;
    this.data = new DataView(buffer, offset, length);
    this.bytes = new Uint8Array(buffer, offset, length);
  }

  /** Its 16-bit values. */
  get halves(): Uint16Array {
    return this.#halves ??= new Uint16Array(this.buffer, this.base, this.end >>> 1);
  }

  /** Its 32-bit values. */
  get words(): Uint32Array {
    return this.#words ??= new Uint32Array(this.buffer, this.base, this.end >>> 2);
  }

  /** Its 64-bit values. */
  get quads(): BigUint64Array {
    return this.#quads ??= new BigUint64Array(this.buffer, this.base, this.end >>> 3);
  }
}

/** A view of nothing: no address lies in it. */
export const NO_VIEW: View = new View(new ArrayBuffer(0), 2 ** 53, 2 ** 53, false, 0);
