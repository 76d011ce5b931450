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

  /** What of `[start, end)` no piece holds, lowest address first. */
  gaps(start: number, end: number): readonly { readonly start: number; readonly end: number }[] {
    const gaps = [];
    let at = start;
    for (const piece of this.overlapping(start, end)) {
      if (at < piece.start) gaps.push({ start: at, end: piece.start });
      at = piece.end;
    }
    if (at < end) gaps.push({ start: at, end });
    return gaps;
  }

  /** Takes `[start, end)` out of the pieces; `cut` makes what is left of one that reaches beyond. */
  remove(start: number, end: number, cut: (piece: Piece<T>, start: number, end: number) => Piece<T> = part): void {
    const left = this.overlapping(start, end).flatMap((piece) => [
      ...(piece.start < start ? [cut(piece, piece.start, start)] : []),
      ...(piece.end > end ? [cut(piece, end, piece.end)] : []),
    ]);
    this.replace(start, end, left);
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

/** The part of `piece` inside `[start, end)`, of a value that does not depend on where it begins. */
export function part<T>({ start: first, end: last, value }: Piece<T>, start: number, end: number): Piece<T> {
  return { start: Math.max(first, start), end: Math.min(last, end), value };
}
