/**
 * What the books say after an undo that could not restore everything.
 *
 * The rule is that a book says what its target holds to the best of our knowledge: a range that could not be put back
 * leaves it, one that could not be taken away stays in it. Both are marked stale, so that the next request over them
 * compares again and mends what it can.
 *
 * @module
 */

import type { Step } from "./steps.ts";
import type { RangeMap } from "./range_map.ts";
import type { Span } from "./span.ts";
import type { State } from "./state.ts";

function corrected<V>(book: RangeMap<V>, { start, end }: Span, from: V | null, to: V | null): RangeMap<V> {
  if (to === null && from !== null) return book.set(start, end, from);
  return book.delete(start, end);
}

/**
 * The old state with the truth about `unrestored`: the undoing steps that failed, and `poisoned`: spans whose host
 * addresses are gone for good.
 */
export function outOfStep(old: State, unrestored: readonly Step[], poisoned: readonly Span[]): State {
  let { partitions, dmaTargets, lost, stale } = old;
  let poison = old.poisoned;
  // First what is missing, then what stayed: a range that stayed may be why the one over it could not return.
  const missing = unrestored.filter(({ to }) => to !== null && to !== false);
  const stayed = unrestored.filter(({ to }) => to === null || to === false);
  for (const step of [...missing, ...stayed]) {
    const { start, end } = step;
    // As one entry with its neighbours: whoever passes one of them looks at all that failed together.
    stale = stale.paint(start, end, [{ start, end, value: true }], () => true);
    if (step.kind === "va") {
      lost = lost.set(start, end, true);
    } else if (step.kind === "partition") {
      partitions = partitions.map((partition) =>
        partition.id === step.partition.id
          ? { ...partition, book: corrected(partition.book, step, step.from, step.to) }
          : partition
      );
    } else if (step.kind === "pin") {
      partitions = partitions.map((partition) => {
        if (partition.id !== step.partition.id) return partition;
        const { pinned } = partition;
        return { ...partition, pinned: step.to ? pinned.delete(start, end) : pinned.set(start, end, true) };
      });
    } else if (step.kind === "dma") {
      dmaTargets = dmaTargets.map((dma) =>
        dma.id === step.dma.id ? { ...dma, book: corrected(dma.book, step, step.from, step.to) } : dma
      );
    }
  }
  for (const { start, end } of poisoned) {
    poison = poison.set(start, end, true);
    lost = lost.set(start, end, true);
  }
  return { ...old, partitions, dmaTargets, lost, stale, poisoned: poison };
}
