/**
 * What goes with memory wherever it is replaced, undo included: pinned pages, and pages that are brought in early.
 * MAP_FIXED drops page locks and brings no page in.
 *
 * @module
 */

import { paint } from "../paint.ts";
import type { PartitionPlan } from "./plan_partitions.ts";
import { RangeMap } from "../range_map.ts";
import { clip, EVERYWHERE, gaps, parted, type Span } from "../span.ts";
import type { State } from "../map/state.ts";
import type { AttendStep } from "./steps.ts";
import type { VaSteps } from "./va_steps.ts";
import { fragmentsIn, pieceAt, piecesIn, piecesOf, unpoisoned } from "../map/view.ts";

/** Pages that come in early go with the memory, wherever it is replaced, undo included. */
export function prefetchSteps(
  told: readonly PartitionPlan[],
  va: VaSteps,
  old: State,
  next: State,
  spans: readonly Span[],
): readonly AttendStep[] {
  const steps: AttendStep[] = [];
  for (const partitionPlan of told) {
    if (partitionPlan.partition.target.prefetchRange === undefined) continue;
    pushPrefetches(steps, partitionPlan, va, old, next, spans);
  }
  return steps;
}

/** What is pinned after a plan. */
export interface PinPlan {
  /** What is known to be. */
  readonly pinned: RangeMap<true>;
  /** What may be besides. */
  readonly doubts: readonly Span[];
}

/** Pins follow the memory: what is replaced is unpinned before and pinned after. */
export function pushPins(
  steps: AttendStep[],
  { partition, stays }: PartitionPlan,
  va: VaSteps,
  next: State,
  over: readonly Span[],
): PinPlan {
  let { pinned } = partition;
  if (!partition.pin || partition.target.pinRange === undefined) return { pinned, doubts: partition.pinDoubts };
  const push = ({ start, end }: Span, to: boolean, uncertain = false) =>
    steps.push({ kind: "pin", partition, start, end, to, uncertain });
  const { inside, outside } = parted(partition.pinDoubts, stays ? over : EVERYWHERE);
  for (const span of inside) push(span, false, true);
  const replaced: readonly Span[] = stays
    ? [...va.replacements, ...va.removals, ...va.discards].filter(({ action }) => action !== "protect")
    : EVERYWHERE;
  for (const { start, end } of replaced) {
    for (const entry of pinned.overlapping(start, end)) push(clip(entry, start, end), false);
    pinned = pinned.delete(start, end);
  }
  if (!stays) return { pinned, doubts: outside };
  for (const span of over) {
    for (const { start, end } of unpoisoned(piecesIn(next, span.start, span.end), next)) {
      for (const gap of gaps(start, end, pinned.overlapping(start, end))) push(gap, true);
      pinned = paint(pinned, start, end, [{ start, end, value: true }], isSamePin);
    }
  }
  return { pinned, doubts: outside };
}

const isSamePin = () => true;

function pushPrefetches(
  steps: AttendStep[],
  { partition, added, was, stays }: PartitionPlan,
  va: VaSteps,
  old: State,
  next: State,
  spans: readonly Span[],
): void {
  if (!stays) return;
  const push = ({ start, end }: Span, to: boolean) =>
    steps.push({ kind: "prefetch", partition, start, end, to, uncertain: false });
  let fresh: RangeMap<true> | undefined;
  for (const span of was ? spans : EVERYWHERE) {
    const asked = fragmentsIn(next, span.start, span.end).filter(({ params }) => params.prefetch);
    for (const piece of piecesOf(asked)) {
      fresh ??= spanSet([...added, ...va.replacements.filter(({ action }) => action === "map")]);
      const isNew = fresh.overlaps(piece.start, piece.end) || pieceAt(old, piece.start)?.value.params.prefetch !== true;
      if (isNew) push(piece, true);
    }
  }
  for (const { from } of va.replacements) {
    for (const entry of from) {
      if (entry.value.params.prefetch) push(entry, false);
    }
  }
}

function spanSet(spans: readonly Span[]): RangeMap<true> {
  let map: RangeMap<true> = RangeMap.EMPTY;
  for (const { start, end } of spans) map = map.set(start, end, true);
  return map;
}
