/**
 * Old state + next state + where they differ -> an ordered list of steps, each with its inverse.
 *
 * ```
 *   DMA unmaps | unpins | partition unmaps | host memory: parking, replacements, removals |
 *   DMA maps | partition maps | pins, prefetches || parked memory is given up
 * ```
 *
 * The order is one for all requests. Nothing may reach memory that is about to change (unmaps come first), nothing is
 * told of memory that is not there yet (maps come after), and memory that is in no file, whose loss cannot be undone, is
 * given up when nothing can fail any more.
 *
 * @module
 */

import { MemoryRange } from "../memory_range.ts";
import type { Change, OwnRange } from "../map/edits.ts";
import { EVERYWHERE, normalize, type Span } from "../span.ts";
import { type Book, type Damage, type DmaState, type PartitionState, type State, UNDAMAGED } from "../map/state.ts";
import type { Access } from "../targets.ts";
import { AttendTrack, unpinAll } from "./attend_track.ts";
import { DmaTrack } from "./dma_track.ts";
import { HostTrack } from "./host_track.ts";
import { SlotTrack } from "./slot_track.ts";
import { type AttendStep, type HostStep, isTurn, type Step } from "./steps.ts";
import { type Track, walk } from "./walk.ts";

/** What the targets say of themselves, asked before planning. */
export interface Facts {
  /** How many kernel mappings may be added to those there are. */
  readonly spareMappings: number;
  /** How many ranges each partition of the next state can hold, in their order; negative where it is disposed. */
  readonly capacities: readonly number[];
}

/** What to do, and the state it leads to. */
export interface Plan {
  /** The state before. */
  readonly old: State;
  /** The state once every step is done. */
  readonly state: State;
  /** The steps in order. */
  readonly steps: readonly Step[];
  /**
   * Parked memory to give up once the request has happened: it could not be brought back, so nothing may fail after it,
   * and failing to give it up fails nothing.
   */
  readonly discards: readonly OwnRange[];
  /** Where a running guest could see the request half done; empty where it is atomic to it. */
  readonly exposed: readonly MemoryRange[];
}

/**
 * Plans the way from `old` to the next state.
 *
 * @throws {MappingError} If the next state cannot be: huge pages cut, no file for a DMA target.
 * @throws {LimitError} If it would take more memory slots or kernel mappings than there are.
 */
export function plan(old: State, { state: next, changed, removed }: Change, facts: Facts): Plan {
  const spans = spansToCompare(old, changed);
  const host = new HostTrack(old);
  const partitions = partitionTracks(old, next, spans, facts);
  const dmaTargets = next.dmaTargets.length === 0 ? NO_DMA : dmaTracks(old, next, spans);
  const tracks: Track[] = [host];
  const newTracks: Track[] = [];
  for (const { isNew, slots, attend } of partitions) {
    const list = isNew ? newTracks : tracks;
    list.push(slots);
    if (attend !== null) list.push(attend);
  }
  for (const { isNew, mappings } of dmaTargets) (isNew ? newTracks : tracks).push(mappings);
  walk(old, next, spans, tracks);
  // Those that have just come are shown all there is.
  if (newTracks.length > 0) walk(next, next, EVERYWHERE, newTracks);
  const parked = host.complete(removed);
  host.checkLimit(facts.spareMappings);

  const unpins: AttendStep[] = [];
  const pins: AttendStep[] = [];
  const partitionStates = completePartitions(next, partitions, unpins, pins);
  const dmaStates = completeDmaTargets(next, dmaTargets);

  const steps: Step[] = [];
  for (const { mappings } of dmaTargets) mappings.pushLeaving(steps);
  if (old.dmaTargets !== next.dmaTargets) pushDmaGoodbyes(steps, old, next);
  const gone = old.partitions === next.partitions ? NO_PARTITIONS : departed(old, next);
  for (const step of unpins) steps.push(step);
  for (const partition of gone) steps.push(...unpinAll(partition));
  for (const { slots } of partitions) slots.pushLeaving(steps);
  for (const partition of gone) pushSlotGoodbyes(steps, partition);
  for (const step of host.parking) steps.push(step);
  for (const step of host.arriving) steps.push(step);
  for (const step of host.leaving) steps.push(step);
  for (const { mappings } of dmaTargets) mappings.pushArriving(steps);
  for (const { slots } of partitions) slots.pushArriving(steps);
  for (const { slots } of partitions) slots.pushTurns(steps);
  for (const step of pins) steps.push(step);

  const state = next.withTargets(partitionStates, dmaStates, host.hostMappings, mended(old.damage, spans), parked);
  return { old, state, steps, discards: host.discards, exposed: exposedRanges(steps, host, partitions) };
}

/** The spans to compare, in order and not touching. */
function spansToCompare({ damage }: State, changed: readonly Span[]): readonly Span[] {
  if (damage === UNDAMAGED || changed.length === 0) return normalize(changed);
  // A request looks again at what an earlier failure left out of step where it passes.
  return normalize([...changed, ...changed.flatMap(({ start, end }) => damage.outOfStep.overlapping(start, end))]);
}

/** The damage that is left once `spans` have been compared and put right. */
function mended(damage: Damage, spans: readonly Span[]): Damage {
  if (damage === UNDAMAGED || spans.length === 0) return damage;
  let { lost, outOfStep } = damage;
  const { poisoned } = damage;
  for (const { start, end } of spans) {
    lost = lost.delete(start, end);
    outOfStep = outOfStep.delete(start, end);
    // Nobody may look there again, whatever the regions say.
    for (const poison of poisoned.overlapping(start, end)) lost = lost.set(poison.start, poison.end, true);
  }
  return lost.isEmpty && poisoned.isEmpty && outOfStep.isEmpty ? UNDAMAGED : { lost, poisoned, outOfStep };
}

/** The tracks of one partition. */
interface PartitionTracks {
  readonly partition: PartitionState;
  readonly capacity: number;
  /** Whether the request attaches it. */
  readonly isNew: boolean;
  readonly slots: SlotTrack;
  readonly attend: AttendTrack | null;
  /** What it holds after the request. */
  book: Book<Access>;
}

/** Tracks for the partitions that stay or come. A disposed one is told nothing. */
function partitionTracks(old: State, next: State, spans: readonly Span[], { capacities }: Facts): PartitionTracks[] {
  const tracks: PartitionTracks[] = [];
  for (let i = 0; i < next.partitions.length; i++) {
    const partition = next.partitions[i]!;
    const capacity = capacities[i]!;
    if (capacity < 0) continue;
    const isNew = old.partitions !== next.partitions && old.partitions.every(({ id }) => id !== partition.id);
    const over = isNew ? EVERYWHERE : spans;
    const slots = new SlotTrack(partition, next, over);
    const attend = AttendTrack.concerns(partition) ? new AttendTrack(partition, slots, over, isNew) : null;
    tracks.push({ partition, capacity, isNew, slots, attend, book: partition.slots });
  }
  return tracks;
}

/** The partitions with what they hold after the request; those that are disposed leave. */
function completePartitions(
  next: State,
  tracks: readonly PartitionTracks[],
  unpins: AttendStep[],
  pins: AttendStep[],
): readonly PartitionState[] {
  let states: PartitionState[] | null = tracks.length === next.partitions.length ? null : [];
  for (let i = 0; i < tracks.length; i++) {
    const track = tracks[i]!;
    const { partition, slots, attend } = track;
    track.book = slots.complete(track.capacity - heldElsewhere(partition, tracks));
    const pinned = attend === null ? partition.pins : attend.complete(unpins, pins);
    const isSame = track.book === partition.slots && pinned === partition.pins;
    if (isSame && states === null) continue;
    states ??= next.partitions.slice(0, i);
    const { id, target, offset, pin } = partition;
    states.push(isSame ? partition : { id, target, offset, pin, slots: track.book, pins: pinned });
  }
  return states ?? next.partitions;
}

/** How many ranges a partition that is attached twice holds by its other attachments. */
function heldElsewhere({ id, target }: PartitionState, tracks: readonly PartitionTracks[]): number {
  let count = 0;
  for (const { partition, book } of tracks) {
    if (partition.target === target && partition.id !== id) count += book.held.size;
  }
  return count;
}

interface DmaTracks {
  readonly dma: DmaState;
  /** Whether the request attaches it. */
  readonly isNew: boolean;
  readonly mappings: DmaTrack;
}

const NO_DMA: readonly DmaTracks[] = [];
const NO_PARTITIONS: readonly PartitionState[] = [];

function dmaTracks(old: State, next: State, spans: readonly Span[]): DmaTracks[] {
  return next.dmaTargets.map((dma) => {
    const isNew = old.dmaTargets !== next.dmaTargets && old.dmaTargets.every(({ id }) => id !== dma.id);
    return { dma, isNew, mappings: new DmaTrack(dma, next, isNew ? EVERYWHERE : spans) };
  });
}

function completeDmaTargets(next: State, tracks: readonly DmaTracks[]): readonly DmaState[] {
  if (tracks.length === 0) return next.dmaTargets;
  let isSame = true;
  const states = tracks.map(({ dma, mappings }) => {
    const book = mappings.complete(Infinity);
    if (book === dma.mappings) return dma;
    isSame = false;
    return { ...dma, mappings: book };
  });
  return isSame ? next.dmaTargets : states;
}

/** The partitions that the request detaches. */
function departed(old: State, next: State): PartitionState[] {
  return old.partitions.filter(({ id }) => next.partitions.every((partition) => partition.id !== id));
}

/** Takes everything away from a partition that goes. */
function pushSlotGoodbyes(steps: Step[], partition: PartitionState): void {
  for (const { start, end } of partition.slots.uncertain) {
    steps.push({ kind: "slot", partition, start, end, from: null, to: null, uncertain: true });
  }
  for (const { start, end, value } of partition.slots.held) {
    steps.push({ kind: "slot", partition, start, end, from: value, to: null, uncertain: false });
  }
}

/** Takes everything away from the DMA targets that go. */
function pushDmaGoodbyes(steps: Step[], old: State, next: State): void {
  for (const dma of old.dmaTargets) {
    if (next.dmaTargets.some(({ id }) => id === dma.id)) continue;
    for (const { start, end } of dma.mappings.uncertain) {
      steps.push({ kind: "dma", dma, start, end, from: null, to: null, uncertain: true });
    }
    for (const { start, end, value } of dma.mappings.held) {
      steps.push({ kind: "dma", dma, start, end, from: value, to: null, uncertain: false });
    }
  }
}

/**
 * Where a running guest could see the request half done.
 *
 * One system call that a guest sees is atomic to it, and ranges that only appear expose nothing: each was absent before.
 */
function exposedRanges(
  steps: readonly Step[],
  { parking, arriving, leaving }: HostTrack,
  partitions: readonly PartitionTracks[],
): readonly MemoryRange[] {
  const [only] = steps;
  if (only === undefined || (steps.length === 1 && (only.kind !== "host" || !isLate(only)))) return NOT_EXPOSED;
  let unmaps = 0;
  const seen: Span[] = [];
  for (const step of steps) {
    if (step.kind !== "slot" || isTurn(step)) continue;
    if (step.to === null) unmaps++;
    seen.push(step);
  }
  let live = 0;
  let late = false;
  for (const list of [parking, arriving, leaving]) {
    for (const step of list) {
      if (!isUnderSlot(step, partitions)) continue;
      live++;
      late ||= isLate(step);
      seen.push(step);
    }
  }
  if (!late && (seen.length < 2 || (unmaps === 0 && live === 0))) return NOT_EXPOSED;
  return normalize(seen).map(({ start, end }) => new MemoryRange(start, end));
}

const NOT_EXPOSED: readonly MemoryRange[] = [];

/** Whether the step replaces memory by way of another address, which a guest could see. */
function isLate({ mapping }: HostStep): boolean {
  return mapping?.backing?.mayFailLate ?? false;
}

/** Whether a guest may look at `span` all the while: some partition has it before and after. */
function isUnderSlot({ start, end }: Span, partitions: readonly PartitionTracks[]): boolean {
  return partitions.some(({ partition, book }) =>
    partition.slots.held.overlaps(start, end) && book.held.overlaps(start, end)
  );
}
