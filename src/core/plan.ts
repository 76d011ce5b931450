/**
 * Old state + next state + where they differ -> an ordered list of steps, each with its inverse.
 *
 * ```
 *   DMA unmaps | unpins | partition unmaps | VA replacements, removals | DMA maps | partition maps | pins, prefetch | VA discards
 * ```
 *
 * The order is one for all requests. Nothing may reach memory that is about to change (unmaps come first), nothing is
 * told of memory that is not there yet (maps come after), and private memory, whose loss cannot be undone, is given up
 * when nothing can fail any more.
 *
 * @module
 */

import { accessOf, isSameAccess } from "./access.ts";
import { hex, LimitError, MappingError } from "./errors.ts";
import { MemoryRange } from "./memory_range.ts";
import { planExchange } from "./plan_exchange.ts";
import { fitCapacity, type RangeChanges, reconcile } from "./slots.ts";
import { type Entry, RangeMap } from "./range_map.ts";
import { clip, normalize, type Span } from "./span.ts";
import type { DmaState, Exchange, PartitionState, State } from "./state.ts";
import type { Access } from "./targets.ts";
import { type Fragment, fragmentsIn, type Piece, pieceAt, piecesIn } from "./view.ts";
import { type Diff, inverseVaSteps, type VaStep, type VaSteps, vaSteps } from "./va_steps.ts";

/** One effect on one target. Going back is the same step with `from` and `to` exchanged. */
export type Step =
  | VaStep
  | PartitionStep
  | DmaStep
  | AttendStep;

/** A partition is told of a range (`from` is null) or loses one (`to` is null). */
export interface PartitionStep {
  /** Tells it from steps on other targets. */
  readonly kind: "partition";
  /** The partition. */
  readonly partition: PartitionState;
  /** The range in region GPAs; the partition's offset comes on top. */
  readonly start: number;
  /** One past the last GPA. */
  readonly end: number;
  /** The access before. */
  readonly from: Access | null;
  /** The access afterwards. */
  readonly to: Access | null;
  /** Whether an undo that failed leaves it open if the range is there, so that taking it away may fail. */
  readonly uncertain: boolean;
}

/** A DMA target is told of a mapping (`from` is null) or loses one (`to` is null). */
export interface DmaStep {
  /** Tells it from steps on other targets. */
  readonly kind: "dma";
  /** The DMA target. */
  readonly dma: DmaState;
  /** The first GPA. */
  readonly start: number;
  /** One past the last GPA. */
  readonly end: number;
  /** What it had mapped. */
  readonly from: Piece | null;
  /** What it has mapped afterwards. */
  readonly to: Piece | null;
  /** Whether an undo that failed leaves it open if the range is there, so that taking it away may fail. */
  readonly uncertain: boolean;
}

/** What follows memory wherever it is replaced: pinned pages, and pages brought in early. */
export interface AttendStep {
  /** `"pin"` may fail the request, `"prefetch"` may not. */
  readonly kind: "pin" | "prefetch";
  /** The partition that does it. */
  readonly partition: PartitionState;
  /** The range in region GPAs. */
  readonly start: number;
  /** One past the last GPA. */
  readonly end: number;
  /** Whether it is so afterwards; it was the opposite before. */
  readonly to: boolean;
  /** Whether an undo that failed leaves it open if it was, so that ending it may fail. */
  readonly uncertain: boolean;
}

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

/** What undoes `step`, in the order to do it. */
export function inverse(step: Step): readonly Step[] {
  switch (step.kind) {
    case "va":
      return inverseVaSteps(step);
    case "partition":
    case "dma":
      return [{ ...step, from: step.to, to: step.from } as Step];
    case "pin":
    case "prefetch":
      return [{ ...step, to: !step.to }];
  }
}

function isSameDma(a: Piece, b: Piece): boolean {
  if (a.writable !== b.writable || a.region.type !== b.region.type) return false;
  const [x, y] = [a.mapping, b.mapping];
  return x === y ||
    (x.backing !== null && y.backing !== null && x.backing.file === y.backing.file && x.delta === y.delta);
}

/**
 * Plans the way from `old` to `next`, which differ at most over `changed`. `spareMappings` is how many kernel mappings
 * may be added to those there are; `exchange` is set where `changed` is one mapping for another.
 *
 * @throws {MappingError} If the next state cannot be: private memory lost, huge pages cut, no file for a DMA target.
 * @throws {LimitError} If it would take more memory slots or kernel mappings than there are.
 */
export function plan(
  old: State,
  next: State,
  changed: readonly Span[],
  spareMappings: number,
  exchange?: Exchange,
): Plan {
  if (exchange !== undefined) {
    const short = planExchange(old, next, exchange, spareMappings);
    if (short !== null) return short;
  }
  const diffs = diffsOf(old, next, changed);
  const va = vaSteps(old, next, diffs);
  checkMappings(va, old, spareMappings);
  const told = planPartitions(old, next, diffs);
  const dmas = planDmaTargets(old, next, diffs);

  const steps: Step[] = [];
  for (const { dma, gone } of dmas) pushDmaSteps(steps, dma, gone, false, old.stale);
  const pins: AttendStep[] = [];
  const pinned = told.map((told) => pushPins(pins, told, va, next, told.was ? diffs : EVERYWHERE, old.stale));
  const prefetches = prefetchSteps(told, va, old, next, diffs);
  for (const step of pins) if (!step.to) steps.push(step);
  for (const step of prefetches) if (!step.to) steps.push(step);
  for (const { partition, gone } of told) pushPartitionSteps(steps, partition, gone, false, old.stale);
  for (const step of va.replacements) steps.push(step);
  for (const step of va.removals) steps.push(step);
  for (const { dma, added } of dmas) pushDmaSteps(steps, dma, added, true, old.stale);
  for (const { partition, added } of told) pushPartitionSteps(steps, partition, added, true, old.stale);
  for (const step of pins) if (step.to) steps.push(step);
  for (const step of prefetches) if (step.to) steps.push(step);

  const state: State = {
    regions: next.regions,
    layers: next.layers,
    mapped: next.mapped,
    visible: next.visible,
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

/** What changes for one partition. */
interface PartitionPlan extends RangeChanges<Access> {
  readonly partition: PartitionState;
  /** Whether it was attached before the request, and is after it. */
  readonly was: boolean;
  readonly stays: boolean;
}

const EVERYWHERE: readonly Span[] = [{ start: 0, end: Number.MAX_SAFE_INTEGER }];

/** Plans for partitions that stay, come and go. A disposed one is told nothing and leaves the state. */
function planPartitions(old: State, next: State, diffs: readonly Diff[]): PartitionPlan[] {
  const plans: PartitionPlan[] = [];
  for (const partition of next.partitions) {
    const { target, book } = partition;
    if (target.disposed ?? false) continue;
    const was = old.partitions === next.partitions || old.partitions.some(({ id }) => id === partition.id);
    const over = was ? diffs : EVERYWHERE;
    const wanted: Entry<Access>[] = [];
    if (was) { for (const { after } of diffs) pushWantedAccess(wanted, next, after); }
    else pushWantedAccess(wanted, next, fragmentsIn(next));
    let changes = reconcile(book, wanted, over, isSameAccess);
    if (changes !== null && target.capacity !== undefined) {
      changes = fitCapacity(changes, target.capacity, isSameAccess);
    }
    const { gone, added, book: after } = changes ?? { gone: [], added: [], book };
    plans.push({ partition, gone, added, book: after, was, stays: true });
  }
  if (old.partitions === next.partitions) return plans;
  for (const partition of old.partitions) {
    if (partition.target.disposed ?? false) continue;
    if (next.partitions.some(({ id }) => id === partition.id)) continue;
    plans.push({ partition, gone: [...partition.book], added: [], book: RangeMap.EMPTY, was: true, stays: false });
  }
  return plans;
}

/** The partitions with what they hold after the plan. */
function booked(
  partitions: readonly PartitionState[],
  plans: readonly PartitionPlan[],
  pinned: readonly RangeMap<true>[],
): readonly PartitionState[] {
  let same = plans.length === partitions.length;
  for (let i = 0; same && i < plans.length; i++) {
    const { partition, book } = plans[i]!;
    same = partition.book === book && partition.pinned === pinned[i];
  }
  if (same) return partitions;
  const states: PartitionState[] = [];
  plans.forEach(({ partition, book, stays }, index) => {
    if (stays) states.push({ ...partition, book, pinned: pinned[index]! });
  });
  return states;
}

/** What a partition should hold over `fragments`: backed parts, or whole windows where holes fault. */
function pushWantedAccess(wanted: Entry<Access>[], { poisoned }: State, fragments: readonly Fragment[]): void {
  const push = (start: number, end: number, value: Access) => {
    if (poisoned.size === 0) wanted.push({ start, end, value });
    else wanted.push(...outsidePoison({ start, end, value }, poisoned));
  };
  for (const { start, end, region, params: { writable, executable }, mappings } of fragments) {
    if (region.holes === "fault") {
      push(start, end, accessOf(writable, executable));
      continue;
    }
    for (const entry of mappings.overlapping(start, end)) {
      const access = accessOf(writable && entry.value.writable, executable);
      push(Math.max(entry.start, start), Math.min(entry.end, end), access);
    }
  }
}

function outsidePoison(entry: Entry<Access>, poisoned: RangeMap<true>): Entry<Access>[] {
  let left = RangeMap.EMPTY.set(entry.start, entry.end, entry.value as never) as RangeMap<Access>;
  for (const { start, end } of poisoned.overlapping(entry.start, entry.end)) left = left.delete(start, end);
  return [...left];
}

/** What changes for one DMA target. */
interface DmaPlan extends RangeChanges<Piece> {
  readonly dma: DmaState;
  readonly stays: boolean;
}

function planDmaTargets(old: State, next: State, spans: readonly Span[]): DmaPlan[] {
  const plans: DmaPlan[] = [];
  for (const dma of next.dmaTargets) {
    const was = old.dmaTargets === next.dmaTargets || old.dmaTargets.some(({ id }) => id === dma.id);
    const over = was ? spans : EVERYWHERE;
    const wanted = over.flatMap(({ start, end }) => piecesIn(next, start, end));
    if (dma.needsFd) checkFiles(wanted);
    const { gone, added, book } = reconcile(dma.book, wanted, over, isSameDma) ??
      { gone: [], added: [], book: dma.book };
    plans.push({ dma, gone, added, book, stays: true });
  }
  if (old.dmaTargets === next.dmaTargets) return plans;
  for (const dma of old.dmaTargets) {
    if (next.dmaTargets.some(({ id }) => id === dma.id)) continue;
    plans.push({ dma, gone: [...dma.book], added: [], book: RangeMap.EMPTY, stays: false });
  }
  return plans;
}

function bookedDma(targets: readonly DmaState[], plans: readonly DmaPlan[]): readonly DmaState[] {
  if (targets.length === 0) return targets;
  return plans.filter(({ stays }) => stays).map(({ dma, book }) => ({ ...dma, book }));
}

function checkFiles(wanted: readonly Entry<Piece>[]): void {
  const bare = wanted.find(({ value }) => value.mapping.backing === null);
  if (bare === undefined) return;
  throw new MappingError(
    `A DMA target needs file descriptors and the memory at ${hex(bare.start)} is private, back it by a memfd`,
    new MemoryRange(bare.start, bare.end),
  );
}

function pushDmaSteps(
  steps: Step[],
  dma: DmaState,
  entries: readonly Entry<Piece>[],
  maps: boolean,
  stale: RangeMap<true>,
): void {
  for (const { start, end, value } of entries) {
    const [from, to] = maps ? [null, value] : [value, null];
    steps.push({ kind: "dma", dma, start, end, from, to, uncertain: isUncertain(stale, start, end) });
  }
}

function pushPartitionSteps(
  steps: Step[],
  partition: PartitionState,
  entries: readonly Entry<Access>[],
  maps: boolean,
  stale: RangeMap<true>,
): void {
  for (const { start, end, value } of entries) {
    const [from, to] = maps ? [null, value] : [value, null];
    steps.push({ kind: "partition", partition, start, end, from, to, uncertain: isUncertain(stale, start, end) });
  }
}

function isUncertain(stale: RangeMap<true>, start: number, end: number): boolean {
  return stale.size > 0 && stale.overlaps(start, end);
}

/** Pages that come in early go with the memory, wherever it is replaced, undo included. */
function prefetchSteps(
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

/**
 * Pins follow the memory: MAP_FIXED drops page locks, so what is replaced is unpinned before and pinned after.
 *
 * @returns What is pinned afterwards.
 */
function pushPins(
  steps: AttendStep[],
  { partition, stays }: PartitionPlan,
  va: VaSteps,
  next: State,
  over: readonly Span[],
  stale: RangeMap<true>,
): RangeMap<true> {
  let { pinned } = partition;
  if (!partition.pin || partition.target.pinRange === undefined) return pinned;
  const push = ({ start, end }: Span, to: boolean) =>
    steps.push({ kind: "pin", partition, start, end, to, uncertain: isUncertain(stale, start, end) });
  const replaced: readonly Span[] = stays
    ? [...va.replacements, ...va.removals, ...va.discards].filter(({ action }) => action !== "protect")
    : EVERYWHERE;
  for (const { start, end } of replaced) {
    for (const entry of pinned.overlapping(start, end)) push(clip(entry, start, end), false);
    pinned = pinned.delete(start, end);
  }
  if (!stays) return pinned;
  for (const span of over) {
    for (const { start, end } of piecesIn(next, span.start, span.end)) {
      for (const gap of gapsIn(pinned, start, end)) push(gap, true);
      pinned = pinned.paint(start, end, [{ start, end, value: true }], isSamePin);
    }
  }
  return pinned;
}

const isSamePin = () => true;

/** The parts of `[start, end)` that `map` says nothing of. */
function gapsIn(map: RangeMap<true>, start: number, end: number): Span[] {
  const gaps: Span[] = [];
  let cursor = start;
  for (const entry of map.overlapping(start, end)) {
    if (cursor < entry.start) gaps.push({ start: cursor, end: entry.start });
    cursor = entry.end;
  }
  if (cursor < end) gaps.push({ start: cursor, end });
  return gaps;
}

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
    for (const piece of piecesIn(next, span.start, span.end)) {
      if (!piece.value.params.prefetch) continue;
      fresh ??= spanSet([...added, ...va.replacements.filter(({ action }) => action === "map")]);
      const isNew = fresh.overlaps(piece.start, piece.end) || pieceAt(old, piece.start)?.value.params.prefetch !== true;
      if (isNew) push(piece, true);
    }
  }
  for (const { from } of va.replacements) {
    for (const entry of from) {
      if (entry.value?.params.prefetch === true) push(entry, false);
    }
  }
}

function spanSet(spans: readonly Span[]): RangeMap<true> {
  let map: RangeMap<true> = RangeMap.EMPTY;
  for (const { start, end } of spans) map = map.set(start, end, true);
  return map;
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
