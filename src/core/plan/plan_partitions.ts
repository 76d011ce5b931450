/**
 * What partitions have to be told.
 *
 * @module
 */

import { accessOf, isSameAccess } from "../access.ts";
import { type Entry, RangeMap } from "../range_map.ts";
import { fitCapacity, type RangeChanges, reconcile } from "./slots.ts";
import type { PinPlan } from "./plan_attendance.ts";
import { EVERYWHERE, parted, type Span } from "../span.ts";
import type { PartitionState, State } from "../map/state.ts";
import type { Step } from "./steps.ts";
import type { Access } from "../targets.ts";
import type { Diff } from "./va_steps.ts";
import { type Fragment, fragmentsIn, unpoisoned } from "../map/view.ts";

/** What changes for one partition. */
export interface PartitionPlan extends RangeChanges<Access> {
  readonly partition: PartitionState;
  /** Whether it was attached before the request, and is after it. */
  readonly was: boolean;
  readonly stays: boolean;
  /** Ranges that it may hold without our knowing, to be taken away first, and those that are left for later. */
  readonly cleared: readonly Span[];
  readonly doubts: readonly Span[];
}

/** Plans for partitions that stay, come and go. A disposed one is told nothing and leaves the state. */
export function planPartitions(old: State, next: State, diffs: readonly Diff[]): PartitionPlan[] {
  const plans: PartitionPlan[] = [];
  for (const partition of next.partitions) {
    const { target, book } = partition;
    if (target.disposed ?? false) continue;
    const was = old.partitions === next.partitions || old.partitions.some(({ id }) => id === partition.id);
    const over = was ? diffs : EVERYWHERE;
    const wanted: Entry<Access>[] = [];
    if (was) { for (const { after } of diffs) pushWantedAccess(wanted, after); }
    else pushWantedAccess(wanted, fragmentsIn(next));
    let changes = reconcile(book, unpoisoned(wanted, next), over, isSameAccess);
    if (changes !== null && target.capacity !== undefined) {
      changes = fitCapacity(changes, target.capacity - heldElsewhere(partition, next, plans), isSameAccess);
    }
    const { gone, added, book: after } = changes ?? { gone: [], added: [], book };
    const { inside, outside } = parted(partition.doubts, over);
    plans.push({ partition, gone, added, book: after, was, stays: true, cleared: inside, doubts: outside });
  }
  if (old.partitions === next.partitions) return plans;
  for (const partition of old.partitions) {
    if (partition.target.disposed ?? false) continue;
    if (next.partitions.some(({ id }) => id === partition.id)) continue;
    plans.push({
      partition,
      gone: [...partition.book],
      added: [],
      book: RangeMap.EMPTY,
      was: true,
      stays: false,
      cleared: partition.doubts,
      doubts: [],
    });
  }
  return plans;
}

/** How many ranges a partition that is attached twice holds by its other attachments. */
function heldElsewhere({ id, target }: PartitionState, next: State, planned: readonly PartitionPlan[]): number {
  let count = 0;
  for (const other of next.partitions) {
    if (other.id === id || other.target !== target) continue;
    count += (planned.find(({ partition }) => partition.id === other.id) ?? other).book.size;
  }
  return count;
}

/** The partitions with what they hold after the plan. */
export function booked(
  partitions: readonly PartitionState[],
  plans: readonly PartitionPlan[],
  pins: readonly PinPlan[],
): readonly PartitionState[] {
  let same = plans.length === partitions.length;
  for (let i = 0; same && i < plans.length; i++) {
    const { partition, book, cleared } = plans[i]!;
    const { pinned, doubts } = pins[i]!;
    same = partition.book === book && cleared.length === 0 && partition.pinned === pinned &&
      partition.pinDoubts === doubts;
  }
  if (same) return partitions;
  const states: PartitionState[] = [];
  plans.forEach(({ partition, book, stays, doubts }, index) => {
    const { pinned, doubts: pinDoubts } = pins[index]!;
    if (stays) states.push({ ...partition, book, pinned, doubts, pinDoubts });
  });
  return states;
}

/** What a partition should hold over `fragments`: backed parts, or whole windows where holes fault. */
function pushWantedAccess(wanted: Entry<Access>[], fragments: readonly Fragment[]): void {
  for (const { start, end, region, params: { writable, executable }, mappings } of fragments) {
    if (region.holes === "fault") {
      wanted.push({ start, end, value: accessOf(writable, executable) });
      continue;
    }
    for (const entry of mappings.overlapping(start, end)) {
      const access = accessOf(writable && entry.value.writable, executable);
      wanted.push({ start: Math.max(entry.start, start), end: Math.min(entry.end, end), value: access });
    }
  }
}

/** Appends the steps that take ranges away from a partition. */
export function pushPartitionUnmaps(steps: Step[], { partition, gone, cleared }: PartitionPlan): void {
  for (const { start, end } of cleared) {
    steps.push({ kind: "partition", partition, start, end, from: null, to: null, uncertain: true });
  }
  for (const { start, end, value } of gone) {
    steps.push({ kind: "partition", partition, start, end, from: value, to: null, uncertain: false });
  }
}

/** Appends the steps that tell a partition of ranges. */
export function pushPartitionMaps(steps: Step[], { partition, added }: PartitionPlan): void {
  for (const { start, end, value } of added) {
    steps.push({ kind: "partition", partition, start, end, from: null, to: value, uncertain: false });
  }
}
