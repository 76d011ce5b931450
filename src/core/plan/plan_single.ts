/**
 * The short way for what nearly all requests of a running virtual machine are: in one span, one mapping or hole gives
 * way to another. Put in place, taken away, replaced, switched, made read-only: one change of host memory at most, and
 * at most one range to take from and to give to each partition.
 *
 * It decides nothing of its own: where anything is unusual it returns `null`, and `plan.ts` plans the same change the
 * long way. That both ways agree is what the model tests check.
 *
 * @module
 */

import { MemoryRange } from "../memory_range.ts";
import type { Plan } from "./plan.ts";
import { growth, hasRoom, isCalm, isExactly, isPlain, soleIn, vaStep, wantedAccess, withAccess } from "./sole.ts";
import type { PartitionState, State } from "../map/state.ts";
import type { Step } from "./steps.ts";
import type { Access } from "../targets.ts";

const NOTHING: readonly never[] = [];

/** The plan for a change over `[start, end)` alone, or `null` where it is not that simple. */
export function planSingle(
  old: State,
  next: State,
  start: number,
  end: number,
  spareMappings: () => number,
): Plan | null {
  if (!isCalm(old) || next.dmaTargets.length > 0 || old.partitions !== next.partitions) return null;
  const from = soleIn(old, start, end);
  const to = soleIn(next, start, end);
  if (from === null || to === null || !isPlain(from) || !isPlain(to)) return null;

  const va = vaStep(start, end, from, to);
  const vmas = va === null ? old.vmas : old.vmas + growth(old, start, end, from, to);
  if (!hasRoom(old, vmas, spareMappings)) return null;
  const wanted = wantedAccess(to);
  if (keepsAll(old.partitions, start, end, wanted)) {
    const state = vmas === next.vmas ? next : withTargets(next, next.partitions, vmas);
    return { state, steps: va === null ? NOTHING : [va], discards: NOTHING, torn: NOTHING };
  }
  const held = rangesHeld(old.partitions, start, end, wanted);
  if (held === null) return null;

  const steps: Step[] = [];
  const partitions = old.partitions.slice();
  let isLive = false;
  for (let i = 0; i < held.length; i++) {
    const partition = partitions[i]!;
    const access = held[i]!;
    if (access === wanted) {
      isLive ||= va !== null && wanted !== null;
      continue;
    }
    if (access !== null) {
      steps.push({ kind: "partition", partition, start, end, from: access, to: null, uncertain: false });
    }
    partitions[i] = withAccess(partition, start, end, wanted);
  }
  const unmaps = steps.length;
  if (va !== null) steps.push(va);
  for (let i = 0; i < held.length; i++) {
    const partition = old.partitions[i]!;
    if (wanted === null || held[i] === wanted) continue;
    steps.push({ kind: "partition", partition, start, end, from: null, to: wanted, uncertain: false });
  }
  const seen = steps.length - (va !== null && !isLive ? 1 : 0);
  return {
    state: withTargets(next, partitions, vmas),
    steps,
    discards: NOTHING,
    torn: seen > 1 && (unmaps > 0 || isLive) ? [new MemoryRange(start, end)] : NOTHING,
  };
}

function withTargets(next: State, partitions: readonly PartitionState[], vmas: number): State {
  return {
    regions: next.regions,
    layers: next.layers,
    visible: next.visible,
    beaten: next.beaten,
    partitions,
    dmaTargets: next.dmaTargets,
    vmas,
    lost: next.lost,
    poisoned: next.poisoned,
    stale: next.stale,
  };
}

/** Whether every partition has what it should, so that there is nothing to tell. */
function keepsAll(partitions: readonly PartitionState[], start: number, end: number, wanted: Access | null): boolean {
  for (const { book } of partitions) if (book.throughout(start, end) !== wanted) return false;
  return true;
}

/** What each partition has there, `null` for nothing; `null` at all where the ranges of one do not match the span. */
function rangesHeld(
  partitions: readonly PartitionState[],
  start: number,
  end: number,
  wanted: Access | null,
): readonly (Access | null)[] | null {
  const held: (Access | null)[] = [];
  // A partition may be attached more than once: all together is more than it holds at most.
  let ranges = partitions.length;
  for (const { book } of partitions) ranges += book.size;
  for (const { target, book } of partitions) {
    const access = book.throughout(start, end);
    if (access === undefined) return null;
    if (access === null) {
      if (wanted !== null && target.capacity !== undefined && ranges > target.capacity) return null;
    } else if (access !== wanted && !isExactly(book, start, end)) {
      return null;
    }
    held.push(access);
  }
  return held;
}
