/**
 * A queue that a driver has set up, and its requests' bytes.
 *
 * The ring is that of examples/virtqueue, in guest memory, read and written by the package's accessors.
 *
 * @module
 */

import type { GuestMemory } from "membacking";
import { byAccessors } from "../../virtqueue/ring_memory.ts";
import { type Buffer, type Chain, type QueueLayout, RingError, SplitQueue } from "../../virtqueue/split_queue.ts";

export { type Buffer, type Chain, type QueueLayout, RingError };

const NO_INTERRUPT = 1;

/** One queue. */
export class VirtQueue extends SplitQueue {
  /** Where the driver has put it. */
  readonly layout: QueueLayout;
  readonly #memory: GuestMemory;

  /** The queue at a place that the driver has chosen. */
  constructor(memory: GuestMemory, layout: QueueLayout) {
    super(byAccessors(memory), layout);
    this.layout = layout;
    this.#memory = memory;
  }

  /** All requests there are now. */
  *requests(): Generator<Chain> {
    for (let chain = this.pop(); chain !== null; chain = this.pop()) yield chain;
  }

  /** Whether the driver wants to be told that something came back. */
  get wantsInterrupt(): boolean {
    return (this.#memory.loadUint16(this.layout.available) & NO_INTERRUPT) === 0;
  }
}

/** How long buffers are together, in bytes. */
export function lengthOf(buffers: readonly Buffer[]): number {
  return buffers.reduce((sum, { length }) => sum + length, 0);
}

/** More than any request has that is taken in one piece. A driver that hands over more wants the host's memory. */
const MOST = 2 ** 20;

/**
 * What the device is to read, in one piece of at most `most` bytes.
 *
 * @throws {RingError} If it is too much.
 */
export function gather(memory: GuestMemory, buffers: readonly Buffer[], most: number): Uint8Array<ArrayBuffer> {
  const length = Math.min(lengthOf(buffers), most);
  if (length > MOST) throw new RingError(`A request of ${length} bytes is too long`);
  const bytes = new Uint8Array(length);
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
