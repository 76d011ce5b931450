/**
 * The requests that make the next memory map from the present one, and where the two may differ.
 *
 * A request here only decides which regions exist, what they map and who is visible. What that means for host memory,
 * partitions and DMA targets is worked out by `plan.ts` from the old state, the new state and the spans that changed,
 * which is why several requests can become one.
 *
 * @module
 */

import { addToLayers, removeFromLayers } from "./layers.ts";
import { checkOverlap, fragments, hide, type OverlapRule, show } from "./overlap.ts";
import { MappingError } from "../errors.ts";
import { MemoryRange } from "../memory_range.ts";
import { Place, RangeMap } from "../range_map.ts";
import type { MapParams, Mapping, OwnMemory, Region } from "./region.ts";
import type { Span } from "../span.ts";
import { type DmaState, EMPTY_BOOK, type PartitionState, type State } from "./state.ts";

/** The next state, and where what is visible or what backs it may differ from the last one. */
export interface Change {
  /** The next state; what targets have been told is still as in the old one. */
  readonly state: State;
  /** Where to compare. */
  readonly changed: readonly Span[];
  /** The mappings that lose an entry, once for each, for counting the files in use. */
  readonly gone: readonly Mapping[];
  /** The mappings of which one entry became two. */
  readonly split: readonly Mapping[];
  /** Memory in no file that is in no region any more. */
  readonly removed: readonly OwnRange[];
}

/** A part of memory that is in no file, by its own offsets. */
export interface OwnRange extends Span {
  readonly memory: OwnMemory;
}

const NOWHERE: readonly Span[] = [];
const NO_MAPPINGS: readonly Mapping[] = [];
const NO_MEMORY: readonly OwnRange[] = [];

function change(state: State, changed: readonly Span[]): Change {
  return { state, changed, gone: NO_MAPPINGS, split: NO_MAPPINGS, removed: NO_MEMORY };
}

/** Adds an unmapped region without mappings. */
export function addRegion(state: State, region: Region, rule: OverlapRule): Change {
  checkOverlap(state.layers, region, rule);
  const added = { region, params: null, mappings: RangeMap.EMPTY };
  return change(state.withRegion(region, added, addToLayers(state.layers, region), state), NOWHERE);
}

/** Maps a region, or changes how it is mapped. `params` are from `paramsOf`. */
export function mapRegion(state: State, region: Region, params: MapParams): Change {
  const { params: before, mappings } = state.regionState(region);
  if (before === params) return change(state, NOWHERE);
  const mapped = { region, params, mappings };
  if (before !== null) {
    return change(state.withRegion(region, mapped, state.layers, state), fragments(state.visible, region));
  }
  const view = show(state, region);
  return change(state.withRegion(region, mapped, state.layers, view), view.changed);
}

/** Unmaps a region, which keeps its mappings. */
export function unmapRegion(state: State, region: Region): Change {
  const { params, mappings } = state.regionState(region);
  if (params === null) return change(state, NOWHERE);
  const view = hide(state, region);
  return change(state.withRegion(region, { region, params: null, mappings }, state.layers, view), view.changed);
}

/** Removes a region and its mappings. */
export function removeRegion(state: State, region: Region): Change {
  const { params, mappings } = state.regionState(region);
  const view = params === null
    ? { visible: state.visible, beaten: state.beaten, changed: NOWHERE }
    : hide(state, region);
  return {
    state: state.withRegion(region, null, removeFromLayers(state.layers, region), view),
    changed: view.changed,
    gone: Array.from(mappings, ({ value }) => value),
    split: NO_MAPPINGS,
    removed: ownMemoryIn(mappings, region.range.start, region.range.end),
  };
}

/** What is where an edit begins: one for all of them, since it is looked at at once. */
const there = new Place<Mapping>();

/**
 * Backs `[start, end)` of a region by `mapping`, or by nothing for `null`. What was there is cut or gone.
 *
 * @throws {MappingError} If memory that is in no file would be replaced, whose contents nobody could want to lose so.
 */
export function setMapping(
  state: State,
  region: Region,
  start: number,
  end: number,
  mapping: Mapping | null,
  mayLose: boolean = false,
): Change {
  const { params, mappings: before } = state.regionState(region);
  before.seek(start, there);
  const isOneThing = there.end >= end;
  if (isOneThing && there.value === null && mapping === null) return change(state, NOWHERE);
  const removed = isOneThing && (there.value === null || there.value.own === null)
    ? NO_MEMORY
    : ownMemoryIn(before, start, end);
  if (mapping !== null && removed.length > 0 && !mayLose) throw wouldBeLost(region, start, end);
  const mappings = mapping === null ? before.delete(start, end) : before.set(start, end, mapping);
  const { gone, split } = isOneThing ? touchedAt(there, start, end) : touchedIn(before, start, end);
  // It outlives all managers, and would keep the last one's file.
  there.value = null;
  const next = state.withRegion(region, { region, params, mappings }, state.layers, state);
  const changed = params === null ? NOWHERE : fragments(state.visible, region, start, end);
  return { state: next, changed, gone, split, removed };
}

function wouldBeLost({ name }: Region, start: number, end: number): MappingError {
  return new MappingError(
    `Region "${name}" has memory there that is in no file and would be lost, remove it first`,
    new MemoryRange(start, end),
  );
}

/** A part of a region, and what is to back it. */
export interface Renewal extends Span {
  readonly region: Region;
  readonly mapping: Mapping;
}

/**
 * Backs parts of regions by other memory. Unlike `setMapping` it may take the place of memory that is in no file, which is
 * given up once the request has happened: whoever asks for it has the contents, or wants them gone.
 */
export function renewMappings(state: State, renewals: readonly Renewal[]): Change {
  const changed: Span[] = [];
  const gone: Mapping[] = [];
  const split: Mapping[] = [];
  const removed: OwnRange[] = [];
  let next = state;
  for (const { region, start, end, mapping } of renewals) {
    const { params, mappings } = next.regionState(region);
    const touched = touchedIn(mappings, start, end);
    gone.push(...touched.gone);
    split.push(...touched.split);
    removed.push(...ownMemoryIn(mappings, start, end));
    if (params !== null) changed.push(...fragments(next.visible, region, start, end));
    next = next.withRegion(region, { region, params, mappings: mappings.set(start, end, mapping) }, next.layers, next);
  }
  return { state: next, changed, gone, split, removed };
}

/** The memory in no file that `mappings` have in `[start, end)`. */
function ownMemoryIn(mappings: RangeMap<Mapping>, start: number, end: number): readonly OwnRange[] {
  const found: OwnRange[] = [];
  for (const entry of mappings.overlapping(start, end)) {
    const { own, delta } = entry.value;
    if (own === null) continue;
    found.push({ memory: own, start: Math.max(entry.start, start) + delta, end: Math.min(entry.end, end) + delta });
  }
  return found.length === 0 ? NO_MEMORY : found;
}

/** What a request does to the entries of a region's mappings. */
export type Touched = Pick<Change, "gone" | "split">;

const UNTOUCHED: Touched = { gone: NO_MAPPINGS, split: NO_MAPPINGS };

/** What giving `[start, end)` to another mapping does to the entries of `mappings`. */
export function touchedIn(mappings: RangeMap<Mapping>, start: number, end: number): Touched {
  const first = new Place<Mapping>();
  mappings.seek(start, first);
  if (first.end >= end) return touchedAt(first, start, end);
  const inside = mappings.overlapping(start, end).filter((entry) => entry.start >= start && entry.end <= end);
  return { gone: inside.map(({ value }) => value), split: NO_MAPPINGS };
}

/** The same where `[start, end)` is one thing, or lies in one. */
function touchedAt(there: Place<Mapping>, start: number, end: number): Touched {
  const { value } = there;
  if (value === null) return UNTOUCHED;
  // One that is cut at one end stays one.
  if (there.start < start) return there.end > end ? { gone: NO_MAPPINGS, split: [value] } : UNTOUCHED;
  return there.end > end ? UNTOUCHED : { gone: [value], split: NO_MAPPINGS };
}

/** Attaches a partition that has been told of nothing yet. */
export function addPartition(state: State, partition: Omit<PartitionState, "slots" | "pins">): Change {
  const partitions = [...state.partitions, { ...partition, slots: EMPTY_BOOK, pins: EMPTY_BOOK }];
  return change(state.withTargets(partitions, state.dmaTargets), NOWHERE);
}

/** Detaches the partition with that id, if it is there. */
export function removePartition(state: State, id: number): Change {
  const partitions = state.partitions.filter((attached) => attached.id !== id);
  if (partitions.length === state.partitions.length) return change(state, NOWHERE);
  return change(state.withTargets(partitions, state.dmaTargets), NOWHERE);
}

/** Attaches a DMA target that has been told of nothing yet. */
export function addDmaTarget(state: State, target: Omit<DmaState, "mappings">): Change {
  const dmaTargets = [...state.dmaTargets, { ...target, mappings: EMPTY_BOOK }];
  return change(state.withTargets(state.partitions, dmaTargets), NOWHERE);
}

/** Detaches the DMA target with that id, if it is there. */
export function removeDmaTarget(state: State, id: number): Change {
  const dmaTargets = state.dmaTargets.filter((attached) => attached.id !== id);
  if (dmaTargets.length === state.dmaTargets.length) return change(state, NOWHERE);
  return change(state.withTargets(state.partitions, dmaTargets), NOWHERE);
}

/** Lets `trackers` want to know which pages are written, of guest memory of `length` bytes. */
export function setTrackers(state: State, trackers: number, length: number): Change {
  // Whether slots log changes with the first and the last one.
  const changed = (trackers > 0) === (state.trackers > 0) ? NOWHERE : [{ start: 0, end: length }];
  return change(state.withTrackers(trackers), changed);
}
