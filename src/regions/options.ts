import type { OverlapRule } from "../core/map/overlap.ts";
import type { MemoryRange } from "../core/memory_range.ts";
import type { Logger, Quiesce } from "../targets/targets.ts";

/** How a `RegionManager` works. */
export interface RegionManagerOptions {
  /**
   * `"nested"` (the default): of two overlapping regions the higher one contains the lower, or both are of equal priority
   * and on one range. `"any"`: no such rule. Where priorities are equal, the region made first wins.
   */
  overlap?: OverlapRule;
  /** Is told what the manager does; `console` fits. Silent by default. A logger that throws is ignored. */
  logger?: Logger;
  /** Holds vCPUs while a change that is not atomic to them is made. Without it, changes are made all the same. */
  quiesce?: Quiesce;
}

/** What a region is. */
export interface RegionOptions {
  /** For messages and inspection; need not be unique. */
  name: string;
  /** The GPA range it occupies, not empty and inside the reservation. */
  range: MemoryRange;
  /** 0 to 255; of two mapped regions the higher one is visible. */
  priority: number;
  /** `"ram"` (the default) or `"device"`; DMA targets and shareable regions tell them apart. */
  type?: "ram" | "device";
  /**
   * What a guest access to an unbacked address of the region does. `"exit"` (the default): an MMIO exit, and each
   * mapping has a slot of its own. `"fault"`: KVM_RUN fails with EFAULT, and one slot covers the whole region, so that
   * changing its mappings costs no slot change. KVMs differ in what emulated code sees there: `KvmFaultExit` tells.
   */
  holes?: "exit" | "fault";
}

/** How a partition is attached. */
export interface PartitionOptions {
  /** Added to every GPA, in bytes: the partition sees region address x at `x + offset`. Page-aligned, 0 by default. */
  offset?: number;
  /** Whether all its memory is pinned, by the partition's `pinRange`. */
  pin?: boolean;
}

/** How a DMA target is attached. */
export interface DmaTargetOptions {
  /** Whether it can only map memory with a file descriptor: a request that would show it private memory fails then. */
  needsFd?: boolean;
  /**
   * Whether it holds on to the pages themselves, as an IOMMU does: what is mapped cannot be given back to the host then, so
   * discarding it is refused. `false` by default.
   */
  pins?: boolean;
}
