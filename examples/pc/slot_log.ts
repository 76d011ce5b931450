/**
 * Watches what the region manager does to the memory slots of a virtual machine.
 *
 * @module
 */

import type { Access, MemoryRange, Partition } from "membacking";

/** What happened to slots. Each range is one ioctl. */
export interface SlotChanges {
  /** Slots that were made, writable or not. */
  readonly made: readonly { readonly range: MemoryRange; readonly writable: boolean }[];
  /** Slots that were deleted. */
  readonly deleted: readonly MemoryRange[];
  /** How long the ioctls took, in microseconds. */
  readonly micros: number;
}

const NO_CHANGES: SlotChanges = { made: [], deleted: [], micros: 0 };

/** Passes everything on to another partition, and takes notes by the number of the request that is being served. */
export class SlotLog implements Partition {
  readonly #partition: Partition;
  readonly #request: () => number;
  readonly #notes = new Map<number, SlotChanges>();

  /** Watches `partition`. `request` says which request is being served. */
  constructor(partition: Partition, request: () => number) {
    this.#partition = partition;
    this.#request = request;
  }

  /** Its name in messages. */
  get name(): string {
    return this.#partition.name ?? "partition";
  }

  /** How many slots it can have. */
  get capacity(): number {
    return this.#partition.capacity ?? Infinity;
  }

  /** Whether it is gone. */
  get disposed(): boolean {
    return this.#partition.disposed ?? false;
  }

  /** Makes a slot. */
  mapRange(hva: number, range: MemoryRange, access: Access): void {
    const micros = timed(() => this.#partition.mapRange(hva, range, access));
    this.#note({ made: [{ range, writable: access.writable }], deleted: [], micros });
  }

  /** Deletes a slot. */
  unmapRange(range: MemoryRange): void {
    const micros = timed(() => this.#partition.unmapRange(range));
    this.#note({ made: [], deleted: [range], micros });
  }

  /** What a request did, once. */
  take(request: number): SlotChanges {
    const changes = this.#notes.get(request) ?? NO_CHANGES;
    this.#notes.delete(request);
    return changes;
  }

  #note({ made, deleted, micros }: SlotChanges): void {
    const request = this.#request();
    const before = this.#notes.get(request) ?? NO_CHANGES;
    this.#notes.set(request, {
      made: [...before.made, ...made],
      deleted: [...before.deleted, ...deleted],
      micros: before.micros + micros,
    });
  }
}

/** How long something takes, in microseconds. */
export function timed(action: () => void): number {
  const start = performance.now();
  action();
  return (performance.now() - start) * 1000;
}
