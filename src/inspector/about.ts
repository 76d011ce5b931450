/**
 * What is at one address, and who is in the way.
 *
 * @module
 */

import { RangeMap } from "../core/range_map.ts";
import type { Region } from "../core/map/region.ts";
import type { Mapping } from "../core/map/region.ts";
import type { State } from "../core/map/state.ts";
import { hex } from "../core/hex.ts";
import { labelOf } from "../memory/file_backing.ts";
import { nameOf } from "../requests/carry_out.ts";
import { lookOf } from "./lanes.ts";

/** One line of what there is to say: what it is about, and what is so. */
export type Fact = readonly [about: string, text: string];

/** One region at an address. */
export interface AboutRegion {
  /** Its id. */
  readonly id: number;
  /** Its name. */
  readonly name: string;
  /** Its range. */
  readonly range: string;
  /** How it fares at the address: seen or hidden, and by whom. */
  readonly standing: string;
  /** Whether the guest sees it at the address. */
  readonly seen: boolean;
  /** More about it. */
  readonly facts: readonly Fact[];
}

/** What is at one address. */
export interface About {
  /** The address. */
  readonly gpa: string;
  /** In one sentence, for whoever listens rather than looks. */
  readonly summary: string;
  /** Everything else there, region by region, the highest priority first. */
  readonly regions: readonly AboutRegion[];
  /** What partitions, DMA targets and the host have there. */
  readonly facts: readonly Fact[];
}

/** Says what is at `gpa`. `base` is the host address of GPA 0. */
export function about(state: State, gpa: number, base: number): About {
  const winner = state.visible.get(gpa);
  const regions = regionsAt(state, gpa).map((region) => aboutRegion(state, region, gpa, winner));
  const seen = regions.find(({ seen }) => seen);
  const facts: Fact[] = [];
  if (winner !== undefined && state.regions.get(winner)?.mappings.get(gpa) !== undefined) {
    facts.push(["host address", hex(base + gpa)]);
  }
  for (const { target, offset, slots } of state.partitions) {
    const slot = slots.held.entryAt(gpa);
    const name = nameOf(target, "partition");
    if (slot === undefined) facts.push([name, "not mapped: an access is an exit"]);
    else {
      const { writable, executable } = slot.value;
      const access = `${writable ? "read-write" : "read-only"}${executable ? "" : ", not executable"}`;
      facts.push([name, `${rangeText(slot.start + offset, slot.end + offset)} ${access}`]);
    }
  }
  for (const { target, mappings } of state.dmaTargets) {
    const mapped = mappings.held.entryAt(gpa);
    facts.push([nameOf(target, "DMA target"), mapped ? rangeText(mapped.start, mapped.end) : "not mapped"]);
  }
  if (state.damage.lost.get(gpa)) facts.push(["out of step", "host memory is not what the regions say"]);
  else if (state.damage.outOfStep.get(gpa)) facts.push(["out of step", "an undo failed here"]);
  const summary = seen === undefined ? `Nothing at ${hex(gpa)}` : `${hex(gpa)}: ${seen.name}, ${seen.standing}`;
  return { gpa: hex(gpa), summary, regions, facts };
}

function regionsAt(state: State, gpa: number): Region[] {
  return state.layers.flatMap(({ groups }) => {
    const group = groups.get(gpa);
    if (group === undefined) return [];
    return group instanceof RangeMap ? [...group].map(({ value }) => value) : [group];
  });
}

function aboutRegion(state: State, region: Region, gpa: number, winner: Region | undefined): AboutRegion {
  const own = state.regions.get(region);
  const { id, name, range, priority, type, holes } = region;
  const entry = own?.mappings.entryAt(gpa);
  const facts: Fact[] = [
    ["priority", `${priority}, ${type}`],
    ["offset", `${hex(gpa - range.start)} of ${hex(range.length)}`],
  ];
  if (entry === undefined) {
    facts.push(["backing", `none: a ${holes === "exit" ? "hole is an MMIO exit" : "hole is a fault"}`]);
  } else {
    facts.push(["backing", backingText(entry.value)]);
    const { value: { backing, delta, writable } } = entry;
    if (backing !== null) facts.push(["file offset", hex(gpa + delta)]);
    facts.push(["mapping", `${rangeText(entry.start, entry.end)} ${writable ? "read-write" : "read-only"}`]);
  }
  const params = own?.params ?? null;
  if (params !== null && !params.executable) facts.push(["executable", "no"]);
  const standing = own === undefined || params === null
    ? "not mapped"
    : winner !== region
    ? `hidden by ${winner === undefined ? "nobody" : `"${winner.name}" (priority ${winner.priority})`}`
    : STANDING[lookOf(own, entry?.value ?? null)] ?? "";
  return { id, name, range: String(range), standing, seen: winner === region, facts };
}

const STANDING: Readonly<Record<string, string>> = {
  "writable": "seen, read-write",
  "read-only": "seen, read-only",
  "hole": "seen, a hole",
};

/** What is behind a mapping. */
export function backingText(mapping: Mapping): string {
  return labelOf(mapping) ?? "private memory";
}

/** A range as it is written everywhere. */
export function rangeText(start: number, end: number): string {
  return `${hex(start)}-${hex(end)}`;
}
