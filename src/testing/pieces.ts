import { checkNumber } from "../core/memory_range.ts";

/** A range of addresses with a value. */
export interface Piece<T> {
  /** The first address, in bytes. */
  readonly start: number;
  /** One past the last address, in bytes. */
  readonly end: number;
  /** What is there. */
  readonly value: T;
}

/**
 * Disjoint pieces in the order of their addresses, in a plain array.
 *
 * Deliberately simple, and independent of what the region manager itself uses, so that a mistake in one cannot hide
 * the same mistake in the other.
 */
export class Pieces<T> {
  /** The pieces, lowest address first. */
  list: readonly Piece<T>[] = [];

  /** The pieces that share an address with `[start, end)`. */
  overlapping(start: number, end: number): readonly Piece<T>[] {
    const from = this.#firstEndingAfter(start);
    let to = from;
    while (to < this.list.length && this.list[to]!.start < end) to++;
    return this.list.slice(from, to);
  }

  /** The piece that holds `address`. */
  at(address: number): Piece<T> | undefined {
    checkNumber(address, "Address");
    return this.overlapping(address, address + 1)[0];
  }

  /** Replaces every piece that overlaps `[start, end)` by `replacement`, which must be ordered and fit. */
  replace(start: number, end: number, replacement: readonly Piece<T>[]): void {
    const from = this.#firstEndingAfter(start);
    this.list = this.list.toSpliced(from, this.overlapping(start, end).length, ...replacement);
  }

  /** The index of the first piece that ends after `address`. */
  #firstEndingAfter(address: number): number {
    let low = 0;
    let high = this.list.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.list[middle]!.end > address) high = middle;
      else low = middle + 1;
    }
    return low;
  }
}
