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

/** Passes everything on to another partition, and takes notes. */
export class SlotLog implements Partition {
  readonly #partition: Partition;
  #made: { range: MemoryRange; writable: boolean }[] = [];
  #deleted: MemoryRange[] = [];
  #micros = 0;

  /** Watches `partition`. */
  constructor(partition: Partition) {
    this.#partition = partition;
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
    this.#timed(() => this.#partition.mapRange(hva, range, access));
    this.#made.push({ range, writable: access.writable });
  }

  /** Deletes a slot. */
  unmapRange(range: MemoryRange): void {
    this.#timed(() => this.#partition.unmapRange(range));
    this.#deleted.push(range);
  }

  /** What happened since the last time. */
  take(): SlotChanges {
    const changes = { made: this.#made, deleted: this.#deleted, micros: this.#micros };
    this.#made = [];
    this.#deleted = [];
    this.#micros = 0;
    return changes;
  }

  #timed(ioctl: () => void): void {
    const start = performance.now();
    ioctl();
    this.#micros += (performance.now() - start) * 1000;
  }
}
