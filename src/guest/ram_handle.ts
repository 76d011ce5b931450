import type { MemoryRange } from "../core/memory_range.ts";
import type { Ram, RamBlock } from "./ram.ts";

/**
 * RAM that was added to a guest, to be taken away again.
 *
 * @example Memory that is plugged in and out
 * ```ts
 * import { GuestMemoryManager, MemoryRange } from "membacking";
 *
 * using guest = GuestMemoryManager.create({
 *   maxAddress: 0x1_0000_0000,
 *   ram: [{ ranges: [new MemoryRange(0, 0x800_0000)] }],
 * });
 * const dimm = guest.addRam({ name: "dimm1", ranges: [MemoryRange.of(0x4000_0000, 0x800_0000)] });
 * guest.memory.writeUint32(0x4000_0000, 7);
 *
 * await dimm.remove({ signal: AbortSignal.timeout(1000) }); // once nobody holds a lock on it
 * console.assert(guest.memory.find(0x4000_0000) === null);
 * ```
 */
export class RamHandle implements Disposable, AsyncDisposable {
  readonly #ram: Ram;
  readonly #block: RamBlock;

  /** Made by `GuestMemoryManager.addRam`. */
  constructor(ram: Ram, block: RamBlock) {
    this.#ram = ram;
    this.#block = block;
  }

  /** What its regions are called. */
  get name(): string {
    return this.#block.backing.name;
  }

  /** Its GPA ranges, as they were given. */
  get ranges(): readonly MemoryRange[] {
    return Object.freeze([...this.#block.backing.ranges]);
  }

  /**
   * Takes it away once nobody holds a lock on it; new locks are refused from now on. Aborting leaves it as it was. Does
   * nothing if it is gone.
   *
   * @throws {MappingError} If a target failed; it stays.
   * @throws The signal's reason, if it aborts first.
   */
  remove(options: { signal?: AbortSignal } = {}): Promise<void> {
    return this.#ram.drain(this.#block, options.signal);
  }

  /**
   * Takes it away now. Does nothing if it is gone.
   *
   * @throws {MemoryLockedError} If it is locked; it stays, and disposal may be tried again.
   * @throws {MappingError} If a target failed; it stays, and disposal may be tried again.
   */
  [Symbol.dispose](): void {
    if (this.#ram.has(this.#block)) this.#ram.remove(this.#block);
  }

  /** As `remove`. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.remove();
  }
}
