/**
 * The shortest way, for what a running virtual machine asks most: inside a region one mapping or hole gives way to
 * another, and host memory is all that has to follow. One system call, and nobody to tell.
 *
 * It decides nothing of its own: where anything else is concerned it returns `null`, and the request takes the way of
 * all others. That both come to the same is what the model tests check.
 *
 * @module
 */

import type { Region } from "./overlap.ts";
import type { RangeMap } from "./range_map.ts";
import { isSameMemory, type Mapping, type State } from "./state.ts";
import type { VaStep } from "./va_steps.ts";

/** A request that is one system call. */
export interface Swap {
  /** The state after it. */
  readonly state: State;
  /** What backed the span before, `null` for a hole. */
  readonly from: Mapping | null;
  /** What backs it afterwards. */
  readonly to: Mapping | null;
  /** Whether the region is writable. */
  readonly writable: boolean;
}

/** What it takes to back `[start, end)` of `region` by `to`, or by nothing for `null`; `null` if it takes more. */
export function swap(state: State, region: Region, start: number, end: number, to: Mapping | null): Swap | null {
  if (state.dmaTargets.length > 0 || !state.lost.isEmpty || !state.poisoned.isEmpty || !state.stale.isEmpty) {
    return null;
  }
  const owner = state.regions.get(region);
  if (owner === undefined) return null;
  const { params, mappings } = owner;
  if (params === null || params.prefetch || !showsAlone(state.visible, region, start, end)) return null;
  const from = mappings.alone(start, end);
  if (from === undefined || !isPlain(from) || !isPlain(to)) return null;
  if (from === null ? to === null : to !== null && isSameMemory(from, to)) return null;
  // Where holes leave the guest, ranges come and go with mappings, and follow what they allow.
  if (region.holes === "exit" && from?.writable !== to?.writable) return null;
  for (const { pin, target } of state.partitions) {
    if (pin || (target.disposed ?? false)) return null;
  }
  const next: State = {
    regions: state.regions.with(region, {
      region,
      params,
      mappings: to === null ? mappings.delete(start, end) : mappings.set(start, end, to),
    }),
    layers: state.layers,
    visible: state.visible,
    beaten: state.beaten,
    partitions: state.partitions,
    dmaTargets: state.dmaTargets,
    // A mapping that touches no other is one to the kernel as well, and cuts the hole it is in in two.
    vmas: state.vmas + (to === null ? 0 : 2) - (from === null ? 0 : 2),
    lost: state.lost,
    poisoned: state.poisoned,
    stale: state.stale,
  };
  return { state: next, from, to, writable: params.writable };
}

/** Whether `region` shows throughout `[start, end)`, and beside it no other. */
function showsAlone(visible: RangeMap<Region>, region: Region, start: number, end: number): boolean {
  if (visible.throughout(start - 1, end + 1) === region) return true;
  const left = visible.get(start - 1) ?? region;
  const right = visible.get(end) ?? region;
  return left === region && right === region && visible.throughout(start, end) === region;
}

/** The one step of a swap, for undoing it. */
export function swapStep(region: Region, start: number, end: number, { from, to, state }: Swap): VaStep {
  const params = state.regions.get(region)?.params ?? null;
  const piece = (mapping: Mapping | null) =>
    mapping === null || params === null
      ? null
      : { mapping, region, params, writable: params.writable && mapping.writable };
  const was = piece(from);
  return {
    kind: "va",
    start,
    end,
    action: to === null ? "remove" : "map",
    to: piece(to),
    from: was === null ? [] : [{ start, end, value: was }],
  };
}

/** A hole, or a mapping that is neither private memory nor of huge pages nor of anything that may fail late. */
export function isPlain(mapping: Mapping | null): boolean {
  if (mapping === null) return true;
  const { backing } = mapping;
  return backing !== null && backing.pageSize === 4096 && !backing.mayFailLate;
}
