/**
 * virtio-balloon: memory that the guest gives back, because it is asked to or because it does not use it.
 *
 * Specified in section 5.5 of the virtio specification.
 *
 * @module
 */

import { MemoryRange } from "membacking";
import type { VirtioDevice, VirtioHost } from "./device.ts";
import { gather, lengthOf, type VirtQueue } from "./queue.ts";

const INFLATE = 0;
const DEFLATE = 1;
const FREE = 2;
const PAGE = 4096;
const MUST_TELL_HOST = 1n << 0n;
const PAGE_REPORTING = 1n << 5n;
const CONFIGURATION = { pages: 0, actual: 4 } as const;

/** The balloon. */
export class VirtioBalloon implements VirtioDevice {
  readonly kind = 5;
  readonly queues = 3;
  readonly features = MUST_TELL_HOST | PAGE_REPORTING;
  readonly configuration = new Uint8Array(16);
  readonly #view = new DataView(this.configuration.buffer);
  readonly #discard: (range: MemoryRange) => void;
  #host: VirtioHost | null = null;
  #inflated = 0;
  #reported = 0;

  /** `discard` gives memory back to the host. */
  constructor(discard: (range: MemoryRange) => void) {
    this.#discard = discard;
  }

  /** How much the guest is asked to give, in bytes; it follows when it can. */
  get target(): number {
    return this.#view.getUint32(CONFIGURATION.pages, true) * PAGE;
  }

  set target(bytes: number) {
    this.#view.setUint32(CONFIGURATION.pages, Math.floor(bytes / PAGE), true);
    this.#host?.configurationChanged();
  }

  /** How much the guest says it has given, in bytes. */
  get actual(): number {
    return this.#view.getUint32(CONFIGURATION.actual, true) * PAGE;
  }

  /** How much was given on request since the start, in bytes. */
  get inflated(): number {
    return this.#inflated;
  }

  /** How much the guest said by itself it does not use, in bytes; pages count as often as they were said. */
  get reported(): number {
    return this.#reported;
  }

  configure(offset: number, data: Uint8Array): void {
    if (offset === CONFIGURATION.actual) this.configuration.set(data.subarray(0, 4), offset);
  }

  start(host: VirtioHost): void {
    this.#host = host;
  }

  reset(): void {
    this.#host = null;
    this.#view.setUint32(CONFIGURATION.actual, 0, true);
  }

  notified(index: number): void {
    const host = this.#host;
    const queue = host?.queue(index);
    if (!host || !queue) return;
    if (index === INFLATE) this.#inflate(host, queue);
    else if (index === FREE) this.#free(queue);
    else if (index === DEFLATE) { for (const chain of queue.requests()) queue.push(chain, 0); } // a touch brings a page back
    host.finished(queue);
  }

  /** Lists of page numbers. */
  #inflate({ memory }: VirtioHost, queue: VirtQueue): void {
    for (const chain of queue.requests()) {
      const list = gather(memory, chain.readable, lengthOf(chain.readable));
      const numbers = new Uint32Array(list.buffer, 0, list.length >>> 2).sort();
      for (const range of runs(numbers)) {
        this.#discard(range);
        this.#inflated += range.length;
      }
      queue.push(chain, 0);
    }
  }

  /** Ranges of memory, to be as empty as what was never touched. */
  #free(queue: VirtQueue): void {
    for (const chain of queue.requests()) {
      for (const { gpa, length } of chain.writable) {
        this.#discard(MemoryRange.of(gpa, length));
        this.#reported += length;
      }
      queue.push(chain, 0);
    }
  }
}

/** Pages that follow each other, as ranges. */
function* runs(numbers: Uint32Array): Generator<MemoryRange> {
  for (let i = 0; i < numbers.length;) {
    const first = numbers[i] ?? 0;
    let count = 1;
    while (numbers[i + count] === first + count) count++;
    yield MemoryRange.of(first * PAGE, count * PAGE);
    i += count;
  }
}
