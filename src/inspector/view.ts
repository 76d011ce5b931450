/**
 * Answers to what the page asks for: plain data, ready for JSON.
 *
 * @module
 */

import type { State } from "../core/map/state.ts";
import { nameOf } from "../requests/carry_out.ts";
import { Axis, Window } from "./axis.ts";
import type { Difference } from "./compare.ts";
import { type Lane, type LanePiece, lanesOf, spanLane } from "./lanes.ts";
import type { Layout } from "./layout.ts";
import type { RegionInternals } from "../regions/region_internals.ts";
import type { Device } from "./source.ts";

/** Which part of the axis is wanted. */
export interface ViewRequest {
  /** Folded, or a place is an address. */
  readonly axis: "folded" | "straight";
  /** The layout whose places are meant; of another one, or of -1, the addresses are. */
  readonly layout: number;
  /** From where to where, in places. */
  readonly from: number;
  readonly to: number;
  /** The same in addresses. */
  readonly start: number;
  readonly end: number;
  /** How wide that is. */
  readonly columns: number;
}

/** A part of the picture. */
export interface View {
  /** Tells axes apart. */
  readonly layout: number;
  /** The length of the whole axis. */
  readonly total: number;
  /** Where guest memory ends, in bytes. */
  readonly length: number;
  /** Where what was asked for begins and ends on this axis, in places. */
  readonly from: number;
  readonly to: number;
  /** Pairs of place and address, wider than what was asked for by half of it on both sides. */
  readonly knots: readonly number[];
  /** The strips. */
  readonly lanes: readonly Lane[];
}

const MOST_COLUMNS = 8192;

/** Where what was asked for lies on an axis that may be another one by now. */
function placed(request: ViewRequest, layout: Layout): { axis: Axis; from: number; to: number } {
  const axis = request.axis === "straight" ? Axis.STRAIGHT : layout.axis;
  const isKnown = request.layout >= 0 && (request.axis === "straight" || request.layout === layout.id);
  let from = isKnown ? request.from : axis.placeOf(request.start);
  let to = isKnown ? request.to : axis.placeOf(request.end);
  if (!(to > from)) [from, to] = [0, axis.total];
  return { axis, from, to };
}

/** The picture of `state`, with the differences to another one where there is one. */
export function viewOf(
  state: State,
  layout: Layout,
  request: ViewRequest,
  length: number,
  extra: (window: Window) => Lane[],
  other: { state: State; differences: readonly Difference[] } | null,
): View {
  const { axis, from, to } = placed(request, layout);
  const margin = (to - from) / 2;
  const [low, high] = [Math.max(0, from - margin), Math.min(axis.total, to + margin)];
  const columns = Math.min(MOST_COLUMNS, Math.ceil(request.columns * (high - low) / (to - from)));
  const window = new Window(axis, low, high, Math.max(1, columns));
  const lanes = lanesOf(state, window, layout.devices);
  const [seen, ...rest] = lanes;
  return {
    layout: layout.id,
    total: axis.total,
    length,
    from,
    to,
    knots: axis.knots(low, high, window.step),
    lanes: [
      ...(seen === undefined ? [] : [seen]),
      ...(other === null ? [] : comparedLanes(other, window)),
      ...rest,
      ...extra(window),
    ],
  };
}

const SIGNS: Readonly<Record<Difference["kind"], string>> = {
  "appeared": "+",
  "vanished": "−",
  "other memory": "≠",
  "access": "w",
};

function comparedLanes(
  { state, differences }: { state: State; differences: readonly Difference[] },
  window: Window,
): Lane[] {
  const [was] = lanesOf(state, window, []);
  const pieces: LanePiece[] = [];
  for (const { start, end, kind } of differences) {
    if (end <= window.start || start >= window.end) continue;
    const last = pieces.at(-1);
    // What cannot be told apart is one mark.
    if (last !== undefined && !window.isWide(last[0], end)) {
      pieces[pieces.length - 1] = [last[0], end, last[2], last[3] === SIGNS[kind] ? last[3] : "±", null];
    } else pieces.push([start, end, "difference", SIGNS[kind], null]);
  }
  return [
    { key: "differences", kind: "differences", label: "differs", pieces },
    ...(was === undefined ? [] : [{ ...was, key: "was", kind: "was" as const, label: "guest saw" }]),
  ];
}

/** Who holds guest memory. */
export type Holders = ReturnType<RegionInternals["holders"]>;

/** The lanes of locks and clients. */
export function holderLanes({ locks, clients }: Holders, window: Window): Lane[] {
  return [
    ...(locks.length === 0 ? [] : [
      spanLane({ key: "locks", kind: "locks", label: "locked" }, locks, "locked", window),
    ]),
    ...clients.flatMap(({ name, regions, locks }) => [
      spanLane({ key: name, kind: "client", label: name }, regions, "client", window),
      ...(locks.length === 0 ? [] : [
        spanLane({ key: `${name} locks`, kind: "client", label: `locked by ${name}` }, locks, "locked", window),
      ]),
    ]),
  ];
}

/** A state in figures. */
export interface Summary {
  /** How many regions there are. */
  readonly regions: number;
  /** How many kernel mappings host memory takes. */
  readonly hostMappings: number;
  /** The partitions, with how many ranges each has been told of, and could be. */
  readonly partitions: readonly { readonly name: string; readonly ranges: number; readonly capacity: number | null }[];
  /** The DMA targets, with how many mappings each has been told of. */
  readonly dmaTargets: readonly { readonly name: string; readonly ranges: number }[];
  /** Device memory, as far as it is known. */
  readonly devices: readonly Device[];
  /** How many ranges are out of step. */
  readonly outOfStep: number;
}

const MOST_DEVICES = 200;

/** Sums a state up. `known` is the device memory of the present. */
export function summaryOf(state: State, { regions, devices }: Layout, known: readonly Device[] | null): Summary {
  return {
    regions: regions.length,
    hostMappings: state.hostMappings,
    partitions: state.partitions.map(({ target, slots }) => ({
      name: nameOf(target, "partition"),
      ranges: slots.held.size,
      capacity: target.capacity ?? null,
    })),
    dmaTargets: state.dmaTargets.map(({ target, mappings }) => ({
      name: nameOf(target, "DMA target"),
      ranges: mappings.held.size,
    })),
    devices: (known ?? devices.map(({ name, range }) => ({ name, start: range.start, end: range.end })))
      .slice(0, MOST_DEVICES),
    outOfStep: state.damage.outOfStep.size,
  };
}
