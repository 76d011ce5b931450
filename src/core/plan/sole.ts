/**
 * What shows throughout a span, where it is one thing: the usual case of nearly all requests, which the short ways of
 * `swap.ts` and `plan_single.ts` are made for.
 *
 * @module
 */

import { accessOf } from "../access.ts";
import type { Region } from "../map/overlap.ts";
import type { RangeMap } from "../range_map.ts";
import { isSameMemory, type MapParams, type Mapping, type PartitionState, type State } from "../map/state.ts";
import type { Access } from "../targets.ts";
import type { VaStep } from "./va_steps.ts";
import type { Piece } from "../map/view.ts";

/** What shows throughout a span: one mapping or hole of a region, or nobody's. */
export interface Sole {
  /** The region, `null` for nobody. */
  readonly region: Region | null;
  /** How it is mapped. */
  readonly params: MapParams | null;
  /** What backs it, all of the region's. */
  readonly mappings: RangeMap<Mapping> | null;
  /** What backs the span, `null` for a hole. */
  readonly mapping: Mapping | null;
}

/** No region at all. */
export const NOBODY: Sole = { region: null, params: null, mappings: null, mapping: null };

/** What shows throughout `[start, end)`; `null` where it is more than one thing. */
export function soleIn(state: State, start: number, end: number): Sole | null {
  const region = state.visible.throughout(start, end);
  if (region === undefined) return null;
  return region === null ? NOBODY : soleOf(state, region, start, end);
}

/** The same where `region` shows throughout. */
export function soleOf(state: State, region: Region, start: number, end: number): Sole | null {
  const owner = state.regions.get(region);
  if (owner === undefined) return null;
  const { params, mappings } = owner;
  const mapping = mappings.throughout(start, end);
  return mapping === undefined ? null : { region, params, mappings, mapping };
}

/**
 * Whether nothing is out of step, nobody has to be told of mappings, and every partition is there and pins nothing: what
 * the short ways take for granted.
 */
export function isCalm({ dmaTargets, partitions, lost, poisoned, stale }: State): boolean {
  if (dmaTargets.length > 0 || !lost.isEmpty || !poisoned.isEmpty || !stale.isEmpty) return false;
  for (let i = 0; i < partitions.length; i++) {
    const { pin, target } = partitions[i]!;
    if (pin || target.disposed === true) return false;
  }
  return true;
}

/** Whether the host has room for `vmas` kernel mappings, and for the two more that cutting one takes for a moment. */
export function hasRoom(old: State, vmas: number, spareMappings: () => number): boolean {
  return vmas <= old.vmas || vmas + 2 <= old.vmas + spareMappings();
}

/** Whether host memory can follow by one call: no private memory, huge pages, prefetching, or files that fail late. */
export function isPlain({ params, mapping }: Sole): boolean {
  return params?.prefetch !== true && isPlainMapping(mapping);
}

/** The same for a mapping alone. */
export function isPlainMapping(mapping: Mapping | null): boolean {
  if (mapping === null) return true;
  const { backing } = mapping;
  return backing !== null && backing.pageSize === 4096 && !backing.mayFailLate;
}

/** What partitions should have there, `null` for nothing. */
export function wantedAccess({ region, params, mapping }: Sole): Access | null {
  return region === null || params === null ? null : accessIn(region, params, mapping);
}

/** What partitions should have where `region` shows `mapping`. */
export function accessIn(region: Region, params: MapParams, mapping: Mapping | null): Access | null {
  if (region.holes === "fault") return accessOf(params.writable === true, params.executable === true);
  return mapping === null ? null : accessOf(isWritable(params, mapping), params.executable === true);
}

/**
 * Whether region and mapping both allow writing.
 *
 * Compared with `true`, here and elsewhere in the short ways, because compiled code does not know that they can be
 * nothing else than booleans.
 */
export function isWritable(params: MapParams | null, mapping: Mapping | null): boolean {
  return params !== null && mapping !== null && mapping.writable === true && params.writable === true;
}

/** Whether one range of a partition's book is just `[start, end)`. */
export function isExactly(book: RangeMap<Access>, start: number, end: number): boolean {
  const entry = book.entryAt(start);
  return entry?.start === start && entry.end === end;
}

/** The partition once it has `access` at `[start, end)`, or with `null` nothing. */
export function withAccess(
  { id, target, offset, pin, book, pinned, doubts, pinDoubts }: PartitionState,
  start: number,
  end: number,
  access: Access | null,
): PartitionState {
  const next = access === null ? book.delete(start, end) : book.set(start, end, access);
  return { id, target, offset, pin, book: next, pinned, doubts, pinDoubts };
}

/** What host memory has to do from one to the other, `null` for nothing. */
export function vaStep(start: number, end: number, from: Sole, to: Sole): VaStep | null {
  if (from.mapping === null && to.mapping === null) return null;
  const old = pieceOf(from);
  const piece = pieceOf(to);
  let action: "map" | "protect" | "remove" = piece === null ? "remove" : "map";
  if (old !== null && piece !== null && isSameMemory(old.mapping, piece.mapping)) {
    if (old.writable === piece.writable) return null;
    action = "protect";
  }
  return { kind: "va", start, end, action, to: piece, from: old === null ? [] : [{ start, end, value: old }] };
}

function pieceOf({ region, params, mapping }: Sole): Piece | null {
  if (region === null || params === null || mapping === null) return null;
  return { mapping, region, params, writable: isWritable(params, mapping) };
}

/** How many kernel mappings more there are once `from` has given way to `to`. */
export function growth(old: State, start: number, end: number, from: Sole, to: Sole): number {
  if (old.visible.standsApart(start, end)) return (to.mapping === null ? 0 : 2) - (from.mapping === null ? 0 : 2);
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
  const isLike = isWritable(a.params, a.mapping) === isWritable(b.params, b.mapping);
  return isLike && isSameMemory(a.mapping, b.mapping) ? 0 : 1;
}
