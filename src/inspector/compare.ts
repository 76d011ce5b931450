/**
 * What differs between two states of a memory map.
 *
 * @module
 */

import type { RangeMap } from "../core/range_map.ts";
import type { Region } from "../core/map/region.ts";
import { isSameMemory, type Mapping } from "../core/map/region.ts";
import type { State } from "../core/map/state.ts";
import { normalize, type Span } from "../core/span.ts";
import { hex } from "../core/hex.ts";
import { nameOf } from "../requests/carry_out.ts";
import { backingText, rangeText } from "./about.ts";
import type { Layouts } from "./layout.ts";
import { stretchBefore } from "./walk.ts";

/** A range in which a guest would notice. */
export interface Difference extends Span {
  /** What it comes to. */
  readonly kind: "appeared" | "vanished" | "other memory" | "access";
  /** What was there. */
  readonly was: string;
  /** What is there. */
  readonly is: string;
}

/** Two states, compared. */
export interface Comparison {
  /** What the guest sees differently, in order. */
  readonly seen: readonly Difference[];
  /** What else differs, one line each. */
  readonly notes: readonly string[];
}

interface Shown {
  readonly region: Region;
  readonly mapping: Mapping;
  readonly writable: boolean;
}

/** Compares what is in `spans`: outside of them the states are known to be the same. */
export function compare(old: State, now: State, spans: readonly Span[], layouts: Layouts): Comparison {
  if (old === now) return { seen: [], notes: [] };
  const seen: Difference[] = [];
  const ordered = normalize(spans);
  for (const span of ordered.toReversed()) differencesBefore(old, now, span, seen);
  seen.reverse();
  return { seen, notes: [...regionNotes(old, now, layouts), ...bookNotes(old, now, ordered)] };
}

function differencesBefore(old: State, now: State, { start: from, end }: Span, found: Difference[]): void {
  const highest = Math.max(old.visible.lastBelow(end)?.end ?? 0, now.visible.lastBelow(end)?.end ?? 0);
  for (let at = Math.min(end, highest); at > from;) {
    const [start, was] = shownBefore(old, from, at);
    const [other, is] = shownBefore(now, from, at);
    const low = Math.max(start, other);
    const kind = kindOf(was, is);
    if (kind !== null) {
      const right = found.at(-1);
      const difference = { start: low, end: at, kind, was: textOf(was, low), is: textOf(is, low) };
      // One change that is cut only by where regions end is one.
      const isOne = right?.start === at && right.kind === kind && isContinued(old, low, at, right) &&
        isContinued(now, low, at, right);
      if (isOne) found[found.length - 1] = { ...difference, end: right.end };
      else found.push(difference);
    }
    at = low;
  }
}

/** Whether what is in `[start, end)` goes on beyond `end`: the same region, and its memory continued. */
function isContinued(state: State, start: number, end: number, right: Span): boolean {
  const [, a] = shownBefore(state, start, end);
  const [, b] = shownBefore(state, end, Math.min(right.end, end + 1));
  return a === null || b === null ? a === b : a.region === b.region && isSameMemory(a.mapping, b.mapping);
}

/** What the guest has at the byte before `end`, `null` for nothing, and since where. */
function shownBefore(state: State, from: number, end: number): [number, Shown | null] {
  const shown = stretchBefore(state.visible, from, end);
  const region = shown.value;
  const own = region === null ? undefined : state.regions.get(region);
  if (region === null || own === undefined) return [shown.start, null];
  const { start, value: mapping } = stretchBefore(own.mappings, shown.start, end);
  if (mapping === null || own.params === null) return [start, null];
  return [start, { region, mapping, writable: own.params.writable && mapping.writable }];
}

function kindOf(was: Shown | null, is: Shown | null): Difference["kind"] | null {
  if (was === null || is === null) return was === is ? null : was === null ? "appeared" : "vanished";
  if (!isSameMemory(was.mapping, is.mapping)) return "other memory";
  return was.writable === is.writable ? null : "access";
}

function textOf(shown: Shown | null, start: number): string {
  if (shown === null) return "nothing";
  const { region, mapping, writable } = shown;
  const where = mapping.backing === null ? "" : ` +${hex(start + mapping.delta)}`;
  return `${region.name}: ${backingText(mapping)}${where}, ${writable ? "read-write" : "read-only"}`;
}

function* regionNotes(old: State, now: State, layouts: Layouts): Generator<string> {
  const before = new Set(layouts.of(old.layers).regions);
  for (const region of layouts.of(now.layers).regions) {
    const isOld = before.delete(region);
    const is = now.regions.get(region)?.params ?? null;
    const was = isOld ? old.regions.get(region)?.params ?? null : null;
    if (!isOld) yield `+ region "${region.name}" ${region.range}`;
    else if (was !== is) yield `~ region "${region.name}": ${paramsText(was)}, now ${paramsText(is)}`;
  }
  for (const region of before) yield `− region "${region.name}" ${region.range}`;
}

function paramsText(params: { writable: boolean; executable: boolean } | null): string {
  if (params === null) return "not mapped";
  return `mapped ${params.writable ? "read-write" : "read-only"}${params.executable ? "" : ", not executable"}`;
}

interface Book {
  readonly id: number;
  readonly target: { readonly name?: string };
  readonly held: RangeMap<unknown>;
}

function* bookNotes(old: State, now: State, spans: readonly Span[]): Generator<string> {
  const slotsOf = ({ partitions }: State) =>
    partitions.map(({ id, target, slots }) => ({ id, target, held: slots.held }));
  const dmaOf = ({ dmaTargets }: State) =>
    dmaTargets.map(({ id, target, mappings }) => ({ id, target, held: mappings.held }));
  yield* booksCompared(slotsOf(old), slotsOf(now), spans, "partition");
  yield* booksCompared(dmaOf(old), dmaOf(now), spans, "DMA target");
}

function* booksCompared(
  old: readonly Book[],
  now: readonly Book[],
  spans: readonly Span[],
  otherwise: string,
): Generator<string> {
  for (const { id, target, held } of now) {
    const name = nameOf(target, otherwise);
    const was = old.find((other) => other.id === id);
    if (was === undefined) {
      yield `+ ${name}, with ${held.size} ranges`;
      continue;
    }
    if (was.held === held) continue;
    const [before, after] = [rangesOf(was.held, spans), rangesOf(held, spans)];
    const gone = [...before.keys()].filter((key) => !after.has(key));
    const come = [...after.keys()].filter((key) => !before.has(key));
    for (const key of gone.slice(0, MOST)) yield `− ${name} ${key}`;
    for (const key of come.slice(0, MOST)) yield `+ ${name} ${key}`;
    const more = Math.max(0, gone.length - MOST) + Math.max(0, come.length - MOST);
    if (more > 0) yield `  ${name}: ${more} more`;
  }
  for (const { id, target, held } of old) {
    if (now.every((other) => other.id !== id)) {
      yield `− ${nameOf(target, otherwise)}, with ${held.size} ranges`;
    }
  }
}

const MOST = 50;

/** The ranges of a book that overlap one of `spans`, as texts. */
function rangesOf(book: RangeMap<unknown>, spans: readonly Span[]): Map<string, true> {
  const found = new Map<string, true>();
  for (const span of spans) {
    for (const { start, end, value } of book.overlapping(span.start, span.end)) {
      const access = (value as { writable?: boolean }).writable === false ? "read-only" : "read-write";
      found.set(`${rangeText(start, end)} ${access}`, true);
    }
  }
  return found;
}
