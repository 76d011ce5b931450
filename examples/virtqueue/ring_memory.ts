import type { GuestMemory, LockedMemory } from "membacking";

/**
 * How a device gets at the three parts of a ring. The indexes are loaded and stored atomically: the driver runs at the
 * same time, and everything it wrote before it moved its index must be there once the index is seen.
 */
export interface RingMemory {
  loadUint16(gpa: number): number;
  storeUint16(gpa: number, value: number): void;
  readUint16(gpa: number): number;
  readUint32(gpa: number): number;
  readBigUint64(gpa: number): bigint;
  writeUint32(gpa: number, value: number): void;
}

/** By the accessors of guest memory: each checks what shows at the address now, so the ring may be anywhere, and move. */
export function byAccessors(memory: GuestMemory): RingMemory {
  return memory;
}

/** Through one lock that is held for as long as the queue is set up: nothing is checked any more but the bounds. */
export class ByLock implements RingMemory {
  readonly #start: number;
  readonly #data: DataView;
  readonly #halves: Uint16Array;

  constructor({ range, bytes }: LockedMemory) {
    this.#start = range.start;
    this.#data = new DataView(bytes.buffer);
    this.#halves = new Uint16Array(bytes.buffer);
  }

  loadUint16(gpa: number): number {
    return Atomics.load(this.#halves, (gpa - this.#start) / 2);
  }

  storeUint16(gpa: number, value: number): void {
    Atomics.store(this.#halves, (gpa - this.#start) / 2, value);
  }

  readUint16(gpa: number): number {
    return this.#data.getUint16(gpa - this.#start, true);
  }

  readUint32(gpa: number): number {
    return this.#data.getUint32(gpa - this.#start, true);
  }

  readBigUint64(gpa: number): bigint {
    return this.#data.getBigUint64(gpa - this.#start, true);
  }

  writeUint32(gpa: number, value: number): void {
    this.#data.setUint32(gpa - this.#start, value, true);
  }
}
