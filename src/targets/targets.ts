/**
 * What a user may bring along: DMA targets, a quiesce hook, a logger. Partitions are in `core/targets.ts`, because the
 * core plans for them.
 *
 * @module
 */

import type { Mappable } from "../../ffi/files/mappable.ts";
import type { MemoryRange } from "../core/memory_range.ts";
import type { MarkDirty } from "../core/targets.ts";

/** One mapping that a DMA target is told of. */
export interface DmaRequest {
  /** The GPA range, in bytes. */
  readonly range: MemoryRange;
  /** The host address of its first byte. */
  readonly hva: number;
  /** The file behind it; `null` for private memory. Owned by the manager: clone it to keep it. */
  readonly mappable: Mappable | null;
  /** Where in the file the range begins, in bytes; 0 for private memory. */
  readonly fileOffset: number;
  /** Whether the device may write. */
  readonly writable: boolean;
  /** What kind of region shows the memory. */
  readonly type: "ram" | "device";
}

/**
 * An IOMMU-like consumer that must be told each mapping.
 *
 * A method that throws must leave the target as it was, and fails the request. All are synchronous: returning a promise is
 * an error.
 */
export interface DmaTarget {
  /**
   * Makes a mapping known to the device. If it throws, `unmapDma` of the same range follows, since it is not known what it
   * did first.
   */
  mapDma(request: DmaRequest): undefined;
  /**
   * Takes a mapping away: exactly what one `mapDma` mapped. After a `mapDma` or `unmapDma` that threw it may be asked to
   * take away what is not there, which should throw and do nothing.
   */
  unmapDma(range: MemoryRange): undefined;
  /**
   * Announces a request, or its undo, before the first call of it: for targets that send one net change. If it throws, the
   * request fails and nothing has been done; what it throws at an undo is ignored. An empty change says that the request
   * which was announced last does not come, since it failed before its first call to this target.
   */
  prepareDma?(change: { readonly unmaps: readonly MemoryRange[]; readonly maps: readonly DmaRequest[] }): undefined;
  /**
   * Tells `mark` what the device has written since it was asked last: GPAs in bytes, the first and one past the last, for
   * each run. A target without it counts as one that has written all that it may.
   */
  takeDirty?(mark: MarkDirty): void;
  /** A name for messages; "DMA target" when left out. */
  readonly name?: string;
}

/**
 * Holds vCPUs out of the guest while a change that is not atomic to them is made.
 *
 * Called before the first effect of such a request; disposing what it returns lets the vCPUs run again. It holds
 * vCPUs, not devices. If it throws, the request fails and nothing has changed.
 */
export type Quiesce = (change: {
  /** The GPA ranges that a guest could see half changed. */
  readonly ranges: readonly MemoryRange[];
}) => Disposable;

/** Where the manager reports what it does. `console` fits, and so does a logger of `@std/log`. */
export interface Logger {
  /** Each request and what it did. */
  debug(msg: string, ...args: unknown[]): void;
  /** Nothing yet. */
  info(msg: string, ...args: unknown[]): void;
  /** What failed without failing a request, such as a prefetch; a region that is mapped and shows nowhere. */
  warn(msg: string, ...args: unknown[]): void;
  /** What is out of step after an undo failed. */
  error(msg: string, ...args: unknown[]): void;
}
