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
import type { Entry, RangeMap } from "./range_map.ts";
import type { Span } from "./span.ts";
import type { MapParams, Mapping, PartitionState, State } from "./state.ts";
import type { Step } from "./steps.ts";
import type { Access } from "./targets.ts";
import type { Region } from "./overlap.ts";
import { type Piece, pieceAt } from "./view.ts";

const NOTHING: readonly never[] = [];

/** What shows throughout a span: a region or nobody, and in it one mapping or a hole. */
interface Sole {
  readonly shown: Entry<Region> | null;
  readonly params: MapParams | null;
  readonly mappings: RangeMap<Mapping> | null;
  readonly mapping: Mapping | null;
}

const NOBODY: Sole = { shown: null, params: null, mappings: null, mapping: null };

/** The plan for a change over `span` alone, or `null` where it is not that simple. */
export function planSingle(old: State, next: State, span: Span, spareMappings: number): Plan | null {
  if (old.dmaTargets.length + next.dmaTargets.length > 0 || old.partitions !== next.partitions) return null;
  if (old.lost.size + old.poisoned.size + old.stale.size > 0) return null;
  const { start, end } = span;
  const from = soleIn(old, start, end);
  const to = from === null ? null : soleIn(next, start, end);
  if (from === null || to === null) return null;
  if (from.params?.prefetch === true || to.params?.prefetch === true) return null;
  if (!isPlain(from.mapping) || !isPlain(to.mapping)) return null;
  const vmas = old.vmas + growth(old, start, end, from, to);
  if (vmas > old.vmas && vmas + 2 > old.vmas + spareMappings) return null;

  const va = vaStep(start, end, from, to);
  const wanted = wantedAccess(to);
  const { partitions } = old;
  let ranges = 0;
  if (partitions.length > 1) { for (const { book } of partitions) ranges += book.size + 1; }
  const steps: Step[] = [];
  let booked: PartitionState[] | null = null;
  let unmaps = 0;
  let live = false;
  for (let i = 0; i < partitions.length; i++) {
    const partition = partitions[i]!;
    // A partition may be attached more than once: all together is more than it holds at most.
    const held = rangeHeld(partition, start, end, wanted, partitions.length === 1 ? partition.book.size : ranges);
    if (held === null) return null;
    const keeps = held === wanted;
    if (keeps) live ||= va !== null && wanted !== undefined;
    else if (held !== undefined) {
      steps.push({ kind: "partition", partition, start, end, from: held, to: null, uncertain: false });
      unmaps++;
    }
    if (!keeps) {
      booked ??= partitions.slice();
      const book = wanted === undefined ? partition.book.delete(start, end) : partition.book.set(start, end, wanted);
      booked[i] = { ...partition, book };
    }
  }
  if (va !== null) steps.push(va);
  if (booked !== null && wanted !== undefined) {
    for (let i = 0; i < partitions.length; i++) {
      const partition = partitions[i]!;
      if (booked[i] === partition) continue;
      steps.push({ kind: "partition", partition, start, end, from: null, to: wanted, uncertain: false });
    }
  }
  const seen = steps.length - (va !== null && !live ? 1 : 0);
  const isTorn = seen > 1 && (unmaps > 0 || live);
  return {
    state: booked === null && vmas === next.vmas ? next : {
      regions: next.regions,
      layers: next.layers,
      visible: next.visible,
      beaten: next.beaten,
      partitions: booked ?? partitions,
      dmaTargets: next.dmaTargets,
      vmas,
      lost: next.lost,
      poisoned: next.poisoned,
      stale: next.stale,
    },
    steps,
    discards: NOTHING,
    torn: isTorn ? [new MemoryRange(start, end)] : NOTHING,
  };
}

/** What shows throughout `[start, end)`; `null` where it is more than one thing. */
function soleIn(state: State, start: number, end: number): Sole | null {
  const shown = state.visible.entryAt(start);
  if (shown === undefined) return state.visible.overlaps(start, end) ? null : NOBODY;
  if (shown.end < end) return null;
  const owner = state.regions.get(shown.value);
  if (owner === undefined) return null;
  const { params, mappings } = owner;
  const entry = mappings.entryAt(start);
  if (entry === undefined) {
    return mappings.overlaps(start, end) ? null : { shown, params, mappings, mapping: null };
  }
  return entry.end < end ? null : { shown, params, mappings, mapping: entry.value };
}

/** A hole, or a mapping that is neither private memory nor of huge pages nor of anything that may fail late. */
function isPlain(mapping: Mapping | null): boolean {
  if (mapping === null) return true;
  const { backing } = mapping;
  return backing !== null && backing.pageSize === 4096 && !backing.mayFailLate;
}

function pieceOf({ shown, params, mapping }: Sole): Piece | null {
  if (shown === null || params === null || mapping === null) return null;
  return { mapping, region: shown.value, params, writable: params.writable && mapping.writable };
}

function vaStep(start: number, end: number, from: Sole, to: Sole): Step | null {
  const old = pieceOf(from);
  const piece = pieceOf(to);
  if (old === null && piece === null) return null;
  let action: "map" | "protect" | "remove" = piece === null ? "remove" : "map";
  if (old !== null && piece !== null && isSameMemory(old.mapping, piece.mapping)) {
    if (old.writable === piece.writable) return null;
    action = "protect";
  }
  return { kind: "va", start, end, action, to: piece, from: [{ start, end, value: old }] };
}

function isSameMemory(a: Mapping, b: Mapping): boolean {
  return a === b ||
    (a.backing !== null && a.backing.file === b.backing?.file && a.delta === b.delta && a.policy === b.policy);
}

/** What partitions should have there, `undefined` for nothing. */
function wantedAccess({ shown, params, mapping }: Sole): Access | undefined {
  if (shown === null || params === null) return undefined;
  if (shown.value.holes === "fault") return accessOf(params.writable, params.executable);
  return mapping === null ? undefined : accessOf(params.writable && mapping.writable, params.executable);
}

/** What the partition has there, `undefined` for nothing; `null` where its ranges do not match the span. */
function rangeHeld(
  { target, pin, book }: PartitionState,
  start: number,
  end: number,
  wanted: Access | undefined,
  ranges: number,
): Access | undefined | null {
  if (pin || (target.disposed ?? false)) return null;
  const entry = book.entryAt(start);
  if (entry === undefined) {
    if (book.overlaps(start, end)) return null;
    return wanted !== undefined && target.capacity !== undefined && ranges >= target.capacity ? null : undefined;
  }
  if (entry.end < end) return null;
  return entry.value === wanted || (entry.start === start && entry.end === end) ? entry.value : null;
}

/** How many kernel mappings more there are afterwards. */
function growth(old: State, start: number, end: number, from: Sole, to: Sole): number {
  const { shown, mappings, params } = from;
  const inside = shown !== null && mappings !== null;
  const left = inside && start > shown.start ? null : pieceAt(old, start - 1)?.value ?? null;
  const right = inside && end < shown.end ? null : pieceAt(old, end)?.value ?? null;
  const leftMapping = inside && start > shown.start
    ? mappings.entryAt(start - 1)?.value ?? null
    : left?.mapping ?? null;
  const rightMapping = inside && end < shown.end ? mappings.entryAt(end)?.value ?? null : right?.mapping ?? null;
  const leftParams = left?.params ?? params;
  const rightParams = right?.params ?? params;
  return edge(leftMapping, leftParams, to.mapping, to.params) + edge(to.mapping, to.params, rightMapping, rightParams) -
    edge(leftMapping, leftParams, from.mapping, params) - edge(from.mapping, params, rightMapping, rightParams);
}

/** 0 where one kernel mapping holds both neighbours, else 1. */
function edge(a: Mapping | null, aParams: MapParams | null, b: Mapping | null, bParams: MapParams | null): 0 | 1 {
  if (a === null || b === null) return a === b ? 0 : 1;
  const aWritable = a.writable && (aParams?.writable ?? false);
  const bWritable = b.writable && (bParams?.writable ?? false);
  return aWritable === bWritable && isSameMemory(a, b) ? 0 : 1;
}
