/**
 * What the books say after an undo that could not restore everything.
 *
 * A book says what its target holds for certain. A range that could not be put back leaves it; one that may be there
 * all the same, or could not be taken away, is remembered as uncertain. All of it is marked out of step, so that the
 * next request over it clears what is uncertain, compares again and puts in place what is missing.
 *
 * @module
 */

import { paint } from "../paint.ts";
import type { Span } from "../span.ts";
import type { Book, State } from "../map/state.ts";
import type { Step } from "./steps.ts";

/** A step of an undo that failed. */
export interface Unrestored {
  /** The step that would have restored the old state. */
  readonly step: Step;
  /** Whether the target may hold the range nevertheless. */
  readonly uncertain: boolean;
}

/**
 * The old state with the truth about what could not be restored, and `poisoned`: spans whose host addresses are gone
 * for good.
 */
export function outOfStep(old: State, unrestored: readonly Unrestored[], poisoned: readonly Span[]): State {
  let { partitions, dmaTargets } = old;
  let { lost, outOfStep, poisoned: poison } = old.damage;
  for (const entry of unrestored) {
    const { step } = entry;
    const { start, end } = step;
    // As one entry with its neighbours: whoever passes one of them looks at all that failed together.
    outOfStep = paint(outOfStep, start, end, [{ start, end, value: true }], () => true);
    switch (step.kind) {
      case "host":
        lost = lost.set(start, end, step.action === "park" && step.mapping !== null ? step.mapping : true);
        break;
      case "dma":
        dmaTargets = dmaTargets.map((dma) =>
          dma.id === step.dma.id ? { ...dma, mappings: corrected(dma.mappings, entry) } : dma
        );
        break;
      case "slot":
        partitions = partitions.map((partition) =>
          partition.id === step.partition.id ? { ...partition, slots: corrected(partition.slots, entry) } : partition
        );
        break;
      case "pin":
      case "prefetch":
        partitions = partitions.map((partition) =>
          partition.id === step.partition.id ? { ...partition, pins: corrected(partition.pins, entry) } : partition
        );
    }
  }
  for (const { start, end } of poisoned) {
    poison = poison.set(start, end, true);
    lost = lost.set(start, end, true);
  }
  return old.withTargets(partitions, dmaTargets, old.hostMappings, { lost, outOfStep, poisoned: poison });
}

/** The book without a range that could not be put back, and with one that may be there all the same. */
function corrected<V>({ held, uncertain }: Book<V>, entry: Unrestored): Book<V> {
  const { start, end, ...step } = entry.step;
  const isMissing = step.kind !== "host" && step.to !== null;
  return {
    held: isMissing ? held.delete(start, end) : held,
    uncertain: entry.uncertain ? [...uncertain, { start, end }] : uncertain,
  };
}
