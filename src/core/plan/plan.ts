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

import type { MemoryRange } from "../memory_range.ts";
import type { Change, OwnRange } from "../map/edits.ts";
import { EVERYWHERE, normalize, type Span } from "../span.ts";
import { type Damage, type PartitionState, type State, UNDAMAGED } from "../map/state.ts";
import { unpinAll } from "./attend_track.ts";
import { DmaTrack } from "./dma_track.ts";
import { exposedRanges } from "./exposure.ts";
import { dmaGoodbyes, slotGoodbyes } from "./goodbyes.ts";
import { HostTrack } from "./host_track.ts";
import { SlotTrack } from "./slot_track.ts";
import type { Step } from "./steps.ts";
import { type Track, Walk } from "./walk.ts";

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
 * Plans requests, one at a time. A plan depends on nothing but what it is handed: the tracks and cursors are kept from one
 * plan to the next only because making them takes as long as the walk.
 */
export class Planner {
  /** One for each partition and DMA target that is told, in their order. */
  readonly #partitions: SlotTrack[] = [];
  readonly #devices: DmaTrack[] = [];
  readonly #host = new HostTrack();
  /** Those that are shown what changes: that of host memory always. */
  readonly #shown: Track[] = [this.#host];
  readonly #walk = new Walk();

  /**
   * Plans the way from `old` to the next state.
   *
   * @throws {MappingError} If the next state cannot be: huge pages cut, no file for a DMA target.
   * @throws {LimitError} If it would take more memory slots or kernel mappings than there are.
   */
  plan(old: State, { state: next, changed, removed }: Change, facts: Facts): Plan {
    const spans = spansToCompare(old, changed);
    const host = this.#host;
    host.follow(old);
    this.#follow(old, next, spans, facts);
    this.#walk.go(old, next, spans, this.#shown);
    // Those that have just come are shown all there is.
    if (old.partitions !== next.partitions || old.dmaTargets !== next.dmaTargets) {
      const newcomers = [...this.#partitions, ...this.#devices].filter(({ isNew }) => isNew);
      if (newcomers.length > 0) this.#walk.go(next, next, EVERYWHERE, newcomers);
    }
    const parked = host.complete(removed);
    host.checkLimit(facts.spareMappings);
    let { partitions, dmaTargets } = next;
    let steps: readonly Step[] = host.steps;
    if (this.#complete(old, next)) {
      partitions = this.#partitions.map(({ after }) => after);
      dmaTargets = this.#devices.map(({ after }) => after);
      steps = this.#inOrder(host, old, next);
    }
    const state = next.withTargets(partitions, dmaTargets, host.hostMappings, mended(old.damage, spans), parked);
    return { old, state, steps, discards: host.discards, exposed: exposedRanges(steps, host, this.#partitions) };
  }

  /** Sets the tracks upon their targets: those that stay or come. A partition that is disposed is told nothing. */
  #follow(old: State, next: State, spans: readonly Span[], { capacities }: Facts): void {
    const partitions = this.#partitions;
    const devices = this.#devices;
    const shown = this.#shown;
    let told = 0;
    let count = 1; // Behind that of host memory.
    for (let i = 0; i < next.partitions.length; i++) {
      const partition = next.partitions[i]!;
      const capacity = capacities[i]!;
      if (capacity < 0) continue;
      const isNew = old.partitions !== next.partitions && old.partitions.every(({ id }) => id !== partition.id);
      const track = partitions[told] ??= new SlotTrack();
      told++;
      track.follow(partition, isNew ? EVERYWHERE : spans, capacity, next.trackers > 0, isNew);
      if (isNew) continue;
      if (shown[count] !== track) shown[count] = track;
      count++;
    }
    for (let i = 0; i < next.dmaTargets.length; i++) {
      const dma = next.dmaTargets[i]!;
      const isNew = old.dmaTargets !== next.dmaTargets && old.dmaTargets.every(({ id }) => id !== dma.id);
      const track = devices[i] ??= new DmaTrack();
      track.follow(dma, isNew ? EVERYWHERE : spans, isNew);
      if (isNew) continue;
      if (shown[count] !== track) shown[count] = track;
      count++;
    }
    if (partitions.length > told) partitions.length = told;
    if (devices.length > next.dmaTargets.length) devices.length = next.dmaTargets.length;
    if (shown.length > count) shown.length = count;
  }

  /** Says that the walk is over, and whether a target is told anything, comes or goes. */
  #complete(old: State, next: State): boolean {
    const partitions = this.#partitions;
    const devices = this.#devices;
    // A partition that is disposed goes as well.
    let isTold = old.partitions !== next.partitions || old.dmaTargets !== next.dmaTargets ||
      partitions.length !== next.partitions.length;
    for (let i = 0; i < partitions.length; i++) {
      const track = partitions[i]!;
      if (track.isIdle) continue;
      track.completeAll(next, heldElsewhere(track, partitions));
      isTold = true;
    }
    for (let i = 0; i < devices.length; i++) {
      const track = devices[i]!;
      if (track.isIdle) continue;
      track.completeAll(next);
      isTold = true;
    }
    return isTold;
  }

  /** All steps, in the order of effects. */
  #inOrder(host: HostTrack, old: State, next: State): readonly Step[] {
    const partitions = this.#partitions;
    const devices = this.#devices;
    const leavers = old.partitions === next.partitions
      ? NOBODY
      : old.partitions.filter(({ id }) => next.partitions.every((partition) => partition.id !== id));
    const steps: Step[] = [];
    for (const { leaving } of devices) append(steps, leaving);
    if (old.dmaTargets !== next.dmaTargets) {
      for (const dma of old.dmaTargets) {
        if (next.dmaTargets.every(({ id }) => id !== dma.id)) append(steps, dmaGoodbyes(dma));
      }
    }
    for (const { unpins } of partitions) append(steps, unpins);
    for (const leaver of leavers) append(steps, unpinAll(leaver));
    for (const { leaving } of partitions) append(steps, leaving);
    for (const leaver of leavers) append(steps, slotGoodbyes(leaver));
    append(steps, host.steps);
    for (const { arriving } of devices) append(steps, arriving);
    for (const { arriving } of partitions) append(steps, arriving);
    for (const { turns } of partitions) append(steps, turns);
    for (const { pins } of partitions) append(steps, pins);
    return steps;
  }
}

const NOBODY: readonly PartitionState[] = [];

/** One by one: there are few, and a list that is spread out is made anew each time. */
function append(steps: Step[], more: readonly Step[]): void {
  for (let i = 0; i < more.length; i++) steps.push(more[i]!);
}

/** The spans to compare, in order and not touching. */
function spansToCompare({ damage }: State, changed: readonly Span[]): readonly Span[] {
  return damage === UNDAMAGED ? normalize(changed) : withOutOfStep(damage, changed);
}

/** The same where something is out of step: a request looks again at what an earlier failure left so where it passes. */
function withOutOfStep({ outOfStep }: Damage, changed: readonly Span[]): readonly Span[] {
  return normalize([...changed, ...changed.flatMap(({ start, end }) => outOfStep.overlapping(start, end))]);
}

/** The damage that is left once `spans` have been compared and put right. */
function mended(damage: Damage, spans: readonly Span[]): Damage {
  return damage === UNDAMAGED || spans.length === 0 ? damage : lessDamaged(damage, spans);
}

function lessDamaged(damage: Damage, spans: readonly Span[]): Damage {
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

/** How many ranges a partition that is attached twice holds by its other attachments. */
function heldElsewhere({ partition: { id, target } }: SlotTrack, tracks: readonly SlotTrack[]): number {
  let count = 0;
  if (tracks.length > 1) {
    for (const { after } of tracks) if (after.target === target && after.id !== id) count += after.slots.held.size;
  }
  return count;
}
