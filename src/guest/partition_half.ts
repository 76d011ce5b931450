import type { MemoryRange } from "../core/memory_range.ts";
import type { Access, Partition } from "../core/targets.ts";

/**
 * One of the two appearances of guest memory in a partition. The partition is attached once for each, and each has half
 * of its ranges, since both always hold equally many.
 *
 * Pages are pinned and brought in for the first one alone: it is the same memory.
 */
export class PartitionHalf implements Partition {
  readonly name: string;
  readonly prefetchRange?: (range: MemoryRange, copyOnWrite: boolean) => void;
  readonly pinRange?: (range: MemoryRange) => void;
  readonly unpinRange?: (range: MemoryRange) => void;
  readonly setDirtyLog?: (range: MemoryRange, on: boolean) => void;
  readonly takeDirty?: NonNullable<Partition["takeDirty"]>;
  readonly #whole: Partition;

  constructor(whole: Partition, isAlias: boolean) {
    this.#whole = whole;
    this.name = `${whole.name ?? "partition"}${isAlias ? " alias" : ""}`;
    // Each half is asked for its own addresses.
    if (whole.setDirtyLog !== undefined) this.setDirtyLog = (range, on) => whole.setDirtyLog?.(range, on);
    if (whole.takeDirty !== undefined) this.takeDirty = (...asked) => whole.takeDirty?.(...asked);
    if (isAlias) return;
    if (whole.prefetchRange !== undefined) {
      this.prefetchRange = (range, copyOnWrite) => whole.prefetchRange?.(range, copyOnWrite);
    }
    if (whole.pinRange !== undefined) this.pinRange = (range) => whole.pinRange?.(range);
    if (whole.unpinRange !== undefined) this.unpinRange = (range) => whole.unpinRange?.(range);
  }

  get capacity(): number {
    return Math.floor((this.#whole.capacity ?? Infinity) / 2);
  }

  get disposed(): boolean {
    return this.#whole.disposed ?? false;
  }

  mapRange(hva: number, range: MemoryRange, access: Access): void {
    return this.#whole.mapRange(hva, range, access);
  }

  unmapRange(range: MemoryRange): void {
    return this.#whole.unmapRange(range);
  }
}
