/**
 * Memory that is in no file lives in its mapping alone. Where it ceases to show it is parked: its pages are taken to
 * addresses of the host's own, from where they come back when it shows again.
 *
 * @module
 */

import type { OwnRange } from "../map/edits.ts";
import type { Mapping } from "../map/region.ts";
import { NOTHING_PARKED, type Parked } from "../map/state.ts";
import { paint } from "../paint.ts";
import { RangeMap } from "../range_map.ts";
import type { HostStep } from "./steps.ts";

/** What of such memory ceases to show and what shows, in one request. */
export class Parking {
  /** What goes where it does not show, in address order. */
  readonly steps: HostStep[] = [];
  /** What is to show. Whether it is new, or has to be brought back, is clear at the end of the walk. */
  readonly #shown: HostStep[] = [];

  /** `[start, end)` of `mapping`, which was `writable`, ceases to show. */
  park(start: number, end: number, mapping: Mapping, writable: boolean): void {
    push(this.steps, step("park", start, end, mapping, writable));
  }

  /** `[start, end)` of `mapping` is to show. */
  show(start: number, end: number, mapping: Mapping, writable: boolean): void {
    push(this.#shown, step("map", start, end, mapping, writable));
  }

  /**
   * Decides what has to be brought back and what is new, what is parked then, and what can be given up once the request
   * has happened. `before` is what was parked, and `removed` what is in no region any more.
   */
  complete(
    before: Parked,
    removed: readonly OwnRange[],
  ): { parked: Parked; shown: readonly HostStep[]; discards: readonly OwnRange[] } {
    const parked = new Map(before);
    for (const { start, end, mapping } of this.steps) {
      if (mapping === null || mapping.own === null) continue;
      const range = { start: start + mapping.delta, end: end + mapping.delta, value: true as const };
      const held = parked.get(mapping.own) ?? RangeMap.EMPTY;
      parked.set(mapping.own, paint(held, range.start, range.end, [range], () => true));
    }
    const shown = this.#shown.flatMap((step) => broughtBack(step, parked));
    const discards: OwnRange[] = [];
    for (const range of removed) {
      const held = parked.get(range.memory);
      if (held === undefined || !held.overlaps(range.start, range.end)) continue;
      const left = held.delete(range.start, range.end);
      if (!left.isEmpty) discards.push(range);
      parked.set(range.memory, left);
    }
    for (const [memory, held] of parked) {
      if (!held.isEmpty) continue;
      parked.delete(memory);
      // The place that was made for it is of no use any more.
      discards.push({ memory, start: memory.start, end: memory.end });
    }
    return { parked: parked.size === 0 ? NOTHING_PARKED : parked, shown, discards };
  }
}

/** The steps that make memory show: what is `parked` comes back, and is so no longer; the rest is new. */
function broughtBack({ start, end, mapping, writable }: HostStep, parked: Map<object, RangeMap<true>>): HostStep[] {
  if (mapping === null || mapping.own === null) return [];
  const { own, delta } = mapping;
  const steps: HostStep[] = [];
  const held = parked.get(own) ?? RangeMap.EMPTY;
  let at = start;
  for (const known of held.overlapping(start + delta, end + delta)) {
    const from = Math.max(known.start - delta, start);
    const to = Math.min(known.end - delta, end);
    if (at < from) steps.push(step("map", at, from, mapping, writable));
    steps.push(step("restore", from, to, mapping, writable));
    at = to;
  }
  if (at < end) steps.push(step("map", at, end, mapping, writable));
  if (!held.isEmpty) parked.set(own, held.delete(start + delta, end + delta));
  return steps;
}

/** Appends a step, to the last one where it goes on with the same memory. */
function push(steps: HostStep[], next: HostStep): void {
  const last = steps.at(-1);
  const goesOn = last !== undefined && last.end === next.start && last.mapping === next.mapping &&
    last.writable === next.writable;
  if (goesOn) steps[steps.length - 1] = { ...last, end: next.end };
  else steps.push(next);
}

function step(action: HostStep["action"], start: number, end: number, mapping: Mapping, writable: boolean): HostStep {
  return { kind: "host", action, start, end, mapping, writable };
}
