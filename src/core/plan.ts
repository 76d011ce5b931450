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

import { hex, LimitError, MappingError } from "./errors.ts";
import { MemoryRange } from "./memory_range.ts";
import { fitCapacity, type RangeChanges, reconcile } from "./slots.ts";
import { type Entry, RangeMap } from "./range_map.ts";
import { normalize, type Span } from "./span.ts";
import type { DmaState, PartitionState, Piece, State } from "./state.ts";
import type { Access } from "./targets.ts";
import { inverseVaSteps, type VaStep, type VaSteps, vaSteps } from "./va_steps.ts";

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
}

/** What to do, and the state it leads to. */
export interface Plan {
  /** The state once every step is done. */
  readonly state: State;
  /** The steps in order. */
  readonly steps: readonly Step[];
  /** Where a running guest could see the request half done; empty where it is atomic to it. */
  readonly torn: readonly MemoryRange[];
}

/** What the host allows. */
export interface HostLimits {
  /** How many kernel mappings the manager may add to those it has. */
  readonly spareMappings: number;
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

const ACCESS: readonly Access[] = [
  { writable: false, executable: false },
  { writable: true, executable: false },
  { writable: false, executable: true },
  { writable: true, executable: true },
];

/** One object per kind of access, so that equal means identical. */
function accessOf(writable: boolean, executable: boolean): Access {
  return ACCESS[(writable ? 1 : 0) + (executable ? 2 : 0)]!;
}

const isSameAccess = (a: Access, b: Access) => a === b;

function isSameDma(a: Piece, b: Piece): boolean {
  if (a.writable !== b.writable || a.region.type !== b.region.type) return false;
  const [x, y] = [a.mapping, b.mapping];
  return x === y ||
    (x.backing !== null && y.backing !== null && x.backing.file === y.backing.file && x.delta === y.delta);
}

function isSamePiece(a: Piece, b: Piece): boolean {
  return a.mapping === b.mapping && a.region === b.region && a.params === b.params;
}

/**
 * Plans the way from `old` to `next`, which differ at most over `changed`.
 *
 * @throws {MappingError} If the next state cannot be: private memory lost, huge pages cut, no file for a DMA target.
 * @throws {LimitError} If it would take more memory slots or kernel mappings than there are.
 */
export function plan(old: State, next: State, changed: readonly Span[], limits: HostLimits): Plan {
  const spans = withStale(old, normalize(changed));
  const state = { ...next, view: viewOver(next, spans) };
  const va = vaSteps(old, state, spans);
  checkMappings(va, old, limits);
  const partitions = state.partitions.filter(({ target }) => !(target.disposed ?? false))
    .map((partition) => planPartition(partition, old, state, spans));
  const dmaTargets = state.dmaTargets.map((dma) => planDma(dma, old, state, spans));
  const leaving = old.partitions.filter(({ id, target }) =>
    !(target.disposed ?? false) && !state.partitions.some((partition) => partition.id === id)
  ).map((partition) => planLeaving(partition, old));

  const told = [...partitions, ...leaving];
  const attend = told.flatMap((partition) => attendSteps(partition, va, old, state, spans));
  const steps: Step[] = [
    ...dmaTargets.flatMap(({ dma, changes }) => dmaSteps(dma, changes.gone, false)),
    ...leavingDma(old, state).flatMap((dma) => dmaSteps(dma, [...dma.book], false)),
    ...attend.filter((step) => !step.to),
    ...told.flatMap(({ partition, changes }) => partitionSteps(partition, changes.gone, false)),
    ...va.replacements,
    ...va.removals,
    ...dmaTargets.flatMap(({ dma, changes }) => dmaSteps(dma, changes.added, true)),
    ...told.flatMap(({ partition, changes }) => partitionSteps(partition, changes.added, true)),
    ...attend.filter((step) => step.to),
    ...va.discards,
  ];
  let { lost, stale } = old;
  for (const { start, end } of spans) {
    lost = lost.delete(start, end);
    stale = stale.delete(start, end);
  }
  const after: State = {
    ...state,
    partitions: partitions.map(({ partition, changes }) => ({ ...partition, book: changes.book })),
    dmaTargets: dmaTargets.map(({ dma, changes }) => ({ ...dma, book: changes.book })),
    vmas: va.vmas,
    lost,
    stale,
  };
  return { state: after, steps, torn: tornRanges(steps, va, told) };
}

/** A request looks again at what an earlier failure left out of step where it passes. */
function withStale(old: State, spans: readonly Span[]): readonly Span[] {
  if (old.stale.size === 0) return spans;
  return normalize([...spans, ...spans.flatMap(({ start, end }) => old.stale.overlapping(start, end))]);
}

/** The view of `next`, worked out anew over `spans` from who is visible there and what backs them. */
function viewOver(next: State, spans: readonly Span[]): RangeMap<Piece> {
  let { view } = next;
  for (const span of spans) {
    const pieces: Entry<Piece>[] = [];
    for (const { start, end, value: region } of next.visible.overlapping(span.start, span.end)) {
      const shown = next.regions.get(region.id);
      if (shown === undefined || shown.params === null) continue;
      const { params } = shown;
      const from = Math.max(start, span.start);
      const to = Math.min(end, span.end);
      for (const entry of shown.mappings.overlapping(from, to)) {
        const mapping = entry.value;
        pieces.push({
          start: Math.max(entry.start, from),
          end: Math.min(entry.end, to),
          value: { mapping, region, params, writable: params.writable && mapping.writable },
        });
      }
    }
    view = view.paint(span.start, span.end, pieces, isSamePiece);
  }
  return view;
}

function checkMappings(va: VaSteps, old: State, { spareMappings }: HostLimits): void {
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

interface PartitionPlan {
  readonly partition: PartitionState;
  readonly changes: RangeChanges<Access>;
}

function planPartition(partition: PartitionState, old: State, state: State, spans: readonly Span[]): PartitionPlan {
  const isNew = !old.partitions.some(({ id }) => id === partition.id);
  const over = isNew ? [EVERYWHERE] : spans;
  const wanted = over.flatMap((span) => wantedAccess(state, span));
  const changes = reconcile(partition.book, wanted, over, isSameAccess);
  if (changes === null) return { partition, changes: { gone: [], added: [], book: partition.book } };
  const { capacity } = partition.target;
  return { partition, changes: capacity === undefined ? changes : fitCapacity(changes, capacity, isSameAccess) };
}

const EVERYWHERE: Span = { start: 0, end: Number.MAX_SAFE_INTEGER };

function planLeaving(partition: PartitionState, _old: State): PartitionPlan {
  return { partition, changes: { gone: [...partition.book], added: [], book: RangeMap.EMPTY } };
}

/** What a partition should hold over `span`: backed parts, or whole windows where holes fault. */
function wantedAccess(state: State, span: Span): Entry<Access>[] {
  const wanted: Entry<Access>[] = [];
  for (const { start, end, value: region } of state.visible.overlapping(span.start, span.end)) {
    const from = Math.max(start, span.start);
    const to = Math.min(end, span.end);
    if (region.holes === "fault") {
      const params = state.regions.get(region.id)?.params;
      if (params == null) continue;
      wanted.push({ start: from, end: to, value: accessOf(params.writable, params.executable) });
      continue;
    }
    for (const piece of state.view.overlapping(from, to)) {
      const { writable, params } = piece.value;
      wanted.push({
        start: Math.max(piece.start, from),
        end: Math.min(piece.end, to),
        value: accessOf(writable, params.executable),
      });
    }
  }
  return state.poisoned.size === 0 ? wanted : wanted.flatMap((entry) => outsidePoison(entry, state.poisoned));
}

function outsidePoison(entry: Entry<Access>, poisoned: RangeMap<true>): Entry<Access>[] {
  let left = RangeMap.EMPTY.set(entry.start, entry.end, entry.value as never) as RangeMap<Access>;
  for (const { start, end } of poisoned.overlapping(entry.start, entry.end)) left = left.delete(start, end);
  return [...left];
}

interface DmaPlan {
  readonly dma: DmaState;
  readonly changes: RangeChanges<Piece>;
}

function planDma(dma: DmaState, old: State, state: State, spans: readonly Span[]): DmaPlan {
  const isNew = !old.dmaTargets.some(({ id }) => id === dma.id);
  const over = isNew ? [EVERYWHERE] : spans;
  const wanted = over.flatMap(({ start, end }) =>
    state.view.overlapping(start, end).map((entry) => ({
      start: Math.max(entry.start, start),
      end: Math.min(entry.end, end),
      value: entry.value,
    }))
  );
  if (dma.needsFd) {
    const bare = wanted.find(({ value }) => value.mapping.backing === null);
    if (bare !== undefined) {
      throw new MappingError(
        `A DMA target needs file descriptors and the memory at ${hex(bare.start)} is private, back it by a memfd`,
        new MemoryRange(bare.start, bare.end),
      );
    }
  }
  const changes = reconcile(dma.book, wanted, over, isSameDma);
  return { dma, changes: changes ?? { gone: [], added: [], book: dma.book } };
}

function leavingDma(old: State, state: State): readonly DmaState[] {
  return old.dmaTargets.filter(({ id }) => !state.dmaTargets.some((dma) => dma.id === id));
}

function dmaSteps(dma: DmaState, entries: readonly Entry<Piece>[], maps: boolean): Step[] {
  return entries.map(({ start, end, value }) => ({
    kind: "dma",
    dma,
    start,
    end,
    from: maps ? null : value,
    to: maps ? value : null,
  }));
}

function partitionSteps(partition: PartitionState, entries: readonly Entry<Access>[], maps: boolean): Step[] {
  return entries.map(({ start, end, value }) => ({
    kind: "partition",
    partition,
    start,
    end,
    from: maps ? null : value,
    to: maps ? value : null,
  }));
}

/** MAP_FIXED drops page locks and brings no page in, so pins and prefetches go with the memory, undo included. */
function attendSteps(
  { partition, changes }: PartitionPlan,
  va: VaSteps,
  old: State,
  state: State,
  spans: readonly Span[],
): AttendStep[] {
  const { target, pin } = partition;
  const pins = pin && target.pinRange !== undefined;
  const prefetches = target.prefetchRange !== undefined;
  if (!pins && !prefetches) return [];
  const steps: AttendStep[] = [];
  const push = (kind: "pin" | "prefetch", { start, end }: Span, to: boolean) =>
    steps.push({ kind, partition, start, end, to });

  const was = old.partitions.some(({ id }) => id === partition.id);
  const stays = state.partitions.some(({ id }) => id === partition.id);
  if (pins) {
    const replaced = [...va.replacements, ...va.removals, ...va.discards].filter(({ action }) => action !== "protect");
    if (was) {
      const unpinned = stays
        ? replaced.flatMap(({ from }) => from.filter(({ value }) => value !== null))
        : [...old.view];
      for (const span of unpinned) push("pin", span, false);
    }
    if (stays) {
      const pinned = was ? replaced.filter(({ to }) => to !== null) : [...state.view];
      for (const span of pinned) push("pin", span, true);
    }
  }
  if (prefetches && stays) {
    const fresh = RangeMapOf([...changes.added, ...va.replacements.filter(({ action }) => action === "map")]);
    for (const span of was ? spans : [EVERYWHERE]) {
      for (const { start, end, value } of state.view.overlapping(span.start, span.end)) {
        if (!value.params.prefetch) continue;
        if (fresh.overlaps(start, end) || old.view.get(start)?.params.prefetch !== true) {
          push("prefetch", { start, end }, true);
        }
      }
    }
    for (const { from } of va.replacements) {
      for (const entry of from) {
        if (entry.value?.params.prefetch === true) push("prefetch", entry, false);
      }
    }
  }
  return steps;
}

function RangeMapOf(spans: readonly Span[]): RangeMap<true> {
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
  let unmaps = 0;
  const seen: Span[] = [];
  for (const step of steps) {
    if (step.kind !== "partition") continue;
    if (step.to === null) unmaps++;
    seen.push(step);
  }
  const isLive = ({ start, end }: Span) =>
    told.some(({ partition, changes }) => partition.book.overlaps(start, end) && changes.book.overlaps(start, end));
  const live = [...va.replacements, ...va.removals, ...va.discards].filter(isLive);
  const late = live.some(({ to }) => to?.mapping.backing?.mayFailLate ?? false);
  seen.push(...live);
  if (!late && (seen.length < 2 || (unmaps === 0 && live.length === 0))) return [];
  return normalize(seen).map(({ start, end }) => new MemoryRange(start, end));
}
