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
import { type Damage, type DmaState, type PartitionState, type State, UNDAMAGED } from "../map/state.ts";
import { unpinAll } from "./attend_track.ts";
import { DmaTrack } from "./dma_track.ts";
import { HostTrack } from "./host_track.ts";
import { SlotTrack } from "./slot_track.ts";
import { type DmaStep, type HostStep, isTurn, type SlotStep, type Step } from "./steps.ts";
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
  const partitions = slotTracks(old, next, spans, facts);
  const devices = next.dmaTargets.length === 0 ? NO_DMA_TRACKS : dmaTracks(old, next, spans);
  walk(old, next, spans, tracksOf(host, partitions, devices));
  // Those that have just come are shown all there is.
  const newcomers = newcomersAmong(old, next, partitions, devices);
  if (newcomers.length > 0) walk(next, next, EVERYWHERE, newcomers);
  const parked = host.complete(removed);
  host.checkLimit(facts.spareMappings);
  const partitionStates = completePartitions(next, partitions);
  const dmaStates = completeDmaTargets(next, devices);

  const leavers = old.partitions === next.partitions ? NO_PARTITIONS : departed(old, next);
  let steps: readonly Step[] = NO_STEPS;
  for (let i = 0; i < devices.length; i++) steps = then(steps, devices[i]!.leaving);
  if (old.dmaTargets !== next.dmaTargets) steps = then(steps, dmaGoodbyes(old, next));
  for (let i = 0; i < partitions.length; i++) steps = then(steps, partitions[i]!.unpins);
  for (const partition of leavers) steps = then(steps, unpinAll(partition));
  for (let i = 0; i < partitions.length; i++) steps = then(steps, partitions[i]!.leaving);
  for (const partition of leavers) steps = then(steps, slotGoodbyes(partition));
  steps = then(then(then(steps, host.parking), host.arriving), host.leaving);
  for (let i = 0; i < devices.length; i++) steps = then(steps, devices[i]!.arriving);
  for (let i = 0; i < partitions.length; i++) steps = then(steps, partitions[i]!.arriving);
  for (let i = 0; i < partitions.length; i++) steps = then(steps, partitions[i]!.turns);
  for (let i = 0; i < partitions.length; i++) steps = then(steps, partitions[i]!.pins);

  const state = next.withTargets(partitionStates, dmaStates, host.hostMappings, mended(old.damage, spans), parked);
  return { old, state, steps, discards: host.discards, exposed: exposedRanges(steps, host, partitions) };
}

/** All of the one, then all of the other. */
function then(first: readonly Step[], second: readonly Step[]): readonly Step[] {
  return second.length === 0 ? first : first.length === 0 ? second : [...first, ...second];
}

const NO_STEPS: readonly Step[] = [];

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

/** Tracks for the partitions that stay or come. A disposed one is told nothing. */
function slotTracks(old: State, next: State, spans: readonly Span[], { capacities }: Facts): readonly SlotTrack[] {
  const { partitions } = next;
  if (partitions.length === 0) return NO_SLOT_TRACKS;
  if (partitions.length === 1 && old.partitions === partitions && capacities[0]! >= 0) {
    return [new SlotTrack(partitions[0]!, next, spans, capacities[0]!, false)];
  }
  const tracks: SlotTrack[] = [];
  for (let i = 0; i < partitions.length; i++) {
    const partition = partitions[i]!;
    const capacity = capacities[i]!;
    if (capacity < 0) continue;
    const isNew = old.partitions !== partitions && old.partitions.every(({ id }) => id !== partition.id);
    tracks.push(new SlotTrack(partition, next, isNew ? EVERYWHERE : spans, capacity, isNew));
  }
  return tracks;
}

/** What is shown the changes. */
function tracksOf(host: HostTrack, partitions: readonly SlotTrack[], devices: readonly DmaTrack[]): readonly Track[] {
  if (devices.length === 0 && partitions.length === 1 && !partitions[0]!.isNew) return [host, partitions[0]!];
  return [host, ...partitions.filter(({ isNew }) => !isNew), ...devices.filter(({ isNew }) => !isNew)];
}

function newcomersAmong(
  old: State,
  next: State,
  partitions: readonly SlotTrack[],
  devices: readonly DmaTrack[],
): readonly Track[] {
  if (old.partitions === next.partitions && old.dmaTargets === next.dmaTargets) return NO_TRACKS;
  return [...partitions.filter(({ isNew }) => isNew), ...devices.filter(({ isNew }) => isNew)];
}

const NO_SLOT_TRACKS: readonly SlotTrack[] = [];
const NO_DMA_TRACKS: readonly DmaTrack[] = [];
const NO_TRACKS: readonly Track[] = [];
const NO_PARTITIONS: readonly PartitionState[] = [];

/** The partitions with what they hold after the request; those that are disposed leave. */
function completePartitions(next: State, tracks: readonly SlotTrack[]): readonly PartitionState[] {
  let isSame = tracks.length === next.partitions.length;
  for (let i = 0; i < tracks.length; i++) {
    const track = tracks[i]!;
    track.completeAll(heldElsewhere(track, tracks));
    isSame &&= track.after === track.partition;
  }
  return isSame ? next.partitions : tracks.map(({ after }) => after);
}

/** How many ranges a partition that is attached twice holds by its other attachments. */
function heldElsewhere({ partition: { id, target } }: SlotTrack, tracks: readonly SlotTrack[]): number {
  let count = 0;
  if (tracks.length > 1) {
    for (const { after } of tracks) if (after.target === target && after.id !== id) count += after.slots.held.size;
  }
  return count;
}

function dmaTracks(old: State, next: State, spans: readonly Span[]): readonly DmaTrack[] {
  return next.dmaTargets.map((dma) => {
    const isNew = old.dmaTargets !== next.dmaTargets && old.dmaTargets.every(({ id }) => id !== dma.id);
    return new DmaTrack(dma, next, isNew ? EVERYWHERE : spans, isNew);
  });
}

function completeDmaTargets(next: State, tracks: readonly DmaTrack[]): readonly DmaState[] {
  if (tracks.length === 0) return next.dmaTargets;
  const states = tracks.map(({ dma }, i) => {
    const mappings = tracks[i]!.complete(Infinity);
    return mappings === dma.mappings ? dma : { ...dma, mappings };
  });
  return states.every((state, i) => state === next.dmaTargets[i]) ? next.dmaTargets : states;
}

/** The partitions that the request detaches. */
function departed(old: State, next: State): PartitionState[] {
  return old.partitions.filter(({ id }) => next.partitions.every((partition) => partition.id !== id));
}

/** Takes everything away from a partition that goes. */
function slotGoodbyes(partition: PartitionState): SlotStep[] {
  const { uncertain, held } = partition.slots;
  return [
    ...uncertain.map(({ start, end }): SlotStep => (
      { kind: "slot", partition, start, end, from: null, to: null, uncertain: true }
    )),
    ...Array.from(held, ({ start, end, value }): SlotStep => (
      { kind: "slot", partition, start, end, from: value, to: null, uncertain: false }
    )),
  ];
}

/** Takes everything away from the DMA targets that go. */
function dmaGoodbyes(old: State, next: State): DmaStep[] {
  const leavers = old.dmaTargets.filter(({ id }) => next.dmaTargets.every((dma) => dma.id !== id));
  return leavers.flatMap((dma) => [
    ...dma.mappings.uncertain.map(({ start, end }): DmaStep => (
      { kind: "dma", dma, start, end, from: null, to: null, uncertain: true }
    )),
    ...Array.from(dma.mappings.held, ({ start, end, value }): DmaStep => (
      { kind: "dma", dma, start, end, from: value, to: null, uncertain: false }
    )),
  ]);
}

/**
 * Where a running guest could see the request half done.
 *
 * One system call that a guest sees is atomic to it, and ranges that only appear expose nothing: each was absent before.
 */
function exposedRanges(
  steps: readonly Step[],
  { parking, arriving, leaving }: HostTrack,
  partitions: readonly SlotTrack[],
): readonly MemoryRange[] {
  const only = steps[0];
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
function isUnderSlot({ start, end }: Span, partitions: readonly SlotTrack[]): boolean {
  return partitions.some(({ partition, after }) =>
    partition.slots.held.overlaps(start, end) && after.slots.held.overlaps(start, end)
  );
}
