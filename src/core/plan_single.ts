/**
 * The short way for what nearly all requests of a running virtual machine are: in one span, one mapping or hole gives
 * way to another. Put in place, taken away, replaced, switched, made read-only: one change of host memory at most, and
 * at most one range to take from and to give to each partition.
 *
 * It decides nothing of its own: where anything is unusual it returns `null`, and `plan.ts` plans the same change the
 * long way. That both ways agree is what the model tests check.
 *
 * @module
 */

import { accessOf } from "./access.ts";
import { MemoryRange } from "./memory_range.ts";
import type { Plan } from "./plan.ts";
import type { RangeMap } from "./range_map.ts";
import { isSameMemory, type MapParams, type Mapping, type PartitionState, type State } from "./state.ts";
import type { Step } from "./steps.ts";
import type { Access } from "./targets.ts";
import type { Region } from "./overlap.ts";
import { isPlain } from "./swap.ts";
import type { VaStep } from "./va_steps.ts";
import type { Piece } from "./view.ts";

const NOTHING: readonly never[] = [];

/** What shows throughout a span: one mapping or hole of a region, or nobody's. */
interface Sole {
  readonly region: Region | null;
  readonly params: MapParams | null;
  readonly mappings: RangeMap<Mapping> | null;
  readonly mapping: Mapping | null;
}

/** The plan for a change over `[start, end)` alone, or `null` where it is not that simple. */
export function planSingle(
  old: State,
  next: State,
  start: number,
  end: number,
  spareMappings: () => number,
): Plan | null {
  if (old.dmaTargets.length + next.dmaTargets.length > 0 || old.partitions !== next.partitions) return null;
  if (!old.lost.isEmpty || !old.poisoned.isEmpty || !old.stale.isEmpty) return null;
  const from = soleIn(old, start, end);
  const to = soleIn(next, start, end);
  if (from === null || to === null || from.params?.prefetch === true || to.params?.prefetch === true) return null;
  if (!isPlain(from.mapping) || !isPlain(to.mapping)) return null;

  const va = vaStep(start, end, from, to);
  const vmas = va === null ? old.vmas : old.vmas + growth(old, start, end, from, to);
  if (vmas > old.vmas && vmas + 2 > old.vmas + spareMappings()) return null;
  const wanted = wantedAccess(to);
  if (keepsAll(old.partitions, start, end, wanted)) {
    const state = vmas === next.vmas ? next : withTargets(next, next.partitions, vmas);
    return { state, steps: va === null ? NOTHING : [va], discards: NOTHING, torn: NOTHING };
  }
  const held = rangesHeld(old.partitions, start, end, wanted);
  if (held === null) return null;

  const steps: Step[] = [];
  const partitions = old.partitions.slice();
  let isLive = false;
  for (let i = 0; i < held.length; i++) {
    const partition = partitions[i]!;
    const access = held[i]!;
    if (access === wanted) {
      isLive ||= va !== null && wanted !== null;
      continue;
    }
    if (access !== null) {
      steps.push({ kind: "partition", partition, start, end, from: access, to: null, uncertain: false });
    }
    const { book } = partition;
    partitions[i] = withBook(partition, wanted === null ? book.delete(start, end) : book.set(start, end, wanted));
  }
  const unmaps = steps.length;
  if (va !== null) steps.push(va);
  for (let i = 0; i < held.length; i++) {
    const partition = old.partitions[i]!;
    if (wanted === null || held[i] === wanted) continue;
    steps.push({ kind: "partition", partition, start, end, from: null, to: wanted, uncertain: false });
  }
  const seen = steps.length - (va !== null && !isLive ? 1 : 0);
  return {
    state: withTargets(next, partitions, vmas),
    steps,
    discards: NOTHING,
    torn: seen > 1 && (unmaps > 0 || isLive) ? [new MemoryRange(start, end)] : NOTHING,
  };
}

function withTargets(next: State, partitions: readonly PartitionState[], vmas: number): State {
  return {
    regions: next.regions,
    layers: next.layers,
    visible: next.visible,
    beaten: next.beaten,
    partitions,
    dmaTargets: next.dmaTargets,
    vmas,
    lost: next.lost,
    poisoned: next.poisoned,
    stale: next.stale,
  };
}

function withBook({ id, target, offset, pin, pinned, doubts, pinDoubts }: PartitionState, book: RangeMap<Access>) {
  return { id, target, offset, pin, book, pinned, doubts, pinDoubts };
}

/** What shows throughout `[start, end)`; `null` where it is more than one thing. */
function soleIn(state: State, start: number, end: number): Sole | null {
  const region = state.visible.throughout(start, end);
  if (region === undefined) return null;
  return region === null ? NOBODY : soleOf(state, region, start, end);
}

const NOBODY: Sole = { region: null, params: null, mappings: null, mapping: null };

/** The same where `region` shows throughout. */
function soleOf(state: State, region: Region, start: number, end: number): Sole | null {
  const owner = state.regions.get(region);
  if (owner === undefined) return null;
  const { params, mappings } = owner;
  const mapping = mappings.throughout(start, end);
  return mapping === undefined ? null : { region, params, mappings, mapping };
}

function pieceOf({ region, params, mapping }: Sole): Piece | null {
  if (region === null || params === null || mapping === null) return null;
  return { mapping, region, params, writable: params.writable && mapping.writable };
}

function vaStep(start: number, end: number, from: Sole, to: Sole): VaStep | null {
  if (from.mapping === null && to.mapping === null) return null;
  const old = pieceOf(from);
  const piece = pieceOf(to);
  let action: "map" | "protect" | "remove" = piece === null ? "remove" : "map";
  if (old !== null && piece !== null && isSameMemory(old.mapping, piece.mapping)) {
    if (old.writable === piece.writable) return null;
    action = "protect";
  }
  return { kind: "va", start, end, action, to: piece, from: old === null ? NOTHING : [{ start, end, value: old }] };
}

/** What partitions should have there, `null` for nothing. */
function wantedAccess({ region, params, mapping }: Sole): Access | null {
  if (region === null || params === null) return null;
  if (region.holes === "fault") return accessOf(params.writable, params.executable);
  return mapping === null ? null : accessOf(params.writable && mapping.writable, params.executable);
}

/** Whether every partition has what it should, so that there is nothing to tell. */
function keepsAll(partitions: readonly PartitionState[], start: number, end: number, wanted: Access | null): boolean {
  for (const { target, pin, book } of partitions) {
    if (pin || (target.disposed ?? false) || book.throughout(start, end) !== wanted) return false;
  }
  return true;
}

/** What each partition has there, `null` for nothing; `null` at all where the ranges of one do not match the span. */
function rangesHeld(
  partitions: readonly PartitionState[],
  start: number,
  end: number,
  wanted: Access | null,
): readonly (Access | null)[] | null {
  const held: (Access | null)[] = [];
  // A partition may be attached more than once: all together is more than it holds at most.
  let ranges = partitions.length;
  for (const { book } of partitions) ranges += book.size;
  for (const { target, pin, book } of partitions) {
    if (pin || (target.disposed ?? false)) return null;
    const access = book.throughout(start, end);
    if (access === undefined) return null;
    if (access === null) {
      if (wanted !== null && target.capacity !== undefined && ranges > target.capacity) return null;
    } else if (access !== wanted) {
      const entry = book.entryAt(start);
      if (entry?.start !== start || entry.end !== end) return null;
    }
    held.push(access);
  }
  return held;
}

/** How many kernel mappings more there are afterwards. */
function growth(old: State, start: number, end: number, from: Sole, to: Sole): number {
  const left = soleAt(old, start - 1, from);
  const right = soleAt(old, end, from);
  return edge(left, to) + edge(to, right) - edge(left, from) - edge(from, right);
}

/** What shows at one address beside the span, where most often the region of the span goes on. */
function soleAt(state: State, gpa: number, { region, params, mappings }: Sole): Sole {
  const shown = state.visible.get(gpa);
  if (shown === undefined) return NOBODY;
  if (shown === region) return { region, params, mappings, mapping: mappings?.get(gpa) ?? null };
  const owner = state.regions.get(shown);
  if (owner === undefined) return NOBODY;
  return { region: shown, params: owner.params, mappings: owner.mappings, mapping: owner.mappings.get(gpa) ?? null };
}

/** 0 where one kernel mapping holds both neighbours, else 1. */
function edge(a: Sole, b: Sole): 0 | 1 {
  if (a.mapping === null || b.mapping === null) return a.mapping === b.mapping ? 0 : 1;
  const aWritable = a.mapping.writable && a.params?.writable === true;
  const bWritable = b.mapping.writable && b.params?.writable === true;
  return aWritable === bWritable && isSameMemory(a.mapping, b.mapping) ? 0 : 1;
}
