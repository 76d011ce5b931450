/**
 * What the books say after an undo that could not restore everything.
 *
 * A book says what its target holds for certain. A range that could not be put back leaves it; one that may be there
 * all the same, or could not be taken away, is remembered as a doubt. All of it is marked stale, so that the next
 * request over it clears the doubts, compares again and puts in place what is missing.
 *
 * @module
 */

import { paint } from "../paint.ts";
import type { RangeMap } from "../range_map.ts";
import type { Span } from "../span.ts";
import type { State } from "../map/state.ts";
import type { Step } from "./steps.ts";

/** A step of an undo that failed. */
export interface Unrestored {
  /** The step that would have restored the old state. */
  readonly step: Step;
  /** Whether the target may hold the range nevertheless. */
  readonly doubtful: boolean;
}

function less<V>(book: RangeMap<V>, { start, end, to }: Step): RangeMap<V> {
  return to === null || to === false ? book : book.delete(start, end);
}

function more(doubts: readonly Span[], { step: { start, end }, doubtful }: Unrestored): readonly Span[] {
  return doubtful ? [...doubts, { start, end }] : doubts;
}

/**
 * The old state with the truth about what could not be restored, and `poisoned`: spans whose host addresses are gone
 * for good.
 */
export function outOfStep(old: State, unrestored: readonly Unrestored[], poisoned: readonly Span[]): State {
  let { partitions, dmaTargets, lost, stale } = old;
  let poison = old.poisoned;
  for (const entry of unrestored) {
    const { step } = entry;
    const { kind, start, end } = step;
    // As one entry with its neighbours: whoever passes one of them looks at all that failed together.
    stale = paint(stale, start, end, [{ start, end, value: true }], () => true);
    if (kind === "va") {
      lost = lost.set(start, end, true);
    } else if (kind === "dma") {
      dmaTargets = dmaTargets.map((dma) =>
        dma.id !== step.dma.id ? dma : { ...dma, book: less(dma.book, step), doubts: more(dma.doubts, entry) }
      );
    } else {
      partitions = partitions.map((partition) => {
        if (partition.id !== step.partition.id) return partition;
        return kind === "partition"
          ? { ...partition, book: less(partition.book, step), doubts: more(partition.doubts, entry) }
          : { ...partition, pinned: less(partition.pinned, step), pinDoubts: more(partition.pinDoubts, entry) };
      });
    }
  }
  for (const { start, end } of poisoned) {
    poison = poison.set(start, end, true);
    lost = lost.set(start, end, true);
  }
  return { ...old, partitions, dmaTargets, lost, stale, poisoned: poison };
}
