import { lengthOf, plainBytes } from "../../ffi/os/plain_bytes.ts";
import { type AccessMap, checkFileSize, type Part, readFile, viaFile } from "./access_map.ts";
import { GuestMemoryError, MappingError } from "../core/errors.ts";
import { hex } from "../core/hex.ts";
import { checkNumber, MemoryRange } from "../core/memory_range.ts";
import type { LockedMemory } from "./locked_memory.ts";

/** Host memory is looked at in windows of this many bytes, so that offsets into them are small integers. */
const WINDOW = 2 ** 30;

/**
 * A piece of guest memory that is backed in one way, as far as it lies in one window. The views on it end where it
 * ends, so that nothing done through them leaves it.
 */
interface View {
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
  readonly words: Uint32Array;
}

function viewOf(buffer: ArrayBuffer, base: number, end: number, writable: boolean): View {
  const length = end - base;
  return {
    base,
    end: length,
    writableEnd: writable ? length : -1,
    buffer,
    data: new DataView(buffer, base, length),
    bytes: new Uint8Array(buffer, base, length),
    words: new Uint32Array(buffer, base, length >>> 2),
  };
}

const NO_VIEW: View = { ...viewOf(new ArrayBuffer(0), 0, 0, false), base: 2 ** 53 };

/**
 * Guest memory as it is visible now, to read and write by guest-physical address.
 *
 * Every access is checked against the memory map before a byte moves, so that whatever the caller passes ends in an
 * error and never in SIGSEGV or SIGBUS, and a write that would straddle a hole writes nothing. Multi-byte values are
 * little-endian. Accesses may be unaligned and may cross pages and mappings. An access of no bytes is possible at any
 * address up to the end of guest memory.
 *
 * All accessors throw
 *
 * - `GuestMemoryError`, with `kind` "out-of-range" beyond the end of guest memory, "not-mapped" where nothing is,
 *   "read-only" for writes to what the guest may not write either;
 * - `RangeError` for an address or a length that is no non-negative integer;
 * - `TypeError` for a value of another type than declared;
 * - `ReentrancyError` inside a callback of the region manager, while the memory map is being changed;
 * - `DisposedError` once the region manager is gone.
 *
 * A file that is not sealed against shrinking is read and written by system calls, so that an access survives it being
 * truncated meanwhile.
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
  /** All of host memory, made at the first access. A second one would cost another garbage collection. */
  #host: ArrayBuffer | undefined;
  /** For each window the piece that was accessed last: most accesses are to the same piece again. */
  readonly #views: (View | undefined)[] = [];
  /** The piece that was accessed last of all. */
  #view = NO_VIEW;

  /** Made by the manager. */
  constructor(map: AccessMap) {
    this.#map = map;
  }

  /**
   * Forgets what it knows of the memory map, which is about to change.
   *
   * @internal
   */
  invalidate(): void {
    this.#view = NO_VIEW;
    if (this.#views.length > 0) this.#views.length = 0;
  }

  /** Where guest memory ends: one past the highest GPA there can be, in bytes. */
  get length(): number {
    return this.#map.length;
  }

  /** A copy of `length` bytes from `gpa` on. */
  read(gpa: number, length: number): Uint8Array<ArrayBuffer> {
    checkNumber(length, "Length");
    const from = this.#readable(gpa, length);
    return from >= 0 ? this.#view.bytes.slice(from, from + length) : this.#slowRead(gpa, length);
  }

  /** Copies guest memory from `gpa` on into all of `into`. */
  readInto(gpa: number, into: Uint8Array): void {
    const length = lengthOf(into);
    const from = this.#readable(gpa, length);
    // Quicker than `subarray` of the view's bytes, which asks for the species of array first.
    const source = from >= 0
      ? new Uint8Array(this.#view.buffer, this.#view.base + from, length)
      : this.#slowRead(gpa, length);
    set.call(into, source);
  }

  /** Copies all of `bytes` to guest memory from `gpa` on; all or, where a part of it is not writable, nothing. */
  write(gpa: number, bytes: Uint8Array): void {
    const to = this.#writable(gpa, lengthOf(bytes));
    if (to >= 0) set.call(this.#view.bytes, bytes, to);
    else this.#slowWrite(gpa, bytes);
  }

  /** Sets `length` bytes from `gpa` on to `value`, 0 to 255. */
  fill(gpa: number, length: number, value: number): void {
    checkNumber(length, "Length");
    if (!Number.isInteger(value) || value < 0 || value > 255) {
      throw new RangeError(`Fill value must be a byte, 0 to 255, got ${value}`);
    }
    const to = this.#writable(gpa, length);
    if (to >= 0) {
      this.#view.bytes.fill(value, to, to + length);
      return;
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
        this.#hostBytes(start, end).fill(value);
      }
    }
  }

  /** The byte at `gpa`. */
  readUint8(gpa: number): number {
    const at = this.#readable(gpa, 1);
    return at >= 0 ? this.#view.data.getUint8(at) : dataOf(this.#slowRead(gpa, 1)).getUint8(0);
  }

  /** The 16-bit value at `gpa`. */
  readUint16(gpa: number): number {
    const at = this.#readable(gpa, 2);
    return at >= 0 ? this.#view.data.getUint16(at, true) : dataOf(this.#slowRead(gpa, 2)).getUint16(0, true);
  }

  /** The 32-bit value at `gpa`. */
  readUint32(gpa: number): number {
    const at = this.#readable(gpa, 4);
    return at >= 0 ? this.#view.data.getUint32(at, true) : dataOf(this.#slowRead(gpa, 4)).getUint32(0, true);
  }

  /** The 64-bit value at `gpa`. */
  readBigUint64(gpa: number): bigint {
    const at = this.#readable(gpa, 8);
    return at >= 0 ? this.#view.data.getBigUint64(at, true) : dataOf(this.#slowRead(gpa, 8)).getBigUint64(0, true);
  }

  /** Writes the low 8 bits of `value`. */
  writeUint8(gpa: number, value: number): void {
    checkValue(value);
    const at = this.#writable(gpa, 1);
    if (at >= 0) this.#view.data.setUint8(at, value);
    else this.#slowWrite(gpa, bytesOf(1, (data) => data.setUint8(0, value)));
  }

  /** Writes the low 16 bits of `value`. */
  writeUint16(gpa: number, value: number): void {
    checkValue(value);
    const at = this.#writable(gpa, 2);
    if (at >= 0) this.#view.data.setUint16(at, value, true);
    else this.#slowWrite(gpa, bytesOf(2, (data) => data.setUint16(0, value, true)));
  }

  /** Writes the low 32 bits of `value`. */
  writeUint32(gpa: number, value: number): void {
    checkValue(value);
    const at = this.#writable(gpa, 4);
    if (at >= 0) this.#view.data.setUint32(at, value, true);
    else this.#slowWrite(gpa, bytesOf(4, (data) => data.setUint32(0, value, true)));
  }

  /** Writes the low 64 bits of `value`. */
  writeBigUint64(gpa: number, value: bigint): void {
    if (typeof value !== "bigint") throw new TypeError(`A bigint is needed, got ${typeof value}`);
    const at = this.#writable(gpa, 8);
    if (at >= 0) this.#view.data.setBigUint64(at, value, true);
    else this.#slowWrite(gpa, bytesOf(8, (data) => data.setBigUint64(0, value, true)));
  }

  /**
   * Writes `replacement` at `gpa` if the value there is `expected`, atomically towards guests and other threads.
   *
   * @returns The value that was there.
   * @throws {RangeError} If `gpa` is not a multiple of 4.
   * @throws {MappingError} If the memory is a file that could be truncated, which has no atomic access.
   */
  compareExchangeUint32(gpa: number, expected: number, replacement: number): number {
    checkValue(expected);
    checkValue(replacement);
    checkAddress(gpa);
    if (gpa % 4 !== 0) throw new RangeError(`Address ${hex(gpa)} of an atomic access is not a multiple of 4`);
    const at = this.#writable(gpa, 4);
    if (at >= 0) return Atomics.compareExchange(this.#view.words, at / 4, expected, replacement);
    this.#check(gpa, 4, true);
    throw new MappingError(
      "Memory of a file that can be truncated has no atomic access, seal the file against shrinking",
      MemoryRange.bounding(gpa, gpa + 4),
    );
  }

  /**
   * Holds a range of guest memory: its bytes without a copy, valid until disposed. While it is held, requests that
   * would take that memory away fail with `MemoryLockedError`. Any number of locks may cover the same pages.
   *
   * With `write`, all of the range must be writable. Without it, stores through the bytes are harmless: where guest
   * memory is not writable they go to a copy of the page that nobody else sees.
   *
   * @example Usage
   * ```ts
   * import { GuestMemoryManager, MemoryLockedError, MemoryRange } from "membacking";
   *
   * const ram = new MemoryRange(0, 0x10_0000);
   * using guest = GuestMemoryManager.create({ maxAddress: 0x20_0000, ram: [{ ranges: [ram] }] });
   * {
   *   using ring = guest.memory.lock(MemoryRange.of(0x8000, 0x1000), { write: true });
   *   ring.bytes.set([1, 2, 3]);
   *   try {
   *     guest.setRamVisibility(ram, "unmapped");
   *   } catch (error) {
   *     console.assert(error instanceof MemoryLockedError);
   *   }
   * }
   * guest.setRamVisibility(ram, "unmapped");
   * ```
   *
   * @throws {GuestMemoryError} If a part of the range is not mapped, or not writable.
   * @throws {MappingError} If a part of it is a file that someone may truncate, which no lock can prevent.
   * @throws {DisposedError} If a part of it belongs to a region that is being torn down.
   * @throws {RangeError} If the range is empty.
   */
  lock(range: MemoryRange, options: { write?: boolean } = {}): LockedMemory {
    if (!(range instanceof MemoryRange)) throw new TypeError("A lock needs a MemoryRange");
    const own = new MemoryRange(range.start, range.end);
    if (own.isEmpty) throw new RangeError("A lock needs a range that is not empty");
    const parts = this.#check(own.start, own.length, options.write ?? false);
    return this.#map.lock(own, parts.map(({ piece }) => piece));
  }

  /** The offset of `gpa` in the current view if `length` bytes can be read there at once, else -1. */
  #readable(gpa: number, length: number): number {
    const { base, end } = this.#view;
    const at = gpa - base;
    if (at >= 0 && at + length <= end && (at | 0) === at && typeof gpa === "number") return at;
    return this.#turn(gpa, length, false);
  }

  /** The same for writing. */
  #writable(gpa: number, length: number): number {
    const { base, writableEnd } = this.#view;
    const at = gpa - base;
    if (at >= 0 && at + length <= writableEnd && (at | 0) === at && typeof gpa === "number") return at;
    return this.#turn(gpa, length, true);
  }

  /** Makes the piece at `gpa` the current view; -1 where the access needs the long way or is an error. */
  #turn(gpa: number, length: number, write: boolean): number {
    checkAddress(gpa);
    const index = Math.floor(gpa / WINDOW);
    let view = this.#views[index];
    if (view === undefined || gpa < view.base || gpa >= view.base + view.end) {
      const piece = this.#map.find(gpa);
      if (piece === undefined || piece.file !== null) return -1;
      const base = Math.max(piece.start, index * WINDOW);
      const end = Math.min(piece.end, (index + 1) * WINDOW);
      view = viewOf(this.#hostBuffer(), base, end, piece.writable);
      this.#views[index] = view;
    }
    this.#view = view;
    const at = gpa - view.base;
    return at + length <= (write ? view.writableEnd : view.end) ? at : -1;
  }

  #hostBuffer(): ArrayBuffer {
    // SAFETY: the manager keeps the reservation for as long as it lives, and every access is checked first.
    return this.#host ??= this.#map.view(0, this.#map.length);
  }

  /** The host's own bytes of `[start, end)`. */
  #hostBytes(start: number, end: number): Uint8Array<ArrayBuffer> {
    return new Uint8Array(this.#hostBuffer(), start, end - start);
  }

  /** The parts of an access, in order. */
  #check(gpa: number, length: number, write: boolean): Part[] {
    checkAddress(gpa);
    if (gpa + length > this.#map.length) throw new GuestMemoryError("out-of-range", gpa, length, this.#map.length);
    const parts: Part[] = [];
    for (let at = gpa; at < gpa + length;) {
      const piece = this.#map.find(at);
      if (piece === undefined) throw new GuestMemoryError("not-mapped", gpa, length, at);
      if (write && !piece.writable) throw new GuestMemoryError("read-only", gpa, length, at);
      const end = Math.min(piece.end, gpa + length);
      parts.push({ piece, start: at, end });
      at = end;
    }
    // One transfer is whole or an error by itself. Of several, none may begin if another cannot be whole.
    if (write && parts.length > 1) { for (const part of parts) checkFileSize(gpa, length, part); }
    return parts;
  }

  #slowRead(gpa: number, length: number): Uint8Array<ArrayBuffer> {
    const parts = this.#check(gpa, length, false);
    const into = new Uint8Array(length);
    for (const { piece, start, end } of parts) {
      if (piece.file !== null) {
        const part = into.subarray(start - gpa, end - gpa);
        viaFile(gpa, length, piece, start, (mappable, offset) => readFile(mappable, offset, part));
      } else {
        into.set(this.#hostBytes(start, end), start - gpa);
      }
    }
    return into;
  }

  #slowWrite(gpa: number, source: Uint8Array): void {
    const length = lengthOf(source);
    // A plain array, whatever the caller made of theirs: no code of theirs runs once the access has been checked.
    const plain = plainBytes(source);
    for (const { piece, start, end } of this.#check(gpa, length, true)) {
      const part = plain.subarray(start - gpa, end - gpa);
      if (piece.file === null) this.#hostBytes(start, end).set(part);
      else viaFile(gpa, length, piece, start, (mappable, offset) => mappable.write(offset, part));
    }
  }
}

function bytesOf(length: number, write: (data: DataView) => void): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(length);
  write(dataOf(bytes));
  return bytes;
}

function dataOf({ buffer, byteOffset, byteLength }: Uint8Array): DataView {
  return new DataView(buffer, byteOffset, byteLength);
}

function checkAddress(gpa: number): void {
  checkNumber(gpa, "Guest-physical address");
}

/** Numbers are converted here or not at all: a conversion of the caller's could change the memory map midway. */
function checkValue(value: number): void {
  if (typeof value !== "number") throw new TypeError(`A number is needed, got ${typeof value}`);
}

// The language's own, which an object of the caller's cannot replace: what it says must be what is checked and copied.
const { set } = Uint8Array.prototype;
