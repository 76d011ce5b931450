/**
 * An ordered map from disjoint ranges to values, as a persistent B+ tree.
 *
 * Every edit returns a new map that shares what did not change with the old one, so an old state of the memory map is
 * kept for nothing and undoing is forgetting. Values do not know where they lie, so cutting an entry copies no value:
 * a mapping stores `fileOffset - gpa` and is right wherever it is cut.
 *
 * ```
 *   Inner   size 5, firsts [0, 0x9000], children [Leaf, Leaf]
 *                                                  |
 *   Leaf    bounds [0, 0x2000, 0x3000, 0x4000, Infinity], values [a, b]      the start and the end of each entry
 * ```
 *
 * A node shares with its earlier version what stays: what an edit costs is what it allocates and how many places in
 * memory it touches. A look-up costs O(log n), an edit O(log n + entries touched).
 *
 * @module
 */

import {
  deleteInPlace,
  EMPTY_LEAF,
  entriesIn,
  type Entry,
  Inner,
  inners,
  Leaf,
  NO_ENTRIES,
  type Node,
  replaceIn,
  replaceInPlace,
  sizeOf,
} from "./range_nodes.ts";

export type { Entry } from "./range_nodes.ts";

/** What is at an address, entry or gap, and how far up it reaches. Filled in by `seek`, so that looking makes nothing. */
export class Place<V> {
  /** The value of the entry, `null` for a gap. */
  value: V | null = null;
  /** Where the entry begins; of a gap, the address that was looked at. */
  start = -Infinity;
  /** Where the entry or the gap ends; infinity for the last gap. */
  end = -Infinity;

  /** Whether it is where `address` is. */
  has(address: number): boolean {
    return address >= this.start && address < this.end;
  }

  /** Is nowhere. */
  forget(): void {
    this.start = this.end = -Infinity;
    this.value = null;
  }

  /** Is where `other` is. */
  copy(other: Place<V>): void {
    this.value = other.value;
    this.start = other.start;
    this.end = other.end;
  }
}

/** An immutable, ordered map from disjoint half-open ranges of numbers to values. */
export class RangeMap<V> implements Iterable<Entry<V>> {
  /** The map without entries, of any value type. */
  static readonly EMPTY: RangeMap<never> = new RangeMap<never>(EMPTY_LEAF, 0);

  readonly #root: Node;
  readonly #height: number;

  /** The map with one entry. */
  static of<V>(start: number, end: number, value: V): RangeMap<V> {
    return new RangeMap(Leaf.of([{ start, end, value }]), 0);
  }

  private constructor(root: Node, height: number) {
    this.#root = root;
    this.#height = height;
  }

  /** How many entries there are. */
  get size(): number {
    return sizeOf(this.#root);
  }

  /** Whether there is no entry. */
  get isEmpty(): boolean {
    return sizeOf(this.#root) === 0;
  }

  /** The leaf to look for `address` in. */
  #leafAt(address: number): Leaf {
    let node = this.#root;
    for (let height = this.#height; height > 0; height--) {
      const inner = node as Inner;
      node = inner.children[inner.indexOf(address)]!;
    }
    return node as Leaf;
  }

  /** The entry that holds `address`. */
  entryAt(address: number): Entry<V> | undefined {
    const leaf = this.#leafAt(address);
    const cell = leaf.cellAt(address);
    return cell >= 0 && leaf.bounds[cell + 1]! > address ? leaf.entry(cell) : undefined;
  }

  /** The value at `address`. */
  get(address: number): V | undefined {
    const leaf = this.#leafAt(address);
    const cell = leaf.cellAt(address);
    return cell >= 0 && leaf.bounds[cell + 1]! > address ? leaf.values[cell >> 1] as V : undefined;
  }

  /** What `[start, end)` is throughout: the value of one entry, `null` for a gap; `undefined` where it is not one thing. */
  throughout(start: number, end: number): V | null | undefined {
    const leaf = this.#leafAt(start);
    const { bounds } = leaf;
    const cell = leaf.cellAt(start);
    if (cell >= 0) {
      const to = bounds[cell + 1]!;
      if (to >= end) return leaf.values[cell >> 1] as V;
      if (to > start) return undefined;
    }
    if (bounds[cell + 2]! < end) return undefined;
    return this.#height > 0 && this.overlaps(start, end) ? undefined : null;
  }

  /** Finds out what is at `address`. */
  seek(address: number, place: Place<V>): void {
    let node = this.#root;
    let bound = Infinity;
    for (let height = this.#height; height > 0; height--) {
      const inner = node as Inner;
      const index = inner.indexOf(address);
      if (index + 1 < inner.firsts.length) bound = inner.firsts[index + 1]!;
      node = inner.children[index]!;
    }
    const leaf = node as Leaf;
    const { bounds } = leaf;
    const cell = leaf.cellAt(address);
    if (cell >= 0 && bounds[cell + 1]! > address) {
      place.value = leaf.values[cell >> 1] as V;
      place.start = bounds[cell]!;
      place.end = bounds[cell + 1]!;
    } else {
      const next = bounds[cell + 2]!;
      place.value = null;
      place.start = address;
      place.end = next < bound ? next : bound;
    }
  }

  /** Whether an entry overlaps `[start, end)`. */
  overlaps(start: number, end: number): boolean {
    // The last entry that starts below `end` is the only candidate: entries are disjoint, so their ends ascend too.
    const leaf = this.#leafAt(end - 1);
    const cell = leaf.cellAt(end - 1);
    return cell >= 0 && leaf.bounds[cell + 1]! > start;
  }

  /** The entries that overlap `[start, end)`, whole and in order. */
  overlapping(start: number, end: number): readonly Entry<V>[] {
    const leaf = this.#leafAt(start);
    const { bounds } = leaf;
    const cell = leaf.firstTouched(start);
    const isLast = cell + 1 === bounds.length;
    // Most often there is one at most. An array that grows takes room for many more.
    if (isLast ? this.#height === 0 : bounds[cell]! >= end) return NO_ENTRIES;
    if (!isLast && bounds[cell + 1]! >= end) return [leaf.entry(cell)];
    return entriesIn(this.#root, start, end);
  }

  /** The first entry of all. */
  first(): Entry<V> | undefined {
    const leaf = this.#leafAt(-Infinity);
    return leaf.values.length === 0 ? undefined : leaf.entry(0);
  }

  /** The last entry that starts below `end`. */
  lastBelow(end: number): Entry<V> | undefined {
    const leaf = this.#leafAt(end - 1);
    const cell = leaf.cellAt(end - 1);
    return cell < 0 ? undefined : leaf.entry(cell);
  }

  /** A map in which `[start, end)` holds `value`; what it overlaps is cut or gone. */
  set(start: number, end: number, value: V): RangeMap<V> {
    const edited = replaceInPlace(this.#root, this.#height, start, end, value);
    return edited !== null ? new RangeMap(edited, this.#height) : this.#rebuilt(start, end, [{ start, end, value }]);
  }

  /** A map without anything in `[start, end)`; what reaches out of it is cut. */
  delete(start: number, end: number): RangeMap<V> {
    const edited = deleteInPlace(this.#root, this.#height, start, end);
    if (edited === this.#root) return this;
    return edited !== null ? new RangeMap(edited, this.#height) : this.#rebuilt(start, end, NO_ENTRIES);
  }

  /** A map in which `[start, end)` holds just `pieces`, which lie inside it, in order and disjoint. */
  replace(start: number, end: number, pieces: readonly Entry<V>[]): RangeMap<V> {
    const only = pieces[0];
    if (only === undefined) return this.delete(start, end);
    if (pieces.length === 1 && only.start === start && only.end === end) return this.set(start, end, only.value);
    return this.#rebuilt(start, end, pieces);
  }

  #rebuilt(start: number, end: number, pieces: readonly Entry<V>[]): RangeMap<V> {
    let height = this.#height;
    let nodes = replaceIn(this.#root, start, end, pieces);
    for (; nodes.length > 1; height++) nodes = inners(nodes);
    let root = nodes[0];
    if (root === undefined) return RangeMap.EMPTY;
    for (; root instanceof Inner && root.children.length === 1; height--) root = root.children[0]!;
    return new RangeMap(root, height);
  }

  /** The entries in order. */
  [Symbol.iterator](): Iterator<Entry<V>> {
    return this.overlapping(-Infinity, Infinity)[Symbol.iterator]();
  }
}
