/**
 * Old state + next state + where they differ -> an ordered list of steps, each with its inverse.
 *
 * ```
 *   DMA unmaps | unpins | partition unmaps | VA replacements, removals |
 *   DMA maps | partition maps | pins, prefetches || VA discards
 * ```
 *
 * The order is one for all requests. Nothing may reach memory that is about to change (unmaps come first), nothing is
 * told of memory that is not there yet (maps come after), and private memory, whose loss cannot be undone, is given up
 * when nothing can fail any more.
 *
 * @module
 */

import { LimitError } from "../errors.ts";
import { MemoryRange } from "../memory_range.ts";
import { prefetchSteps, pushPins } from "./plan_attendance.ts";
import { bookedDma, planDmaTargets, pushDmaMaps, pushDmaUnmaps } from "./plan_dma.ts";
import { planSingle } from "./plan_single.ts";
import {
  booked,
  type PartitionPlan,
  planPartitions,
  pushPartitionMaps,
  pushPartitionUnmaps,
} from "./plan_partitions.ts";
import type { RangeMap } from "../range_map.ts";
import { EVERYWHERE, normalize, type Span } from "../span.ts";
import type { State } from "../map/state.ts";
import type { AttendStep, Step } from "./steps.ts";
import { type Diff, type VaStep, type VaSteps, vaSteps } from "./va_steps.ts";
import { fragmentsIn } from "../map/view.ts";

/** What to do, and the state it leads to. */
export interface Plan {
  /** The state once every step is done. */
  readonly state: State;
  /** The steps in order. */
  readonly steps: readonly Step[];
  /**
   * Private memory to give up once the steps are done and the request has happened: its contents could not be brought
   * back, so nothing may fail after it, and failing to give it up fails nothing.
   */
  readonly discards: readonly VaStep[];
  /** Where a running guest could see the request half done; empty where it is atomic to it. */
  readonly torn: readonly MemoryRange[];
}

/**
 * Plans the way from `old` to `next`, which differ at most over `changed`. `spareMappings` is how many kernel mappings
 * may be added to those there are.
 *
 * @throws {MappingError} If the next state cannot be: private memory lost, huge pages cut, no file for a DMA target.
 * @throws {LimitError} If it would take more memory slots or kernel mappings than there are.
 */
export function plan(
  old: State,
  next: State,
  changed: readonly Span[],
  spareMappings: () => number,
): Plan {
  const [only] = changed;
  if (only !== undefined && changed.length === 1) {
    const short = planSingle(old, next, only.start, only.end, spareMappings);
    if (short !== null) return short;
  }
  const diffs = diffsOf(old, next, changed);
  const va = vaSteps(old, next, diffs);
  checkMappings(va, old, spareMappings());
  const told = planPartitions(old, next, diffs);
  const dmas = planDmaTargets(old, next, diffs);

  const steps: Step[] = [];
  for (const dma of dmas) pushDmaUnmaps(steps, dma);
  const pins: AttendStep[] = [];
  const pinned = told.map((told) => pushPins(pins, told, va, next, told.was ? diffs : EVERYWHERE));
  const prefetches = prefetchSteps(told, va, old, next, diffs);
  for (const step of pins) if (!step.to) steps.push(step);
  for (const step of prefetches) if (!step.to) steps.push(step);
  for (const partition of told) pushPartitionUnmaps(steps, partition);
  for (const step of va.replacements) steps.push(step);
  for (const step of va.removals) steps.push(step);
  for (const dma of dmas) pushDmaMaps(steps, dma);
  for (const partition of told) pushPartitionMaps(steps, partition);
  for (const step of pins) if (step.to) steps.push(step);
  for (const step of prefetches) if (step.to) steps.push(step);

  const state: State = {
    regions: next.regions,
    layers: next.layers,
    visible: next.visible,
    beaten: next.beaten,
    partitions: booked(next.partitions, told, pinned),
    dmaTargets: bookedDma(next.dmaTargets, dmas),
    vmas: va.vmas,
    lost: without(old.lost, diffs),
    poisoned: old.poisoned,
    stale: without(old.stale, diffs),
  };
  return { state, steps, discards: va.discards, torn: tornRanges(steps, va, told) };
}

/** The spans to compare, ordered and disjoint, each with who shows there before and after. */
function diffsOf(old: State, next: State, changed: readonly Span[]): readonly Diff[] {
  if (changed.length === 0) return NO_DIFFS;
  let spans = changed;
  if (old.stale.size > 0) {
    // A request looks again at what an earlier failure left out of step where it passes.
    spans = [...changed, ...changed.flatMap(({ start, end }) => old.stale.overlapping(start, end))];
  }
  return normalize(spans).map(({ start, end }) => {
    return { start, end, before: fragmentsIn(old, start, end), after: fragmentsIn(next, start, end) };
  });
}

const NO_DIFFS: readonly Diff[] = [];

function without(marked: RangeMap<true>, spans: readonly Span[]): RangeMap<true> {
  if (marked.size === 0) return marked;
  return spans.reduce((left, { start, end }) => left.delete(start, end), marked);
}

function checkMappings(va: VaSteps, old: State, spareMappings: number): void {
  const more = va.peakVmas - old.vmas;
  // Whatever gives mappings back is let through: it is the way out.
  if (more <= spareMappings || va.vmas <= old.vmas) return;
  throw new LimitError(
    "host mappings",
    Math.max(0, old.vmas + spareMappings),
    va.peakVmas,
    "use fewer or larger mappings, or raise the sysctl vm.max_map_count",
  );
}

/**
 * Where a running guest could see the request half done.
 *
 * One system call that a guest sees is atomic to it, and ranges that only appear are no tear: each was absent before.
 */
function tornRanges(steps: readonly Step[], va: VaSteps, told: readonly PartitionPlan[]): readonly MemoryRange[] {
  const [only] = steps;
  if (only === undefined || (steps.length === 1 && !(only.kind === "va" && isLate(only)))) return NONE_TORN;
  let unmaps = 0;
  const seen: Span[] = [];
  for (const step of steps) {
    if (step.kind !== "partition") continue;
    if (step.to === null) unmaps++;
    seen.push(step);
  }
  let live = 0;
  let late = false;
  for (const list of [va.replacements, va.removals, va.discards]) {
    for (const step of list) {
      if (!isUnderRange(step, told)) continue;
      live++;
      late ||= isLate(step);
      seen.push(step);
    }
  }
  if (!late && (seen.length < 2 || (unmaps === 0 && live === 0))) return NONE_TORN;
  return normalize(seen).map(({ start, end }) => new MemoryRange(start, end));
}

/** Whether the step replaces memory by way of another address, which a guest could see. */
function isLate({ to }: VaStep): boolean {
  return to?.mapping.backing?.mayFailLate ?? false;
}

const NONE_TORN: readonly MemoryRange[] = [];

/** Whether a guest may look at `span` all the while: some partition has it before and after. */
function isUnderRange({ start, end }: Span, told: readonly PartitionPlan[]): boolean {
  return told.some(({ partition, book }) => partition.book.overlaps(start, end) && book.overlaps(start, end));
}
