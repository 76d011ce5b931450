import type { MemoryRange } from "../core/memory_range.ts";
import { revokeView } from "../../ffi/os/view.ts";

/** What a lock holds, and gives back. */
export interface LockHold {
  /** The bytes, on a buffer of the lock's own. */
  readonly buffer: ArrayBuffer;
  /** Lets the memory go. */
  release(): void;
}

/**
 * A range of guest memory that stays as it is until disposed: `bytes` is the memory itself, without a copy.
 *
 * Disposing detaches the bytes: every typed array on them then has length 0, reads `undefined` and ignores writes. So
 * does disposing the manager. If the buffer was transferred away (`postMessage` with a transfer list), it cannot be
 * taken back: disposing throws, and the memory stays locked.
 *
 * @example Usage
 * ```ts
 * import { GuestMemoryManager, MemoryRange } from "membacking";
 *
 * using guest = GuestMemoryManager.create({
 *   maxAddress: 0x10000,
 *   ram: [{ ranges: [new MemoryRange(0, 0x10000)] }],
 * });
 * using queue = guest.memory.lock(new MemoryRange(0x1000, 0x2000), { write: true });
 * queue.bytes[0] = 1;
 * console.assert(guest.memory.readUint8(0x1000) === 1);
 * ```
 */
export class LockedMemory implements Disposable {
  /** The GPA range that is locked, in bytes. */
  readonly range: MemoryRange;
  /** Its bytes, index 0 at the start of the range. Empty after dispose. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly #hold: LockHold;
  #released = false;

  /** Made by `GuestMemory.lock`. */
  constructor(range: MemoryRange, hold: LockHold) {
    this.range = range;
    this.bytes = new Uint8Array(hold.buffer);
    this.#hold = hold;
  }

  /**
   * Detaches the bytes and lets the memory go. Does nothing the second time.
   *
   * @throws {TypeError} If the buffer was transferred away; the memory stays locked.
   */
  [Symbol.dispose](): void {
    if (this.#released) return;
    revokeView(this.#hold.buffer);
    this.#released = true;
    this.#hold.release();
  }
}
