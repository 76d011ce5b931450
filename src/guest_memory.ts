import { GuestMemoryError, hex, MappingError } from "./core/errors.ts";
import { MemoryRange } from "./core/memory_range.ts";
import type { Mappable } from "../ffi/mappable.ts";
import type { LockedMemory } from "./locked_memory.ts";

/** What backs an address, as far as an access needs to know. */
export interface Backed {
  /** The first GPA backed in the same way, in bytes. */
  readonly start: number;
  /** One past the last. */
  readonly end: number;
  /** Whether it may be written. */
  readonly writable: boolean;
  /** Set where the memory is reached through its file, because a mapping of it could be truncated under the access. */
  readonly file: { readonly mappable: Mappable; readonly offset: number } | null;
}

/** The memory map as an access sees it. */
export interface AccessMap {
  /** Where guest memory ends, in bytes. */
  readonly length: number;
  /** What backs `gpa`; `undefined` where nothing can be accessed. */
  find(gpa: number): Backed | undefined;
  /** The host's own bytes of `[start, end)`, backed or not. */
  view(start: number, end: number): ArrayBuffer;
  /** Holds `range`, which is accessible throughout. */
  lock(range: MemoryRange, pieces: readonly Backed[]): LockedMemory;
}

/** Host memory is looked at through windows of this many bytes, so that offsets into them are small integers. */
const WINDOW = 2 ** 30;

interface Window {
  readonly data: DataView;
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly words: Uint32Array;
}

/**
 * Guest memory as it is visible now, to read and write by guest-physical address.
 *
 * Every access is checked against the memory map before a byte moves, so that whatever the caller passes ends in an
 * error and never in SIGSEGV or SIGBUS, and a write that would straddle a hole writes nothing. Multi-byte values are
 * little-endian. Accesses may be unaligned and may cross pages and mappings.
 *
 * All accessors throw `GuestMemoryError` with `kind` "out-of-range" beyond the end of guest memory, "not-mapped" where
 * nothing is, "read-only" for writes to what the guest may not write either, and `RangeError` for an address or a
 * length that is no non-negative integer.
 *
 * @example Usage
 * ```ts
 * import { Mappable, MemoryRange, RegionManager, VaMapper } from "membacking";
 *
 * using va = VaMapper.reserve(0x10000);
 * using regions = new RegionManager(va);
 * using ram = regions.newRegion({ name: "ram", range: new MemoryRange(0, 0x4000), priority: 0 });
 * using file = Mappable.memfd("ram", 0x4000);
 * ram.addMapping({ rangeInRegion: new MemoryRange(0, 0x4000), mappable: file });
 * ram.map();
 *
 * regions.memory.writeUint32(0x1ffe, 0x12345678); // crosses a page
 * console.assert(regions.memory.readUint16(0x2000) === 0x1234);
 * ```
 */
export class GuestMemory {
  readonly #map: AccessMap;
  readonly #windows: (Window | undefined)[] = [];

  // The piece that was accessed last, for as long as the memory map stays as it is.
  #window: Window | undefined;
  #windowStart = 0;
  #start = 1;
  #end = 0;
  #writableEnd = 0;

  /** Made by the manager. */
  constructor(map: AccessMap) {
    this.#map = map;
  }

  /**
   * Forgets what it knows of the memory map, which has changed.
   *
   * @internal
   */
  invalidate(): void {
    this.#start = 1;
    this.#end = this.#writableEnd = 0;
  }

  /** Where guest memory ends: one past the highest GPA there can be, in bytes. */
  get length(): number {
    return this.#map.length;
  }

  /** A copy of `length` bytes from `gpa` on. */
  read(gpa: number, length: number): Uint8Array<ArrayBuffer> {
    checkLength(length);
    this.#check(gpa, length, false);
    const into = new Uint8Array(length);
    this.readInto(gpa, into);
    return into;
  }

  /** Copies guest memory from `gpa` on into all of `into`. */
  readInto(gpa: number, into: Uint8Array): void {
    const { length } = into;
    const from = this.#readable(gpa, length);
    if (from >= 0) {
      into.set(this.#window!.bytes.subarray(from, from + length));
      return;
    }
    for (const { piece, start, end } of this.#check(gpa, length, false)) {
      const part = into.subarray(start - gpa, end - gpa);
      if (piece.file !== null) {
        viaFile(gpa, length, piece, start, (mappable, offset) => mappable.read(offset, part));
      } else {
        this.#eachWindow(start, end, (bytes, at) => part.set(bytes, at));
      }
    }
  }

  /** Copies all of `bytes` to guest memory from `gpa` on; all or, where a part of it is not writable, nothing. */
  write(gpa: number, bytes: Uint8Array): void {
    const { length } = bytes;
    const to = this.#writable(gpa, length);
    if (to >= 0) {
      this.#window!.bytes.set(bytes, to);
      return;
    }
    for (const { piece, start, end } of this.#check(gpa, length, true)) {
      const part = bytes.subarray(start - gpa, end - gpa);
      if (piece.file !== null) {
        viaFile(gpa, length, piece, start, (mappable, offset) => mappable.write(offset, part));
      } else {
        this.#eachWindow(start, end, (window, at) => window.set(part.subarray(at, at + window.length)));
      }
    }
  }

  /** Sets `length` bytes from `gpa` on to `value`, 0 to 255. */
  fill(gpa: number, length: number, value: number): void {
    checkLength(length);
    if (!Number.isInteger(value) || value < 0 || value > 255) {
      throw new RangeError(`Fill value must be a byte, 0 to 255, got ${value}`);
    }
    for (const { piece, start, end } of this.#check(gpa, length, true)) {
      if (piece.file !== null) {
        // In slices: the range may be as large as guest memory.
        const slice = new Uint8Array(Math.min(end - start, 2 ** 16)).fill(value);
        for (let at = start; at < end; at += slice.length) {
          const part = slice.subarray(0, Math.min(slice.length, end - at));
          viaFile(gpa, length, piece, at, (mappable, offset) => mappable.write(offset, part));
        }
      } else {
        this.#eachWindow(start, end, (bytes) => bytes.fill(value));
      }
    }
  }

  /** The byte at `gpa`. */
  readUint8(gpa: number): number {
    const at = this.#readable(gpa, 1);
    return at >= 0 ? this.#window!.data.getUint8(at) : this.#slowRead(gpa, 1).getUint8(0);
  }

  /** The 16-bit value at `gpa`. */
  readUint16(gpa: number): number {
    const at = this.#readable(gpa, 2);
    return at >= 0 ? this.#window!.data.getUint16(at, true) : this.#slowRead(gpa, 2).getUint16(0, true);
  }

  /** The 32-bit value at `gpa`. */
  readUint32(gpa: number): number {
    const at = this.#readable(gpa, 4);
    return at >= 0 ? this.#window!.data.getUint32(at, true) : this.#slowRead(gpa, 4).getUint32(0, true);
  }

  /** The 64-bit value at `gpa`. */
  readBigUint64(gpa: number): bigint {
    const at = this.#readable(gpa, 8);
    return at >= 0 ? this.#window!.data.getBigUint64(at, true) : this.#slowRead(gpa, 8).getBigUint64(0, true);
  }

  /** Writes the low 8 bits of `value`. */
  writeUint8(gpa: number, value: number): void {
    const at = this.#writable(gpa, 1);
    if (at >= 0) this.#window!.data.setUint8(at, value);
    else this.#slowWrite(gpa, 1, (data) => data.setUint8(0, value));
  }

  /** Writes the low 16 bits of `value`. */
  writeUint16(gpa: number, value: number): void {
    const at = this.#writable(gpa, 2);
    if (at >= 0) this.#window!.data.setUint16(at, value, true);
    else this.#slowWrite(gpa, 2, (data) => data.setUint16(0, value, true));
  }

  /** Writes the low 32 bits of `value`. */
  writeUint32(gpa: number, value: number): void {
    const at = this.#writable(gpa, 4);
    if (at >= 0) this.#window!.data.setUint32(at, value, true);
    else this.#slowWrite(gpa, 4, (data) => data.setUint32(0, value, true));
  }

  /** Writes the low 64 bits of `value`. */
  writeBigUint64(gpa: number, value: bigint): void {
    const at = this.#writable(gpa, 8);
    if (at >= 0) this.#window!.data.setBigUint64(at, value, true);
    else this.#slowWrite(gpa, 8, (data) => data.setBigUint64(0, value, true));
  }

  /**
   * Writes `replacement` at `gpa` if the value there is `expected`, atomically towards guests and other threads.
   *
   * @returns The value that was there.
   * @throws {RangeError} If `gpa` is not a multiple of 4.
   * @throws {MappingError} If the memory is a file that could be truncated, which has no atomic access.
   */
  compareExchangeUint32(gpa: number, expected: number, replacement: number): number {
    if (gpa % 4 !== 0) throw new RangeError(`Address ${hex(gpa)} of an atomic access is not a multiple of 4`);
    let at = this.#writable(gpa, 4);
    if (at < 0) {
      const [part] = this.#check(gpa, 4, true);
      if (part !== undefined && part.piece.file !== null) {
        throw new MappingError(
          "Memory of a file that can be truncated has no atomic access, seal the file against shrinking",
          MemoryRange.bounding(gpa, gpa + 4),
        );
      }
      at = this.#writable(gpa, 4);
    }
    return Atomics.compareExchange(this.#window!.words, at / 4, expected, replacement);
  }

  /**
   * Holds a range of guest memory: its bytes without a copy, valid until disposed. While it is held, requests that
   * would take that memory away fail with `MemoryLockedError`. Any number of locks may cover the same pages.
   *
   * With `write`, all of the range must be writable. Without it, stores through the bytes are harmless: where guest
   * memory is not writable they go to a copy of the page that nobody else sees.
   *
   * @throws {GuestMemoryError} If a part of the range is not mapped, or not writable.
   * @throws {MappingError} If a part of it is a file that someone may truncate, which no lock can prevent.
   * @throws {RangeError} If the range is empty.
   */
  lock(range: MemoryRange, options: { write?: boolean } = {}): LockedMemory {
    if (!(range instanceof MemoryRange)) throw new TypeError("A lock needs a MemoryRange");
    if (range.isEmpty) throw new RangeError("A lock needs a range that is not empty");
    const parts = this.#check(range.start, range.length, options.write ?? false);
    return this.#map.lock(range, parts.map(({ piece }) => piece));
  }

  /** The offset of `gpa` in the current window if `length` bytes can be read there at once, else -1. */
  #readable(gpa: number, length: number): number {
    const at = gpa - this.#windowStart;
    if (gpa >= this.#start && gpa + length <= this.#end && (at | 0) === at) return at;
    return this.#turn(gpa, length, false);
  }

  #writable(gpa: number, length: number): number {
    const at = gpa - this.#windowStart;
    if (gpa >= this.#start && gpa + length <= this.#writableEnd && (at | 0) === at) return at;
    return this.#turn(gpa, length, true);
  }

  /** Makes the piece at `gpa` the current one; -1 where the access needs the long way or is an error. */
  #turn(gpa: number, length: number, write: boolean): number {
    checkAddress(gpa);
    const piece = this.#map.find(gpa);
    if (piece === undefined || piece.file !== null || (write && !piece.writable)) return -1;
    const index = Math.floor(gpa / WINDOW);
    this.#windowStart = index * WINDOW;
    this.#window = this.#windowAt(index);
    this.#start = Math.max(piece.start, this.#windowStart);
    this.#end = Math.min(piece.end, this.#windowStart + WINDOW);
    this.#writableEnd = piece.writable ? this.#end : 0;
    return gpa + length <= this.#end ? gpa - this.#windowStart : -1;
  }

  #windowAt(index: number): Window {
    const known = this.#windows[index];
    if (known !== undefined) return known;
    const start = index * WINDOW;
    // SAFETY: the manager keeps the reservation for as long as it lives, and every access is checked first.
    const buffer = this.#map.view(start, Math.min(start + WINDOW, this.#map.length));
    const window = {
      data: new DataView(buffer),
      bytes: new Uint8Array(buffer),
      words: new Uint32Array(buffer, 0, Math.floor(buffer.byteLength / 4)),
    };
    this.#windows[index] = window;
    return window;
  }

  #eachWindow(start: number, end: number, act: (bytes: Uint8Array<ArrayBuffer>, at: number) => void): void {
    for (let at = start; at < end;) {
      const index = Math.floor(at / WINDOW);
      const stop = Math.min(end, (index + 1) * WINDOW);
      act(this.#windowAt(index).bytes.subarray(at - index * WINDOW, stop - index * WINDOW), at - start);
      at = stop;
    }
  }

  /** The pieces under an access, in order, each with the part of the access that it serves. */
  #check(gpa: number, length: number, write: boolean): { piece: Backed; start: number; end: number }[] {
    checkAddress(gpa);
    if (gpa + length > this.#map.length) throw new GuestMemoryError("out-of-range", gpa, length, this.#map.length);
    const parts: { piece: Backed; start: number; end: number }[] = [];
    for (let at = gpa; at < gpa + length;) {
      const piece = this.#map.find(at);
      if (piece === undefined) throw new GuestMemoryError("not-mapped", gpa, length, at);
      if (write && !piece.writable) throw new GuestMemoryError("read-only", gpa, length, at);
      const end = Math.min(piece.end, gpa + length);
      parts.push({ piece, start: at, end });
      at = end;
    }
    return parts;
  }

  #slowRead(gpa: number, length: number): DataView {
    return new DataView(this.read(gpa, length).buffer);
  }

  #slowWrite(gpa: number, length: number, set: (data: DataView) => void): void {
    const bytes = new Uint8Array(length);
    set(new DataView(bytes.buffer));
    this.write(gpa, bytes);
  }
}

function checkAddress(gpa: number): void {
  if (!Number.isSafeInteger(gpa) || gpa < 0) {
    throw new RangeError(`Guest-physical address must be a non-negative integer, got ${gpa}`);
  }
}

function checkLength(length: number): void {
  if (!Number.isSafeInteger(length) || length < 0) {
    throw new RangeError(`Length must be a non-negative integer, got ${length}`);
  }
}

/** An access through the file, which may have become too short by now. */
function viaFile(
  gpa: number,
  length: number,
  piece: Backed,
  at: number,
  act: (mappable: Mappable, offset: number) => void,
): void {
  if (piece.file === null) return;
  try {
    act(piece.file.mappable, piece.file.offset + (at - piece.start));
  } catch (cause) {
    throw new GuestMemoryError("not-mapped", gpa, length, at, cause);
  }
}
