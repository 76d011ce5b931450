import type { RingMemory } from "./ring_memory.ts";

/** Where the driver has put the parts of a queue, as it tells by the registers of its transport. */
export interface QueueLayout {
  /** How many descriptors: a power of two. */
  readonly size: number;
  /** The descriptor table: 16 bytes each. */
  readonly descriptors: number;
  /** What the driver makes available: flags, index, ring of heads. */
  readonly available: number;
  /** What the device has used: flags, index, ring of heads and lengths. */
  readonly used: number;
}

/** A piece of guest memory that a descriptor names, in bytes. */
export interface Buffer {
  readonly gpa: number;
  readonly length: number;
}

/** A request: a chain of descriptors. */
export interface Chain {
  readonly head: number;
  /** What the device reads, in order. */
  readonly readable: readonly Buffer[];
  /** What it writes, in order. */
  readonly writable: readonly Buffer[];
}

/** The driver broke the rules of the ring. It is not trusted, so that is an error and not an assertion. */
export class RingError extends Error {
  override name = "RingError";
}

const NEXT = 1;
const WRITE = 2;
const INDIRECT = 4;

/** The device's side of a split virtqueue. */
export class SplitQueue {
  readonly #memory: RingMemory;
  readonly #layout: QueueLayout;
  #seen: number;
  #used: number;

  /** Of a queue that is new, or, with `resume`, of one that another device has served before and given back in order. */
  constructor(memory: RingMemory, layout: QueueLayout, options: { resume?: boolean } = {}) {
    this.#memory = memory;
    this.#layout = layout;
    this.#seen = this.#used = options.resume ? memory.loadUint16(layout.used + 2) : 0;
  }

  /** The next request, `null` if there is none. */
  pop(): Chain | null {
    const { size, available } = this.#layout;
    const index = this.#memory.loadUint16(available + 2);
    if (index === this.#seen) return null;
    if ((index - this.#seen & 0xffff) > size) throw new RingError(`Index ${index} is more than ${size} ahead`);
    const head = this.#memory.readUint16(available + 4 + this.#seen % size * 2);
    this.#seen = this.#seen + 1 & 0xffff;
    return this.#chain(head);
  }

  /** Gives a request back, of which `written` bytes were written. */
  push({ head }: Chain, written: number): void {
    const { size, used } = this.#layout;
    const at = used + 4 + this.#used % size * 8;
    this.#memory.writeUint32(at, head);
    this.#memory.writeUint32(at + 4, written);
    this.#used = this.#used + 1 & 0xffff;
    this.#memory.storeUint16(used + 2, this.#used);
  }

  #chain(head: number): Chain {
    const { size, descriptors } = this.#layout;
    const readable: Buffer[] = [];
    const writable: Buffer[] = [];
    let index = head;
    // A chain that goes in a circle has more links than there are descriptors.
    for (let links = 0; links < size; links++) {
      if (index >= size) throw new RingError(`Descriptor ${index} is beyond the table of ${size}`);
      const at = descriptors + index * 16;
      const address = this.#memory.readBigUint64(at);
      const length = this.#memory.readUint32(at + 8);
      const flags = this.#memory.readUint16(at + 12);
      if ((flags & INDIRECT) !== 0) throw new RingError("Indirect descriptors were not negotiated");
      // What is no number is no address of guest memory either, and the access will say so.
      const buffer = { gpa: Number(address), length };
      if ((flags & WRITE) !== 0) writable.push(buffer);
      else if (writable.length > 0) throw new RingError("A readable descriptor follows a writable one");
      else readable.push(buffer);
      if ((flags & NEXT) === 0) return { head, readable, writable };
      index = this.#memory.readUint16(at + 14);
    }
    throw new RingError(`The chain from descriptor ${head} does not end`);
  }
}
