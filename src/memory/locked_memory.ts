import type { MemoryRange } from "../core/memory_range.ts";
import { isDetached, revokeView } from "../../ffi/os/view.ts";

/** What a lock is for. */
export interface LockOptions {
  /** Whether all of it must be writable; `false` by default. */
  readonly write?: boolean;
}

/** What a lock holds, and gives back. */
export interface LockHold {
  /** The bytes, on a buffer of the lock's own. */
  readonly buffer: ArrayBuffer;
  /** Lets the memory go. */
  release(): void;
  /** Is called before, where the bytes are a copy: stand-ins of memory, in tests. */
  writeBack?(): void;
}

/**
 * A range of guest memory that stays as it is until disposed: `bytes` is the memory itself, without a copy.
 *
 * Disposing detaches the bytes: every typed array on them then has length 0, reads `undefined` and ignores writes. So
 * does disposing the manager. If the buffer was transferred away (`postMessage` with a transfer list), it cannot be
 * taken back: disposing throws, and the memory stays locked.
 *
 * Input and output that the bytes were given to (`await file.read(lock.bytes)`) and that is under way when the lock goes
 * cannot be called back. It ends where guest memory is at those addresses by then, as late DMA of a device would; or,
 * once the manager is gone, in an error (EFAULT): host addresses that were locked stay reserved and inaccessible, for as
 * long as the process has other addresses left. So dispose a lock when its input and output is done.
 *
 * A lock that is dropped without being disposed is released some time after the garbage collector has found its bytes;
 * the manager's logger gets a warning.
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
   * Detaches the bytes and lets the memory go. Does nothing the second time. Wait for all input and output that the
   * bytes were given to before.
   *
   * @throws {TypeError} If the buffer was transferred away; the memory stays locked.
   */
  [Symbol.dispose](): void {
    if (this.#released) return;
    if (!isDetached(this.#hold.buffer)) this.#hold.writeBack?.();
    revokeView(this.#hold.buffer);
    this.#released = true;
    this.#hold.release();
  }
}

/** Several locks that are taken and released together; made by `lockAll`. */
export class LockedRanges implements Disposable {
  /** The locks, in the order of the ranges. */
  readonly locks: readonly LockedMemory[];

  /** Made by `lockAll`. */
  constructor(locks: readonly LockedMemory[]) {
    this.locks = Object.freeze([...locks]);
  }

  /**
   * Releases all of them. Does nothing the second time.
   *
   * @throws {TypeError} If a buffer was transferred away; that memory stays locked, all other is released.
   */
  [Symbol.dispose](): void {
    const failures: unknown[] = [];
    for (const lock of this.locks) {
      try {
        lock[Symbol.dispose]();
      } catch (error) {
        failures.push(error);
      }
    }
    if (failures.length === 1) throw failures[0];
    if (failures.length > 1) throw new AggregateError(failures, `${failures.length} locks could not be released`);
  }
}
