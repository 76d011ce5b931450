import type { GuestMemory } from "membacking";
import type { QueueLayout } from "./split_queue.ts";

/** Stands in for the guest's driver: fills descriptors and rings as a driver in a guest does, by plain stores. */
export class Driver {
  readonly #memory: GuestMemory;
  readonly #layout: QueueLayout;
  #available = 0;
  #taken = 0;

  constructor(memory: GuestMemory, layout: QueueLayout) {
    this.#memory = memory;
    this.#layout = layout;
  }

  /** Writes one descriptor. */
  describe(index: number, gpa: number, length: number, flags: number, next = 0): void {
    const at = this.#layout.descriptors + index * 16;
    this.#memory.writeBigUint64(at, BigInt(gpa));
    this.#memory.writeUint32(at + 8, length);
    this.#memory.writeUint16(at + 12, flags);
    this.#memory.writeUint16(at + 14, next);
  }

  /** Makes the chain that begins with `head` available. */
  submit(head: number): void {
    const { available, size } = this.#layout;
    this.#memory.writeUint16(available + 4 + this.#available % size * 2, head);
    this.#available = this.#available + 1 & 0xffff;
    this.#memory.storeUint16(available + 2, this.#available);
  }

  /** The next chain that came back, `null` if none did. */
  take(): { head: number; written: number } | null {
    const { used, size } = this.#layout;
    if (this.#memory.loadUint16(used + 2) === this.#taken) return null;
    const at = used + 4 + this.#taken % size * 8;
    this.#taken = this.#taken + 1 & 0xffff;
    return { head: this.#memory.readUint32(at), written: this.#memory.readUint32(at + 4) };
  }
}
