import type { Access, MemoryRange, Partition } from "membacking";

/** Passes everything on to another partition, and counts. */
export class CountingPartition implements Partition {
  /** How often the partition was told something. */
  calls = 0;
  readonly #partition: Partition;

  constructor(partition: Partition) {
    this.#partition = partition;
  }

  get name(): string {
    return this.#partition.name ?? "partition";
  }

  get capacity(): number {
    return this.#partition.capacity ?? Infinity;
  }

  mapRange(hva: number, range: MemoryRange, access: Access): void {
    this.calls++;
    this.#partition.mapRange(hva, range, access);
  }

  unmapRange(range: MemoryRange): void {
    this.calls++;
    this.#partition.unmapRange(range);
  }
}
