import type { Mappable } from "../../ffi/files/mappable.ts";
import { checkNumber, type MemoryRange, ownFilledRange, ownRange } from "../core/memory_range.ts";
import { type AccessMap, checkSteady, isAccessible, partsOf } from "./access_map.ts";
import { type LockedMemory, LockedRanges, type LockOptions } from "./locked_memory.ts";
import type { MemoryPiece } from "./memory_piece.ts";
import { transfer } from "./transfers.ts";

/**
 * What is mapped in guest memory: to look at, to lock in place, and to exchange with files. `GuestMemory` adds the
 * accessors.
 */
export class MappedMemory {
  readonly #map: AccessMap;

  /** Made by the manager. */
  constructor(map: AccessMap) {
    this.#map = map;
  }

  /** Where guest memory ends: one past the highest GPA there can be, in bytes. */
  get length(): number {
    return this.#map.length;
  }

  /**
   * Reads `length` bytes of `file` from `fileOffset` on to guest memory at `gpa`, by the kernel and without a copy in
   * JavaScript. Nothing has moved where it throws anything but a `FileTransferError`.
   *
   * @example A kernel image, loaded from its file
   * ```ts
   * import { GuestMemoryManager, Mappable, MemoryRange } from "membacking";
   *
   * using guest = GuestMemoryManager.create({
   *   maxAddress: 0x100_0000,
   *   ram: [{ ranges: [new MemoryRange(0, 0x100_0000)] }],
   * });
   * using image = Mappable.memfd("kernel", 0x2000); // or Mappable.open("vmlinux")
   * image.write(0x1000, new Uint8Array([0xf4]));
   * guest.memory.readFrom(image, 0x1000, 0x10_0000, 0x1000);
   * console.assert(guest.memory.readUint8(0x10_0000) === 0xf4);
   * ```
   *
   * @throws {RangeError} If that goes past the end of the file.
   * @throws {FileTransferError} If it ended early; `done` says how many bytes have moved, and `cause` why no more.
   */
  readFrom(file: Mappable, fileOffset: number, gpa: number, length: number): void {
    transfer(this.#map, "in", file, fileOffset, gpa, length);
  }

  /** Writes `length` bytes of guest memory at `gpa` to `file` at `fileOffset`, which keeps its size; as `readFrom`. */
  writeTo(file: Mappable, fileOffset: number, gpa: number, length: number): void {
    transfer(this.#map, "out", file, fileOffset, gpa, length);
  }

  /** What shows at `gpa`, as far as it reaches in both directions; `null` for nothing, and for what is no address. */
  find(gpa: number): MemoryPiece | null {
    return Number.isSafeInteger(gpa) && gpa >= 0 && gpa < this.#map.length ? this.#map.piece(gpa) : null;
  }

  /** What is backed, or what of `range` is, cut to it, in order: as it is at the call, whatever happens meanwhile. */
  pieces(range?: MemoryRange): IterableIterator<MemoryPiece> {
    const own = range === undefined ? undefined : ownRange(range, "pieces");
    const { start, end } = own ?? { start: 0, end: this.#map.length };
    return this.#map.pieces(start, end);
  }

  /** Whether all of `length` bytes at `gpa` can be read, or written with `write`. Throws at nothing it is asked. */
  isMapped(gpa: number, length: number, options: { write?: boolean } = {}): boolean {
    return isAccessible(this.#map, gpa, length, options.write ?? false);
  }

  /**
   * The host address of `length` bytes at `gpa`, which lie there one behind the other. Good for as long as they are
   * locked: without a lock the next request may put other memory there.
   *
   * @throws {GuestMemoryError} If a part is not mapped or, with `write`, not writable.
   * @throws {MappingError} If a part is a file that may be truncated, which no lock can prevent.
   */
  hostAddress(gpa: number, length: number, options: { write?: boolean } = {}): number {
    checkNumber(length, "Length");
    for (const part of partsOf(this.#map, gpa, length, options.write ?? false)) {
      checkSteady(part, "has no host address to use");
    }
    return this.#map.base + gpa;
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
  lock(range: MemoryRange, options: LockOptions = {}): LockedMemory {
    const own = ownFilledRange(range, "A lock");
    const write = options.write ?? false;
    const parts = partsOf(this.#map, own.start, own.length, write);
    return this.#map.lock(own, parts.map(({ piece }) => piece), write);
  }

  /**
   * Locks several ranges, such as the buffers of a descriptor chain: all of them, in the order given, or none.
   *
   * @throws As `lock` does, for the first range that cannot be locked.
   */
  lockAll(ranges: readonly MemoryRange[], options: LockOptions = {}): LockedRanges {
    const { write = false } = options;
    if (!Array.isArray(ranges)) throw new TypeError("lockAll needs an array of MemoryRange");
    using stack = new DisposableStack();
    // A copy: the caller's array may be anything that passes for one.
    const locks = Array.from(ranges, (range: MemoryRange) => stack.use(this.lock(range, { write })));
    const set = new LockedRanges(locks);
    stack.move();
    return set;
  }
}
