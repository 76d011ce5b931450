/**
 * A split virtqueue, as the device sees it: descriptors that the driver hands over and takes back.
 *
 * Specified in section 2.7 of the virtio specification. The rings are in guest memory and are read and written by the
 * package's accessors, the indices atomically, so that neither side misses what the other has said last. What a driver
 * says is looked at before it is believed.
 *
 * @module
 */

import type { GuestMemory } from "membacking";

/** A driver broke the rules. The device wants to be reset then. */
export class VirtioError extends Error {
  override name = "VirtioError";
}

/** Where the parts of a queue are. */
export interface QueuePlace {
  /** How many descriptors it has: a power of two. */
  readonly size: number;
  /** The descriptor table. */
  readonly descriptors: number;
  /** The ring of what the driver hands over. */
  readonly available: number;
  /** The ring of what the device gives back. */
  readonly used: number;
}

/** A piece of guest memory. */
export interface Buffer {
  /** Where it begins. */
  readonly gpa: number;
  /** How long it is, in bytes. */
  readonly length: number;
}

/** A request: what the device reads, then what it writes. */
export interface Chain {
  /** The descriptor it begins with. */
  readonly head: number;
  /** What the device may read. */
  readonly readable: readonly Buffer[];
  /** What the device may write. */
  readonly writable: readonly Buffer[];
}

const NEXT = 1;
const WRITE = 2;
const NO_INTERRUPT = 1;

/** One queue that is set up. */
export class VirtQueue {
  readonly #memory: GuestMemory;
  readonly #place: QueuePlace;
  #taken = 0;
  #given = 0;

  /** The queue at a place that the driver has chosen. */
  constructor(memory: GuestMemory, place: QueuePlace) {
    this.#memory = memory;
    this.#place = place;
  }

  /**
   * The next request, or `null` if there is none.
   *
   * @throws {VirtioError} If the rings make no sense.
   * @throws {GuestMemoryError} If they are not in memory.
   */
  pop(): Chain | null {
    const { size, available } = this.#place;
    const waiting = (this.#memory.loadUint16(available + 2) - this.#taken) & 0xffff;
    if (waiting === 0) return null;
    if (waiting > size) throw new VirtioError(`The driver hands over ${waiting} requests by a queue of ${size}`);
    const head = this.#memory.readUint16(available + 4 + 2 * (this.#taken % size));
    this.#taken = (this.#taken + 1) & 0xffff;
    return this.#chain(head);
  }

  /** All requests there are now. */
  *requests(): Generator<Chain> {
    for (let chain = this.pop(); chain !== null; chain = this.pop()) yield chain;
  }

  /** Gives a request back, with `written` bytes in what the device may write. */
  push({ head }: Chain, written: number): void {
    const { size, used } = this.#place;
    const element = used + 4 + 8 * (this.#given % size);
    this.#memory.writeUint32(element, head);
    this.#memory.writeUint32(element + 4, written);
    this.#given = (this.#given + 1) & 0xffff;
    this.#memory.storeUint16(used + 2, this.#given);
  }

  /** Whether the driver wants to be told that something came back. */
  get wantsInterrupt(): boolean {
    return (this.#memory.loadUint16(this.#place.available) & NO_INTERRUPT) === 0;
  }

  #chain(head: number): Chain {
    const { size, descriptors } = this.#place;
    const readable: Buffer[] = [];
    const writable: Buffer[] = [];
    let index = head;
    for (let count = 0; count < size; count++) {
      if (index >= size) throw new VirtioError(`The driver names descriptor ${index} of ${size}`);
      const at = descriptors + 16 * index;
      const buffer = { gpa: Number(this.#memory.readBigUint64(at)), length: this.#memory.readUint32(at + 8) };
      const flags = this.#memory.readUint16(at + 12);
      if ((flags & WRITE) !== 0) writable.push(buffer);
      else if (writable.length === 0) readable.push(buffer);
      else throw new VirtioError("The driver has something to read after what is to be written");
      if ((flags & NEXT) === 0) return { head, readable, writable };
      index = this.#memory.readUint16(at + 14);
    }
    throw new VirtioError("The driver's descriptors make a circle");
  }
}

/** How long buffers are together, in bytes. */
export function lengthOf(buffers: readonly Buffer[]): number {
  return buffers.reduce((sum, { length }) => sum + length, 0);
}

/** What the device is to read, in one piece of at most `most` bytes. */
export function gather(memory: GuestMemory, buffers: readonly Buffer[], most: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(Math.min(lengthOf(buffers), most));
  let at = 0;
  for (const { gpa, length } of buffers) {
    if (at === bytes.length) break;
    const part = bytes.subarray(at, at + length);
    memory.readInto(gpa, part);
    at += part.length;
  }
  return bytes;
}

/** Writes `bytes` into what the device may write, as far as there is room, and returns how many there was room for. */
export function scatter(memory: GuestMemory, buffers: readonly Buffer[], bytes: Uint8Array): number {
  let at = 0;
  for (const { gpa, length } of buffers) {
    if (at === bytes.length) break;
    const part = bytes.subarray(at, at + length);
    memory.write(gpa, part);
    at += part.length;
  }
  return at;
}
