/**
 * The whole memory map as one immutable value: which regions there are and what shows where, and what each target has
 * been told of it.
 *
 * @module
 */

import type { Layers } from "./layers.ts";
import type { View } from "./overlap.ts";
import { RangeMap } from "../range_map.ts";
import type { Mapping, OwnMemory, Piece, Region, RegionState } from "./region.ts";
import { RegionTable } from "./region_table.ts";
import type { Span } from "../span.ts";
import type { Access, Partition } from "../targets.ts";

/** The ranges a target has been told of, by region GPA. */
export interface Book<V> {
  /** What it holds for certain. */
  readonly held: RangeMap<V>;
  /** What it may hold besides, because an undo failed. */
  readonly uncertain: readonly Span[];
}

/** The book of a target that has been told nothing. */
export const EMPTY_BOOK: Book<never> = { held: RangeMap.EMPTY, uncertain: [] };

/** A partition and what it has been told. */
export interface PartitionState {
  /** Unique in its manager. */
  readonly id: number;
  /** The partition itself. */
  readonly target: Partition;
  /** Partition GPA minus region GPA, in bytes. */
  readonly offset: number;
  /** Whether all its memory is pinned. */
  readonly pin: boolean;
  /** Its slots. */
  readonly slots: Book<Access>;
  /** What it has pinned. */
  readonly pins: Book<true>;
}

/** A DMA target and what it has been told. The target is the shell's own interface, opaque here. */
export interface DmaState {
  /** Unique in its manager. */
  readonly id: number;
  /** The target itself. */
  readonly target: object;
  /** Whether it can only map memory that has a file descriptor. */
  readonly needsFd: boolean;
  /** Whether it holds on to the pages themselves. */
  readonly pins: boolean;
  /** Its mappings. */
  readonly mappings: Book<Piece>;
}

/** What earlier undos could not restore. */
export interface Damage {
  /** Where host memory is not what the regions say; with the memory in no file that is there although it should be parked. */
  readonly lost: RangeMap<Mapping | true>;
  /** Host addresses that are gone for good: something else may live there. */
  readonly poisoned: RangeMap<true>;
  /** Where some target is out of step; the next request over it looks again. */
  readonly outOfStep: RangeMap<true>;
}

/** Nothing is damaged: the one object that says so. */
export const UNDAMAGED: Damage = { lost: RangeMap.EMPTY, poisoned: RangeMap.EMPTY, outOfStep: RangeMap.EMPTY };

/**
 * Memory in no file that does not show: which offsets of it have been taken to addresses of the host's own. What has never
 * shown is not there.
 */
export type Parked = ReadonlyMap<OwnMemory, RangeMap<true>>;

/** Nothing is parked: the one object that says so. */
export const NOTHING_PARKED: Parked = new Map();

/** The memory map at one moment. */
export class State implements View {
  /** What can change about each region. */
  readonly regions: RegionTable;
  /** All regions, for the overlap rule. */
  readonly layers: Layers;
  /** The winner of each address. */
  readonly visible: RangeMap<Region>;
  /** The mapped regions that have been beaten somewhere since they were mapped. */
  readonly beaten: Layers;
  /** The partitions attached. */
  readonly partitions: readonly PartitionState[];
  /** The DMA targets attached. */
  readonly dmaTargets: readonly DmaState[];
  /** How many kernel mappings host memory takes, the reservation's own remainder included. */
  readonly hostMappings: number;
  /** What earlier undos could not restore. */
  readonly damage: Damage;
  /** How many want to know which pages are written: where there are any, slots log. */
  readonly trackers: number;
  /** Memory in no file that does not show. */
  readonly parked: Parked;

  /** A map without regions or targets. */
  static empty(): State {
    return new State(new RegionTable(), [], RangeMap.EMPTY, [], [], [], 1, UNDAMAGED, 0, NOTHING_PARKED);
  }

  private constructor(
    regions: RegionTable,
    layers: Layers,
    visible: RangeMap<Region>,
    beaten: Layers,
    partitions: readonly PartitionState[],
    dmaTargets: readonly DmaState[],
    hostMappings: number,
    damage: Damage,
    trackers: number,
    parked: Parked,
  ) {
    this.regions = regions;
    this.layers = layers;
    this.visible = visible;
    this.beaten = beaten;
    this.partitions = partitions;
    this.dmaTargets = dmaTargets;
    this.hostMappings = hostMappings;
    this.damage = damage;
    this.trackers = trackers;
    this.parked = parked;
  }

  /** The state with another one of a region, with `null` without it, and with what is then to see. */
  withRegion(region: Region, next: RegionState | null, layers: Layers, { visible, beaten }: View): State {
    const regions = this.regions.with(region, next ?? undefined);
    const { partitions, dmaTargets, hostMappings, damage, trackers, parked } = this;
    return new State(regions, layers, visible, beaten, partitions, dmaTargets, hostMappings, damage, trackers, parked);
  }

  /** The state with other targets, or told otherwise, and with what host memory has come to. */
  withTargets(
    partitions: readonly PartitionState[],
    dmaTargets: readonly DmaState[],
    hostMappings: number = this.hostMappings,
    damage: Damage = this.damage,
    parked: Parked = this.parked,
  ): State {
    if (
      partitions === this.partitions && dmaTargets === this.dmaTargets && hostMappings === this.hostMappings &&
      damage === this.damage && parked === this.parked
    ) {
      return this;
    }
    const { regions, layers, visible, beaten, trackers } = this;
    return new State(regions, layers, visible, beaten, partitions, dmaTargets, hostMappings, damage, trackers, parked);
  }

  /** The state with so many who want to know which pages are written. */
  withTrackers(trackers: number): State {
    const { regions, layers, visible, beaten, partitions, dmaTargets, hostMappings, damage, parked } = this;
    return new State(regions, layers, visible, beaten, partitions, dmaTargets, hostMappings, damage, trackers, parked);
  }

  /** What can change about `region`; the caller holds a live handle, so it is there. */
  regionState(region: Region): RegionState {
    const found = this.regions.get(region);
    if (found === undefined) throw new Error(`Region ${region.id} is not in the state`);
    return found;
  }
}

/** Nothing at all: what looks at states begins with. The one object that says so, as no request begins from it. */
export const NO_STATE: State = State.empty();
