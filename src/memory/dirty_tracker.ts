import { DisposedError } from "../core/errors.ts";
import { isPageSet, type PageSet } from "../core/page_set.ts";
import type { Consumer } from "./written_pages.ts";

/** What a tracker asks of the manager it was made by. */
export interface TrackerHost {
  /** What was written since the consumer took last. */
  take(consumer: Consumer): PageSet;
  /** Whether the consumer tracks. */
  has(consumer: Consumer): boolean;
  /** Ends the tracking. */
  end(consumer: Consumer): void;
}

/**
 * One consumer's view of which pages of guest memory were written, by whom ever: guests, this package's own accessors and
 * locks, clients, DMA targets, and requests that make something else show.
 *
 * It begins empty: the first `take` covers what was written since `trackDirty`. The promise is a superset and never less,
 * through requests that fail and are undone as well: a page that was written is in the next `take` of every tracker. A
 * page that is in a set may still be being written: copy it after `take`, and take again.
 *
 * Some writers cannot say exactly what they wrote. A lock with `write` counts as written as long as it is held, and once
 * when it is released; a target without `takeDirty` has written all that it may, at each `take` (`inspect` names such
 * targets); and a memory slot that a request takes away and puts back in parts while nobody holds the vCPUs (`quiesce`)
 * counts as written throughout. What shows at two addresses is written at both.
 *
 * Nobody sees what reaches guest memory by none of these: `Mappable.write` to a file that shows in it, and whoever else has
 * that file. A partition or DMA target that wants exact sets says what it has written (`takeDirty`).
 *
 * @example Usage
 * ```ts
 * import { GuestMemoryManager, MemoryRange } from "membacking";
 *
 * using guest = GuestMemoryManager.create({
 *   maxAddress: 0x10_0000,
 *   ram: [{ ranges: [new MemoryRange(0, 0x10_0000)] }],
 * });
 * using tracker = guest.trackDirty();
 * guest.memory.writeUint32(0x2ffe, 1); // crosses a page
 * const written = tracker.take();
 * console.assert([...written].join() === "0x2000-0x4000");
 * console.assert(tracker.take().count === 0);
 *
 * // Whatever was to be done with them has failed: they count as written again.
 * tracker.giveBack(written);
 * console.assert(tracker.take().count === 2);
 * ```
 */
export class DirtyTracker implements Disposable {
  readonly #host: TrackerHost;
  readonly #consumer: Consumer;

  /** Made by `trackDirty`. */
  constructor(host: TrackerHost, consumer: Consumer) {
    this.#host = host;
    this.#consumer = consumer;
  }

  /**
   * The pages that were written since the last time, and forgets them.
   *
   * @throws {MembackingError} If a target could not say what it has written. What is known by then is in the next set.
   * @throws {ReentrancyError} Inside a callback of the region manager.
   * @throws {DisposedError} After dispose, and once the region manager is gone.
   */
  take(): PageSet {
    return this.#host.take(this.#consumer);
  }

  /**
   * Counts `pages` as written again, for this tracker alone: for when sending or storing them has failed.
   *
   * @throws {DisposedError} After dispose.
   */
  giveBack(pages: PageSet): void {
    if (!this.#host.has(this.#consumer)) throw new DisposedError("The dirty tracker");
    if (!isPageSet(pages)) throw new TypeError("What is given back must be a PageSet");
    this.#consumer.pending = this.#consumer.pending.union(pages);
  }

  /**
   * Stops tracking; with the last tracker, partitions stop logging. Does nothing the second time.
   *
   * @throws {MappingError} If a partition could not be told; nothing has changed then, and it can be tried again.
   */
  [Symbol.dispose](): void {
    if (this.#host.has(this.#consumer)) this.#host.end(this.#consumer);
  }
}
