/**
 * An ordered map from disjoint ranges to values, as a persistent B+ tree.
 *
 * Every edit returns a new map that shares what did not change with the old one, so an old state of the memory map is
 * kept for nothing and undoing is forgetting. Values do not know where they lie, so cutting an entry copies no value:
 * a mapping stores `fileOffset - gpa` and is right wherever it is cut.
 *
 * ```
 *   inner   [5, [0, 0x9000], leaf, leaf]                       entries below, first addresses, children
 *                              |
 *   leaf    [0, 0x2000, a,  0x3000, 0x4000, b,  0x8000, ...]   start, end and value of each entry
 * ```
 *
 * A node is an array and nothing else, and shares the first addresses with its earlier version where they stay: what an
 * edit costs is what it allocates and how many places in memory it touches. A look-up costs O(log n), an edit O(log n + entries touched).
 *
 * @module
 */

import {
  childAt,
  childIndex,
  entriesIn,
  ENTRY,
  type Entry,
  entryCell,
  entryOf,
  firstsOf,
  firstTouched,
  inners,
  NO_ENTRIES,
  type Node,
  NOTHING,
  replaceIn,
  replaceInPlace,
  sizeOf,
  widthOf,
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
}

/** An immutable, ordered map from disjoint half-open ranges of numbers to values. */
export class RangeMap<V> implements Iterable<Entry<V>> {
  /** The map without entries, of any value type. */
  static readonly EMPTY: RangeMap<never> = new RangeMap<never>([], 0);

  readonly #root: Node;
  readonly #height: number;

  /** The map with one entry. */
  static of<V>(start: number, end: number, value: V): RangeMap<V> {
    return new RangeMap([start, end, value], 0);
  }

  private constructor(root: Node, height: number) {
    this.#root = root;
    this.#height = height;
  }

  /** How many entries there are. */
  get size(): number {
    return sizeOf(this.#root, this.#height);
  }

  /** Whether there is no entry. */
  get isEmpty(): boolean {
    return this.#root.length === 0;
  }

  /** The leaf to look for `address` in. */
  #leafAt(address: number): Node {
    let node = this.#root;
    for (let height = this.#height; height > 0; height--) node = childAt(node, childIndex(node, address));
    return node;
  }

  /** The entry that holds `address`. */
  entryAt(address: number): Entry<V> | undefined {
    const leaf = this.#leafAt(address);
    const cell = entryCell(leaf, address);
    return cell >= 0 && leaf[cell + 1] as number > address ? entryOf(leaf, cell) : undefined;
  }

  /** The value at `address`. */
  get(address: number): V | undefined {
    const leaf = this.#leafAt(address);
    const cell = entryCell(leaf, address);
    return cell >= 0 && leaf[cell + 1] as number > address ? leaf[cell + 2] as V : undefined;
  }

  /** What `[start, end)` is throughout: the value of one entry, `null` for a gap; `undefined` where it is not one thing. */
  throughout(start: number, end: number): V | null | undefined {
    const leaf = this.#leafAt(start);
    const cell = entryCell(leaf, start);
    if (cell >= 0) {
      const to = leaf[cell + 1] as number;
      if (to >= end) return leaf[cell + 2] as V;
      if (to > start) return undefined;
    }
    const next = cell + ENTRY;
    if (next < leaf.length) return leaf[next] as number < end ? undefined : null;
    return this.#height > 0 && this.overlaps(start, end) ? undefined : null;
  }

  /** Finds out what is at `address`. */
  seek(address: number, place: Place<V>): void {
    let node = this.#root;
    let bound = Infinity;
    for (let height = this.#height; height > 0; height--) {
      const index = childIndex(node, address);
      const firsts = firstsOf(node);
      if (index + 1 < firsts.length) bound = firsts[index + 1]!;
      node = childAt(node, index);
    }
    const cell = entryCell(node, address);
    if (cell >= 0 && node[cell + 1] as number > address) {
      place.value = node[cell + 2] as V;
      place.start = node[cell] as number;
      place.end = node[cell + 1] as number;
    } else {
      place.value = null;
      place.start = address;
      place.end = cell + ENTRY < node.length ? node[cell + ENTRY] as number : bound;
    }
  }

  /** Whether an entry overlaps `[start, end)`. */
  overlaps(start: number, end: number): boolean {
    // The last entry that starts below `end` is the only candidate: entries are disjoint, so their ends ascend too.
    const leaf = this.#leafAt(end - 1);
    const cell = entryCell(leaf, end - 1);
    return cell >= 0 && leaf[cell + 1] as number > start;
  }

  /** The entries that overlap `[start, end)`, whole and in order. */
  overlapping(start: number, end: number): readonly Entry<V>[] {
    const leaf = this.#leafAt(start);
    const cell = firstTouched(leaf, start);
    // Most often there is one at most. An array that grows takes room for many more.
    if (cell >= leaf.length ? this.#height === 0 : leaf[cell] as number >= end) return NO_ENTRIES;
    if (cell < leaf.length && leaf[cell + 1] as number >= end) return [entryOf(leaf, cell)];
    return entriesIn(this.#root, this.#height, start, end);
  }

  /** The first entry of all. */
  first(): Entry<V> | undefined {
    const leaf = this.#leafAt(-Infinity);
    return leaf.length === 0 ? undefined : entryOf(leaf, 0);
  }

  /** The last entry that starts below `end`. */
  lastBelow(end: number): Entry<V> | undefined {
    const leaf = this.#leafAt(end - 1);
    const cell = entryCell(leaf, end - 1);
    return cell < 0 ? undefined : entryOf(leaf, cell);
  }

  /** A map in which `[start, end)` holds `value`; what it overlaps is cut or gone. */
  set(start: number, end: number, value: V): RangeMap<V> {
    const edited = replaceInPlace(this.#root, this.#height, start, end, value);
    return edited !== null ? new RangeMap(edited, this.#height) : this.#rebuilt(start, end, [{ start, end, value }]);
  }

  /** A map without anything in `[start, end)`; what reaches out of it is cut. */
  delete(start: number, end: number): RangeMap<V> {
    const edited = replaceInPlace(this.#root, this.#height, start, end, NOTHING);
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
    let nodes = replaceIn(this.#root, height, start, end, pieces);
    for (; nodes.length > 1; height++) nodes = inners(nodes, height);
    let root = nodes[0];
    if (root === undefined) return RangeMap.EMPTY;
    for (; height > 0 && widthOf(root, height) === 1; height--) root = childAt(root, 0);
    return new RangeMap(root, height);
  }

  /** The entries in order. */
  [Symbol.iterator](): Iterator<Entry<V>> {
    return this.overlapping(-Infinity, Infinity)[Symbol.iterator]();
  }
}
