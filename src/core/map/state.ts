/**
 * The whole memory map as one immutable value, and the requests that make the next one from it.
 *
 * A request here only decides which regions exist, what they map and who is visible. What that means for host memory,
 * partitions and DMA targets is worked out by `plan.ts` from the old state, the new state and the spans that changed,
 * which is why several requests can become one.
 *
 * @module
 */

import {
  addToLayers,
  checkOverlap,
  fragments,
  hide,
  type Layers,
  type OverlapRule,
  type Region,
  removeFromLayers,
  show,
  type View,
} from "./overlap.ts";
import { RangeMap } from "../range_map.ts";
import { RegionTable } from "./region_table.ts";
import type { Span } from "../span.ts";
import type { Access, MemoryPolicy, Partition } from "../targets.ts";
import type { Piece } from "./view.ts";

/** How a mapped region is shown to guests. */
export interface MapParams {
  /** Whether the guest may write, where the mapping allows it too. */
  readonly writable: boolean;
  /** Whether the guest may execute; passed on to partitions. */
  readonly executable: boolean;
  /** Whether the memory is brought in ahead of use. */
  readonly prefetch: boolean;
}

/** What the core needs to know about the file behind a mapping. The shell's own object, passed through untouched. */
export interface Backing {
  /** Identifies the open file: equal for every handle that shares it. */
  readonly file: object;
  /** The granularity of mappings in bytes: 4096, or the huge page size of a hugetlb file. */
  readonly pageSize: number;
  /** Whether mapping it can fail after the old mapping is already gone. */
  readonly mayFailLate: boolean;
}

/** What backs a part of a region. Values do not move when an entry is cut: offsets are relative to the GPA. */
export interface Mapping {
  /** The file, or `null` for private anonymous memory. */
  readonly backing: Backing | null;
  /** File offset minus GPA, in bytes. */
  readonly delta: number;
  /** Whether the mapping may be written, where the region allows it too. */
  readonly writable: boolean;
  /** Where the host should take the pages from. */
  readonly policy: MemoryPolicy | undefined;
}

/** Whether two mappings are the same memory, whatever their protection. Private memory is the same only as itself. */
export function isSameMemory(a: Mapping, b: Mapping): boolean {
  // First what tells most pairs apart.
  return a === b ||
    (a.delta === b.delta && a.policy === b.policy && a.backing !== null && a.backing.file === b.backing?.file);
}

/** What can change about a region. */
export interface RegionState {
  /** What cannot. */
  readonly region: Region;
  /** How it is mapped, `null` while it is not. */
  readonly params: MapParams | null;
  /** What backs it, by GPA. */
  readonly mappings: RangeMap<Mapping>;
}

/** A partition and the ranges it has been told of, by region GPA. */
export interface PartitionState {
  /** Unique in its manager. */
  readonly id: number;
  /** The partition itself. */
  readonly target: Partition;
  /** Partition GPA minus region GPA, in bytes. */
  readonly offset: number;
  /** Whether all its memory is pinned. */
  readonly pin: boolean;
  /** The ranges it holds now. */
  readonly book: RangeMap<Access>;
  /** The ranges it has pinned now. */
  readonly pinned: RangeMap<true>;
  /** Ranges that it may hold besides, because an undo failed. */
  readonly doubts: readonly Span[];
  /** Ranges that it may have pinned besides, because an undo failed. */
  readonly pinDoubts: readonly Span[];
}

/** A DMA target and the mappings it has been told of. `T` is the shell's own interface, opaque here. */
export interface DmaState {
  /** Unique in its manager. */
  readonly id: number;
  /** The target itself. */
  readonly target: object;
  /** Whether it can only map memory that has a file descriptor. */
  readonly needsFd: boolean;
  /** The mappings it holds now. */
  readonly book: RangeMap<Piece>;
  /** Mappings that it may hold besides, because an undo failed. */
  readonly doubts: readonly Span[];
}

/** What earlier undos could not restore. */
export interface Damage {
  /** Where host memory is not what the regions say. */
  readonly lost: RangeMap<true>;
  /** Host addresses that are gone for good: something else may live there. */
  readonly poisoned: RangeMap<true>;
  /** Where some target is out of step; the next request over it looks again. */
  readonly stale: RangeMap<true>;
}

/** The memory map at one moment. */
export interface State extends View, Damage {
  /** What can change about each region. */
  readonly regions: RegionTable;
  /** All regions, for the overlap rule. */
  readonly layers: Layers;
  /** The partitions attached. */
  readonly partitions: readonly PartitionState[];
  /** The DMA targets attached. */
  readonly dmaTargets: readonly DmaState[];
  /** How many kernel mappings host memory takes, the reservation's own remainder included. */
  readonly vmas: number;
}

/** A map without regions or targets. */
export function emptyState(): State {
  return {
    regions: new RegionTable(),
    layers: [],
    visible: RangeMap.EMPTY,
    beaten: [],
    partitions: [],
    dmaTargets: [],
    vmas: 1,
    lost: RangeMap.EMPTY,
    poisoned: RangeMap.EMPTY,
    stale: RangeMap.EMPTY,
  };
}

/** The next state, and where what is visible or what backs it may differ from the last one. */
export interface Change {
  /** The next state; its books are still those of the old one. */
  readonly state: State;
  /** Where to compare. */
  readonly changed: readonly Span[];
  /** What became of the mappings that were there, for counting the files in use. */
  readonly touched?: Touched;
}

/** What a request does to the entries of regions' mappings. */
export interface Touched {
  /** The mappings that lose an entry, once for each. */
  readonly gone: readonly Mapping[];
  /** The mappings of which one entry became two. */
  readonly split: readonly Mapping[];
}

const NOWHERE: readonly Span[] = [];

/** The state with another one of a region, and with what it is then to see. */
function withRegion(state: State, next: RegionState, { visible, beaten }: View): State {
  return {
    regions: state.regions.with(next.region, next),
    layers: state.layers,
    visible,
    beaten,
    partitions: state.partitions,
    dmaTargets: state.dmaTargets,
    vmas: state.vmas,
    lost: state.lost,
    poisoned: state.poisoned,
    stale: state.stale,
  };
}

/** The region's state; the caller holds a live handle, so it is there. */
export function regionState(state: State, region: Region): RegionState {
  const found = state.regions.get(region);
  if (found === undefined) throw new Error(`Region ${region.id} is not in the state`);
  return found;
}

/** Adds an unmapped region without mappings. */
export function addRegion(state: State, region: Region, rule: OverlapRule): Change {
  checkOverlap(state.layers, region, rule);
  const added = withRegion(state, { region, params: null, mappings: RangeMap.EMPTY }, state);
  return { state: { ...added, layers: addToLayers(state.layers, region) }, changed: NOWHERE };
}

const PARAMS: readonly MapParams[] = Array.from({ length: 8 }, (_, bits) =>
  Object.freeze({
    writable: (bits & 1) !== 0,
    executable: (bits & 2) !== 0,
    prefetch: (bits & 4) !== 0,
  }));

/** The params that say so. The same ones are the same object. */
export function paramsOf(writable: boolean, executable: boolean, prefetch: boolean): MapParams {
  return PARAMS[(writable ? 1 : 0) + (executable ? 2 : 0) + (prefetch ? 4 : 0)]!;
}

/** Maps a region, or changes how it is mapped. `params` are from `paramsOf`. */
export function mapRegion(state: State, region: Region, params: MapParams): Change {
  const old = regionState(state, region);
  if (old.params !== null) {
    if (old.params === params) return { state, changed: NOWHERE };
    return { state: withRegion(state, { ...old, params }, state), changed: fragments(state.visible, region) };
  }
  const view = show(state, region);
  return { state: withRegion(state, { region, params, mappings: old.mappings }, view), changed: view.changed };
}

/** Unmaps a region, which keeps its mappings. */
export function unmapRegion(state: State, region: Region): Change {
  const old = regionState(state, region);
  if (old.params === null) return { state, changed: NOWHERE };
  const view = hide(state, region);
  return { state: withRegion(state, { region, params: null, mappings: old.mappings }, view), changed: view.changed };
}

/** Removes a region and its mappings. */
export function removeRegion(state: State, region: Region): Change {
  const { state: hidden, changed } = unmapRegion(state, region);
  const gone = [...regionState(state, region).mappings].map(({ value }) => value);
  const regions = hidden.regions.with(region, undefined);
  return {
    state: { ...hidden, regions, layers: removeFromLayers(hidden.layers, region) },
    changed,
    touched: { gone, split: [] },
  };
}

/** Backs `[start, end)` of a region by `mapping`, or by nothing for `null`. What was there is cut or gone. */
export function setMapping(state: State, region: Region, start: number, end: number, mapping: Mapping | null): Change {
  const { params, mappings: before } = regionState(state, region);
  const old = before.throughout(start, end);
  if (old === null && mapping === null) return { state, changed: NOWHERE };
  const mappings = mapping === null ? before.delete(start, end) : before.set(start, end, mapping);
  const touched = old === null ? UNTOUCHED : touchedIn(before, start, end);
  const next = withRegion(state, { region, params, mappings }, state);
  if (params === null) return { state: next, changed: NOWHERE, touched };
  return { state: next, changed: fragments(state.visible, region, start, end), touched };
}

const UNTOUCHED: Touched = { gone: [], split: [] };

/** What giving `[start, end)` to another mapping does to the entries of `mappings`. */
export function touchedIn(mappings: RangeMap<Mapping>, start: number, end: number): Touched {
  const first = mappings.entryAt(start);
  if (first !== undefined && first.end >= end) {
    // One that is cut at one end stays one.
    if (first.start < start) return first.end > end ? { gone: [], split: [first.value] } : UNTOUCHED;
    return first.end > end ? UNTOUCHED : { gone: [first.value], split: [] };
  }
  const inside = mappings.overlapping(start, end).filter((entry) => entry.start >= start && entry.end <= end);
  return { gone: inside.map(({ value }) => value), split: [] };
}

/** Attaches a partition that has been told of nothing yet. */
export function addPartition(
  state: State,
  partition: Pick<PartitionState, "id" | "target" | "offset" | "pin">,
): State {
  const added: PartitionState = {
    ...partition,
    book: RangeMap.EMPTY,
    pinned: RangeMap.EMPTY,
    doubts: NOWHERE,
    pinDoubts: NOWHERE,
  };
  return { ...state, partitions: [...state.partitions, added] };
}

/** Attaches a DMA target that has been told of nothing yet. */
export function addDmaTarget(state: State, target: Pick<DmaState, "id" | "target" | "needsFd">): State {
  return { ...state, dmaTargets: [...state.dmaTargets, { ...target, book: RangeMap.EMPTY, doubts: NOWHERE }] };
}
