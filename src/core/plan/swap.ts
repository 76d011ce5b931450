/**
 * The shortest way, for what a running virtual machine asks most: over one span, one mapping or hole gives way to
 * another. A mapping comes, goes or is replaced; a region comes, goes or gives way. One system call on host memory, and
 * at most one range to take from the partition before it, or to give to it after.
 *
 * It decides nothing of its own: where anything else is concerned it returns `null`, and the request takes the way of
 * all others. That both come to the same is what the model tests check.
 *
 * @module
 */

import { hide, type Region, show } from "../map/overlap.ts";
import type { RangeMap } from "../range_map.ts";
import {
  accessIn,
  growth,
  hasRoom,
  isCalm,
  isExactly,
  isPlain,
  isPlainMapping,
  isWritable,
  NOBODY,
  type Sole,
  soleIn,
  soleOf,
  vaStep,
  wantedAccess,
  withAccess,
} from "./sole.ts";
import {
  isSameMemory,
  type MapParams,
  type Mapping,
  type PartitionState,
  type RegionState,
  type State,
} from "../map/state.ts";
import type { PartitionStep, Step } from "./steps.ts";
import type { Access } from "../targets.ts";

/** A request that is one system call on host memory. */
export interface Swap {
  /** The state after it. */
  readonly state: State;
  /** What host memory is to show, `null` for nothing. */
  readonly mapping: Mapping | null;
  /** Whether it may be written. */
  readonly writable: boolean;
  /** The range that the partition loses before, or gets afterwards. */
  readonly step: PartitionStep | null;
  /** The mapping that is in no region any more. */
  readonly gone: Mapping | null;
}

/** Backs `[start, end)` of `region` by `mapping`, or by nothing for `null`; `null` where that takes more. */
export function swapMapping(
  old: State,
  region: Region,
  start: number,
  end: number,
  mapping: Mapping | null,
  spareMappings: () => number,
): Swap | null {
  const owner = old.regions.get(region);
  if (owner === undefined || !isCalm(old)) return null;
  const { params, mappings } = owner;
  if (params === null || params.prefetch || !showsAlone(old.visible, region, start, end)) return null;
  const edit = mappings.exchange(start, end, mapping);
  if (edit === null) return null;
  const { map, was } = edit;
  if (!isPlainMapping(was) || !isPlainMapping(mapping)) return null;
  if (!isOther(was, mapping)) return null;
  // A mapping that touches no other is one to the kernel as well, and cuts the hole it is in in two.
  const vmas = old.vmas + (mapping === null ? 0 : 2) - (was === null ? 0 : 2);
  const step = keepsAccess(region, was, mapping)
    ? null
    : tell(old.partitions, start, end, accessIn(region, params, was), accessIn(region, params, mapping));
  if (step === undefined || !hasRoom(old, vmas, spareMappings)) return null;
  const state = stateAfter(old, { region, params, mappings: map }, old.visible, old.beaten, step, vmas);
  return { state, mapping, writable: isWritable(params, mapping), step, gone: was };
}

/** Maps `region`, or unmaps it where `params` are `null`; `null` where that takes more, or nothing of host memory. */
export function swapRegion(
  old: State,
  region: Region,
  params: MapParams | null,
  spareMappings: () => number,
): Swap | null {
  const owner = old.regions.get(region);
  if (owner === undefined || (owner.params === null) === (params === null) || !isCalm(old)) return null;
  const { start, end } = region.range;
  const { mappings } = owner;
  const mapping = mappings.throughout(start, end);
  if (mapping === undefined) return null;
  const { visible, beaten, before, after } = params === null ? hide(old, region) : show(old, region);
  if (before === undefined || after === undefined || (params !== null && after !== region)) return null;
  const own: Sole = { region, params: params ?? owner.params, mappings, mapping };
  const other = params === null ? after : before;
  const beneath = other === null ? NOBODY : soleOf(old, other, start, end);
  if (beneath === null || !isOther(beneath.mapping, mapping) || !isPlain(own) || !isPlain(beneath)) return null;
  const from = params === null ? own : beneath;
  const to = params === null ? beneath : own;
  const vmas = old.vmas + growth(old, start, end, from, to);
  const writable = isWritable(to.params, to.mapping);
  const step = writable === isWritable(from.params, from.mapping) && areLike(from, to)
    ? null
    : tell(old.partitions, start, end, wantedAccess(from), wantedAccess(to));
  if (step === undefined || !hasRoom(old, vmas, spareMappings)) return null;
  const state = stateAfter(old, { region, params, mappings }, visible, beaten, step, vmas);
  return { state, mapping: to.mapping, writable, step, gone: null };
}

/** The state with `next` for its region, what is then to see, and the partitions as they are after `step`. */
function stateAfter(
  old: State,
  next: RegionState,
  visible: State["visible"],
  beaten: State["beaten"],
  step: PartitionStep | null,
  vmas: number,
): State {
  const regions = old.regions.with(next.region, next);
  // Where there is a step, there is one partition.
  const partitions = step === null ? old.partitions : [withAccess(step.partition, step.start, step.end, step.to)];
  return {
    regions,
    layers: old.layers,
    visible,
    beaten,
    partitions,
    dmaTargets: old.dmaTargets,
    vmas,
    lost: old.lost,
    poisoned: old.poisoned,
    stale: old.stale,
  };
}

/** The steps of a swap of `[start, end)` in order, for undoing them. */
export function swapSteps(old: State, { state, step }: Swap, start: number, end: number): readonly Step[] {
  const [from, to] = [soleIn(old, start, end), soleIn(state, start, end)];
  if (from === null || to === null) throw new Error("A swap is of one thing for another");
  const va = vaStep(start, end, from, to);
  return (step?.to === null ? [step, va] : [va, step]).filter((step) => step !== null);
}

/** Whether it makes no difference to partitions which of the two `region` shows. */
function keepsAccess({ holes }: Region, a: Mapping | null, b: Mapping | null): boolean {
  return holes === "fault" || (a !== null && b !== null && a.writable === b.writable);
}

/** Whether partitions need not care which of the two shows, if both may be written or neither. */
function areLike(a: Sole, b: Sole): boolean {
  if (a.mapping === null || b.mapping === null || a.params === null || b.params === null) return false;
  if (a.region?.holes !== "exit" || b.region?.holes !== "exit") return false;
  return a.params === b.params || (a.params.executable === true) === (b.params.executable === true);
}

/** Whether the two are not the same memory, so that host memory is mapped anew or given back. */
function isOther(a: Mapping | null, b: Mapping | null): boolean {
  return a === null || b === null ? a !== b : !isSameMemory(a, b);
}

/** Whether `region` shows throughout `[start, end)`, and beside it no other. */
function showsAlone(visible: RangeMap<Region>, region: Region, start: number, end: number): boolean {
  if (visible.throughout(start - 1, end + 1) === region) return true;
  const left = visible.get(start - 1) ?? region;
  const right = visible.get(end) ?? region;
  return left === region && right === region && visible.throughout(start, end) === region;
}

/**
 * The range that the partition gets or loses, `null` for none: one at most, and not one for another, since a guest
 * would see that. `undefined` where it is more.
 */
function tell(
  partitions: readonly PartitionState[],
  start: number,
  end: number,
  held: Access | null,
  wanted: Access | null,
): PartitionStep | null | undefined {
  if (held === wanted) return null;
  const [partition] = partitions;
  if (partition === undefined) return null;
  if (partitions.length > 1 || (held !== null && wanted !== null)) return undefined;
  const { target, book } = partition;
  const fits = wanted === null ? isExactly(book, start, end) : book.size < (target.capacity ?? Infinity);
  return fits ? { kind: "partition", partition, start, end, from: held, to: wanted, uncertain: false } : undefined;
}
