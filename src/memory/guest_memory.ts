import { lengthOf, plainBytes } from "../../ffi/os/plain_bytes.ts";
import { MappingError } from "../core/errors.ts";
import { hex } from "../core/hex.ts";
import { checkNumber, MemoryRange } from "../core/memory_range.ts";
import { type AccessMap, checkSteady, type Part, partsOf, readFile, viaFile } from "./access_map.ts";
import { MappedMemory } from "./mapped_memory.ts";
import { NO_VIEW, View, WINDOW } from "./view.ts";

/** Has `memory` forget what it knows of the memory map, which is about to change. */
export let forgetMap: (memory: GuestMemory) => void;

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
export class GuestMemory extends MappedMemory {
  static {
    forgetMap = (memory) => {
      memory.#view = NO_VIEW;
      if (memory.#views.length > 0) memory.#views.length = 0;
    };
  }

  readonly #map: AccessMap;
  /** For each window the piece that was accessed last: most accesses are to the same piece again. */
  readonly #views: (View | undefined)[] = [];
  /** The piece that was accessed last of all. */
  #view = NO_VIEW;

  /** Made by the manager. */
  constructor(map: AccessMap) {
    super(map);
    this.#map = map;
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
      ? new Uint8Array(this.#view.buffer, this.#view.offset + from, length)
      : this.#slowRead(gpa, length);
    set.call(into, source);
  }

  /** Copies all of `bytes` to guest memory from `gpa` on; all or, where a part of it is not writable, nothing. */
  write(gpa: number, bytes: Uint8Array): void {
    const length = lengthOf(bytes);
    const to = this.#writable(gpa, length);
    if (to < 0) return this.#slowWrite(gpa, bytes);
    const view = this.#view;
    set.call(view.bytes, bytes, to);
    // Another thread may have made a shared array longer since it was looked at: then that much has been written.
    const now = view.isTracked ? lengthOf(bytes) : length;
    if (now !== length) view.mark(to, Math.min(now, view.end - to));
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
    checkBigint(value);
    const at = this.#writable(gpa, 8);
    if (at >= 0) this.#view.data.setBigUint64(at, value, true);
    else this.#slowWrite(gpa, bytesOf(8, (data) => data.setBigUint64(0, value, true)));
  }

  /**
   * The 16-bit value at `gpa`, read atomically: never torn, and in one order with all other atomic accesses of guests
   * and threads (sequentially consistent). So are all `load`, `store` and `compareExchange` accessors.
   *
   * @throws {RangeError} If `gpa` is not a multiple of 2.
   * @throws {MappingError} If the memory is a file that may be truncated, which has no atomic access.
   */
  loadUint16(gpa: number): number {
    const at = this.#atomic(gpa, 2, false);
    return Atomics.load(this.#view.halves, at / 2);
  }

  /** The 32-bit value at `gpa`, a multiple of 4; as `loadUint16`. */
  loadUint32(gpa: number): number {
    const at = this.#atomic(gpa, 4, false);
    return Atomics.load(this.#view.words, at / 4);
  }

  /** The 64-bit value at `gpa`, a multiple of 8; as `loadUint16`. */
  loadBigUint64(gpa: number): bigint {
    const at = this.#atomic(gpa, 8, false);
    return Atomics.load(this.#view.quads, at / 8);
  }

  /** Writes the low 16 bits of `value` at `gpa`, a multiple of 2, atomically; as `loadUint16`. */
  storeUint16(gpa: number, value: number): void {
    checkValue(value);
    const at = this.#atomic(gpa, 2, true);
    Atomics.store(this.#view.halves, at / 2, value);
  }

  /** Writes the low 32 bits of `value` at `gpa`, a multiple of 4, atomically; as `loadUint16`. */
  storeUint32(gpa: number, value: number): void {
    checkValue(value);
    const at = this.#atomic(gpa, 4, true);
    Atomics.store(this.#view.words, at / 4, value);
  }

  /** Writes the low 64 bits of `value` at `gpa`, a multiple of 8, atomically; as `loadUint16`. */
  storeBigUint64(gpa: number, value: bigint): void {
    checkBigint(value);
    const at = this.#atomic(gpa, 8, true);
    Atomics.store(this.#view.quads, at / 8, value);
  }

  /**
   * Writes `replacement` at `gpa`, a multiple of 2, if the value there is `expected`, atomically; as `loadUint16`.
   *
   * @returns The value that was there.
   */
  compareExchangeUint16(gpa: number, expected: number, replacement: number): number {
    checkValue(expected);
    checkValue(replacement);
    const at = this.#atomic(gpa, 2, true);
    return Atomics.compareExchange(this.#view.halves, at / 2, expected, replacement);
  }

  /** As `compareExchangeUint16`, with 32 bits at a multiple of 4. */
  compareExchangeUint32(gpa: number, expected: number, replacement: number): number {
    checkValue(expected);
    checkValue(replacement);
    const at = this.#atomic(gpa, 4, true);
    return Atomics.compareExchange(this.#view.words, at / 4, expected, replacement);
  }

  /** As `compareExchangeUint16`, with 64 bits at a multiple of 8. */
  compareExchangeBigUint64(gpa: number, expected: bigint, replacement: bigint): bigint {
    checkBigint(expected);
    checkBigint(replacement);
    const at = this.#atomic(gpa, 8, true);
    return Atomics.compareExchange(this.#view.quads, at / 8, expected, replacement);
  }

  /** The offset of `gpa` in the current view if `length` bytes can be read there at once, else -1. */
  #readable(gpa: number, length: number): number {
    if (typeof gpa === "number") {
      const { base, end } = this.#view;
      const exact = gpa - base;
      // A small integer for the engine too, wherever it comes from.
      const at = exact | 0;
      if (at === exact && at >= 0 && at + length <= end) return at;
    }
    return this.#turn(gpa, length, false) | 0;
  }

  /** The same for writing. Where writes are tracked, the pages count as written from here on. */
  #writable(gpa: number, length: number): number {
    if (typeof gpa === "number") {
      const view = this.#view;
      const exact = gpa - view.base;
      const at = exact | 0;
      if (at === exact) {
        // Where nobody tracks writes all that can be written, else the page that was marked last: most go there. What is
        // compared comes out alike for writes anywhere; whether they lie above or below would be guessed wrong half the time.
        const start = at & view.writableMask;
        if (at + length <= start + view.writableLength) {
          if (start === view.writableStart) return at;
          const page = at >>> 12;
          if (page >= view.markedFrom && page < view.markedEnd && length > 0) {
            view.marked[page] = 1;
            view.writableStart = start;
            return at;
          }
        }
      }
    }
    return this.#turn(gpa, length, true) | 0;
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
      const { buffer, offset } = this.#map.bytesAt(base);
      view = new View(buffer, base, end, piece.writable, this.#map.marks?.window(base, end) ?? null, offset);
      this.#views[index] = view;
    }
    this.#view = view;
    const at = gpa - view.base;
    if (write && at + length <= view.end) view.mark(at, length);
    return at + length <= view.end && (view.isWritable || !write) ? at : -1;
  }

  /** Where an atomic access of `size` bytes at `gpa` is in the current view. */
  #atomic(gpa: number, size: number, write: boolean): number {
    checkAddress(gpa);
    if (gpa % size !== 0) throw new RangeError(`Address ${hex(gpa)} of an atomic access is not a multiple of ${size}`);
    const at = write ? this.#writable(gpa, size) : this.#readable(gpa, size);
    if (at >= 0) return at;
    for (const part of this.#check(gpa, size, write)) checkSteady(part, "has no atomic access");
    throw new MappingError("Memory cannot be accessed atomically", MemoryRange.bounding(gpa, gpa + size));
  }

  /** The host's own bytes of `[start, end)`, which is backed in one way. */
  #hostBytes(start: number, end: number): Uint8Array<ArrayBuffer> {
    const { buffer, offset } = this.#map.bytesAt(start);
    return new Uint8Array(buffer, offset, end - start);
  }

  #check(gpa: number, length: number, write: boolean): Part[] {
    return partsOf(this.#map, gpa, length, write);
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

function checkBigint(value: bigint): void {
  if (typeof value !== "bigint") throw new TypeError(`A bigint is needed, got ${typeof value}`);
}

// The language's own, which an object of the caller's cannot replace: what it says must be what is checked and copied.
const { set } = Uint8Array.prototype;
