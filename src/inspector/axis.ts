/**
 * The axis of a picture of memory: which address is where.
 *
 * An axis is a line from 0 to `total`, cut at every boundary of a region. On a folded axis each piece is as long as the
 * logarithm of its bytes says, and where no region is, it is short whatever it leaves out: so a page and a terabyte are
 * both to be seen. On a straight axis a place is an address.
 *
 * @module
 */

import { GPA_LIMIT, PAGE_SIZE } from "../core/memory_range.ts";
import type { Span } from "../core/span.ts";

/** How long a piece without a region is. */
const FOLD = 1;

/** Addresses on a line. Both grow together, and between two cuts evenly. */
export class Axis {
  /** Where it ends. */
  readonly total: number;
  /** The boundaries, ascending, from 0 to 2^52. */
  readonly cuts: Float64Array;
  readonly #places: Float64Array;

  private constructor(cuts: Float64Array, places: Float64Array) {
    this.cuts = cuts;
    this.#places = places;
    this.total = places.at(-1) ?? 0;
  }

  /** A place is an address. */
  static readonly STRAIGHT: Axis = new Axis(Float64Array.of(0, GPA_LIMIT), Float64Array.of(0, GPA_LIMIT));

  /** Folds what none of `regions` covers. */
  static folded(regions: readonly Span[]): Axis {
    const starts = Float64Array.from(regions, ({ start }) => start).sort();
    const ends = Float64Array.from(regions, ({ end }) => end).sort();
    const cuts = [0];
    const places = [0];
    let at = 0;
    let open = 0;
    const cut = (address: number) => {
      if (address === at) return;
      const length = open > 0 ? 2 + Math.log2((address - at) / PAGE_SIZE) : FOLD;
      cuts.push(address);
      places.push((places.at(-1) ?? 0) + length);
      at = address;
    };
    for (let i = 0, j = 0; j < ends.length;) {
      const start = starts[i] ?? Infinity;
      const end = ends[j] ?? Infinity;
      cut(Math.min(start, end));
      if (start <= end) {
        open++;
        i++;
      } else {
        open--;
        j++;
      }
    }
    cut(GPA_LIMIT);
    return new Axis(Float64Array.from(cuts), Float64Array.from(places));
  }

  /** Where `address` is. */
  placeOf(address: number): number {
    return interpolate(this.cuts, this.#places, address);
  }

  /** Which address is at `place`, not always a whole number. */
  addressAt(place: number): number {
    return interpolate(this.#places, this.cuts, place);
  }

  /** Pairs of place and address, from `from` to `to`, between which both grow evenly, as exactly as `step` can show. */
  knots(from: number, to: number, step: number): number[] {
    const knots = [from, this.addressAt(from)];
    let i = upperBound(this.#places, from);
    while ((this.#places[i] ?? to) < to) {
      // Of those that cannot be told apart the last: what comes after it may be long.
      const last = knots.at(-2) ?? from;
      i = Math.max(i, Math.min(upperBound(this.#places, last + step), lowerBound(this.#places, to)) - 1);
      knots.push(this.#places[i] ?? 0, this.cuts[i] ?? 0);
      i++;
    }
    knots.push(to, this.addressAt(to));
    return knots;
  }
}

/** A part of an axis, as many columns wide. Nothing narrower than a column is told apart. */
export class Window {
  /** Where a column begins and ends, in places. */
  readonly step: number;
  /** The first address. */
  readonly start: number;
  /** One past the last address. */
  readonly end: number;

  constructor(readonly axis: Axis, readonly from: number, readonly to: number, columns: number) {
    this.step = (to - from) / columns;
    this.start = Math.max(0, Math.floor(axis.addressAt(from)));
    this.end = Math.min(GPA_LIMIT, Math.ceil(axis.addressAt(to)));
  }

  /** The first address of the column that the byte before `address` is in. */
  columnBefore(address: number): number {
    const column = Math.ceil((this.axis.placeOf(address) - this.from) / this.step) - 1;
    const start = Math.floor(this.axis.addressAt(this.from + column * this.step));
    return Math.max(this.start, Math.min(start, address - 1));
  }

  /** Whether there is a column or more between two addresses. */
  isWide(start: number, end: number): boolean {
    return this.axis.placeOf(end) - this.axis.placeOf(start) >= this.step;
  }
}

/** The index of the first of `values`, which ascend, that is above `value`. */
function upperBound(values: Float64Array, value: number): number {
  let low = 0;
  let high = values.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if ((values[middle] ?? 0) <= value) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** The index of the first of `values`, which ascend, that is not below `value`. */
function lowerBound(values: Float64Array, value: number): number {
  let low = 0;
  let high = values.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if ((values[middle] ?? 0) < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

function interpolate(from: Float64Array, to: Float64Array, value: number): number {
  const i = Math.min(Math.max(upperBound(from, value), 1), from.length - 1);
  const [a = 0, b = 0] = [from[i - 1], from[i]];
  const [x = 0, y = 0] = [to[i - 1], to[i]];
  return value >= b ? y : value <= a ? x : x + (value - a) / (b - a) * (y - x);
}
