/**
 * virtio-mem: memory that comes and goes in blocks.
 *
 * Specified in section 5.15 of the virtio specification.
 *
 * @module
 */

import { MembackingError, MemoryRange } from "membacking";
import type { VirtioDevice, VirtioHost } from "./device.ts";
import { type Chain, gather, lengthOf, RingError, scatter, type VirtQueue } from "./queue.ts";

const REQUEST_LENGTH = 24;
const RESPONSE_LENGTH = 10;
const REQUEST = { plug: 0, unplug: 1, unplugAll: 2, state: 3 } as const;
const ANSWER = { done: 0, refused: 1, busy: 2, error: 3 } as const;
const STATE = { plugged: 0, unplugged: 1, mixed: 2 } as const;
const CONFIGURATION = { block: 0, address: 16, region: 24, usable: 32, plugged: 40, requested: 48 } as const;
/** What is not plugged is not there, and is not touched. */
const UNPLUGGED_INACCESSIBLE = 1n << 1n;

/** Memory that was added, as the manager gives it. */
export interface Plugged {
  /** Takes it away again; waits for those who use it. */
  remove(): Promise<void>;
}

/** Where the memory can be and what makes it. */
export interface VirtioMemOptions {
  /** Where blocks can be. */
  readonly region: MemoryRange;
  /** How long a block is, in bytes: a power of two, 2 MiB or more. */
  readonly block: number;
  /** Adds RAM. */
  readonly add: (range: MemoryRange) => Plugged;
}

/** The device. */
export class VirtioMem implements VirtioDevice {
  readonly kind = 24;
  readonly queues = 1;
  readonly features = UNPLUGGED_INACCESSIBLE;
  readonly configuration = new Uint8Array(56);
  readonly #view = new DataView(this.configuration.buffer);
  readonly #region: MemoryRange;
  readonly #block: number;
  readonly #add: (range: MemoryRange) => Plugged;
  readonly #blocks = new Map<number, Plugged>();
  #host: VirtioHost | null = null;
  /** Requests are served one after another. */
  #last: Promise<void> = Promise.resolve();

  /** None of it is there yet. */
  constructor({ region, block, add }: VirtioMemOptions) {
    this.#region = region;
    this.#block = block;
    this.#add = add;
    this.#set(CONFIGURATION.block, block);
    this.#set(CONFIGURATION.address, region.start);
    this.#set(CONFIGURATION.region, region.length);
    this.#set(CONFIGURATION.usable, region.length);
  }

  /** How much the guest is asked to have, in bytes; it follows as far as it can. */
  get requested(): number {
    return Number(this.#view.getBigUint64(CONFIGURATION.requested, true));
  }

  set requested(bytes: number) {
    this.#set(CONFIGURATION.requested, bytes);
    this.#host?.configurationChanged();
  }

  /** How much it has, in bytes. */
  get plugged(): number {
    return Number(this.#view.getBigUint64(CONFIGURATION.plugged, true));
  }

  start(host: VirtioHost): void {
    this.#host = host;
  }

  reset(): void {
    this.#host = null;
  }

  notified(index: number): void {
    const host = this.#host;
    const queue = host?.queue(index);
    if (!host || !queue) return;
    for (const chain of queue.requests()) {
      this.#last = this.#last.then(() => this.#serve(host, queue, chain)).catch((error) => host.broken(error));
    }
  }

  async #serve(host: VirtioHost, queue: VirtQueue, chain: Chain): Promise<void> {
    const request = gather(host.memory, chain.readable, REQUEST_LENGTH);
    if (request.length < REQUEST_LENGTH || lengthOf(chain.writable) < RESPONSE_LENGTH) {
      throw new RingError("A request of memory has 24 bytes, and 10 for the answer");
    }
    const view = new DataView(request.buffer);
    const kind = view.getUint16(0, true);
    const gpa = Number(view.getBigUint64(8, true));
    const range = kind === REQUEST.unplugAll ? this.#region : this.#range(gpa, view.getUint16(16, true));
    const response = new DataView(new ArrayBuffer(RESPONSE_LENGTH));
    if (kind === REQUEST.state && range !== null) response.setUint16(8, this.#state(range), true);
    else response.setUint16(0, range === null ? ANSWER.error : await this.#change(kind, range), true);
    if (this.#host !== host) return; // the driver has begun anew meanwhile
    queue.push(chain, scatter(host.memory, chain.writable, new Uint8Array(response.buffer)));
    host.finished(queue);
  }

  /** The blocks that a request names, `null` if they are none. */
  #range(gpa: number, blocks: number): MemoryRange | null {
    const end = gpa + blocks * this.#block;
    const isInside = gpa >= this.#region.start && end <= this.#region.end && blocks > 0;
    return isInside && (gpa - this.#region.start) % this.#block === 0 ? new MemoryRange(gpa, end) : null;
  }

  async #change(kind: number, range: MemoryRange): Promise<number> {
    if (kind === REQUEST.plug) {
      if (this.#state(range) !== STATE.unplugged) return ANSWER.error;
      if (this.plugged + range.length > this.requested) return ANSWER.refused;
      if (!await this.#plug(range)) return ANSWER.busy;
    } else if (kind === REQUEST.unplug || kind === REQUEST.unplugAll) {
      if (kind === REQUEST.unplug && this.#state(range) !== STATE.plugged) return ANSWER.error;
      for (const gpa of this.#starts(range)) {
        const block = this.#blocks.get(gpa);
        await block?.remove();
        this.#blocks.delete(gpa);
      }
    } else {
      return ANSWER.error;
    }
    this.#set(CONFIGURATION.plugged, this.#blocks.size * this.#block);
    return ANSWER.done;
  }

  /** All blocks of it, or none where the host has no room for them. */
  async #plug(range: MemoryRange): Promise<boolean> {
    const added = new Map<number, Plugged>();
    try {
      for (const gpa of this.#starts(range)) added.set(gpa, this.#add(MemoryRange.of(gpa, this.#block)));
    } catch (error) {
      for (const block of added.values()) await block.remove();
      if (error instanceof MembackingError) return false;
      throw error;
    }
    for (const [gpa, block] of added) this.#blocks.set(gpa, block);
    return true;
  }

  #state(range: MemoryRange): number {
    const plugged = this.#starts(range).filter((gpa) => this.#blocks.has(gpa)).length;
    if (plugged === 0) return STATE.unplugged;
    return plugged * this.#block === range.length ? STATE.plugged : STATE.mixed;
  }

  #starts({ start, length }: MemoryRange): number[] {
    return Array.from({ length: length / this.#block }, (_, i) => start + i * this.#block);
  }

  #set(field: number, value: number): void {
    this.#view.setBigUint64(field, BigInt(value), true);
  }
}
