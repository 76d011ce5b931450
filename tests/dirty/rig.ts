/**
 * A region manager over real host memory, between recording targets that log what `write` does to them.
 *
 * @module
 */

import {
  type DirtyTracker,
  Mappable,
  type MemoryRange,
  type PageSet,
  type Quiesce,
  type RegionHandle,
  RegionManager,
  VaMapper,
} from "membacking";
import { Faults, type RecordedCall, RecordingPartition, type RecordingPartitionOptions } from "membacking/testing";
import { PAGE, range } from "../support/units.ts";

/** What is visible: pages 0 to 256. */
export class DirtyRig implements Disposable {
  readonly calls: RecordedCall[] = [];
  readonly faults: Faults = new Faults();
  readonly manager: RegionManager;
  readonly #stack = new DisposableStack();
  #made = 0;

  constructor(options: { quiesce?: Quiesce; overlap?: "any" } = {}) {
    const va = this.#stack.use(VaMapper.reserve(2 ** 24));
    this.manager = this.#stack.use(new RegionManager(va, options));
  }

  /** A memfd that is closed with the rig. */
  file(pages = 4096): Mappable {
    return this.#stack.use(Mappable.memfd(`file-${this.#made++}`, pages * PAGE));
  }

  /** A mapped region of pages `[start, end)`, each range of `parts` a mapping of its own. */
  region(
    start: number,
    end: number,
    options: { priority?: number; parts?: number; backed?: boolean } = {},
  ): RegionHandle {
    const { priority = 0, parts = 1, backed = true } = options;
    const region = this.manager.newRegion({ name: `region-${this.#made++}`, range: pages(start, end), priority });
    const length = (end - start) / parts;
    for (let i = 0; backed && i < parts; i++) {
      const rangeInRegion = pages(i * length, (i + 1) * length);
      region.addMapping({ rangeInRegion, mappable: this.file(end - start), fileOffset: 0 });
    }
    region.map();
    return region;
  }

  /** Attaches a partition that logs, unless told otherwise. */
  partition(options: RecordingPartitionOptions & { offset?: number } = {}): RecordingPartition {
    const { offset = 0, ...rest } = options;
    const { calls, faults } = this;
    const target = new RecordingPartition({ calls, faults, dirtyLog: true, ...rest });
    this.manager.addPartition(target, { offset: offset * PAGE });
    return target;
  }

  [Symbol.dispose](): void {
    this.faults.reset();
    this.#stack.dispose();
  }
}

/** The GPAs of pages `[start, end)`. */
export function pages(start: number, end: number = start + 1): MemoryRange {
  return range(start * PAGE, end * PAGE);
}

/** The pages of a set, as runs of page numbers: `"3 5-7"`. */
export function text(set: PageSet): string {
  return [...set].map(({ start, end }) => {
    const [first, last] = [start / PAGE, end / PAGE - 1];
    return first === last ? `${first}` : `${first}-${last}`;
  }).join(" ");
}

/** What a tracker takes, in the same form. */
export function taken(tracker: DirtyTracker): string {
  return text(tracker.take());
}
