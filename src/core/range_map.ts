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

/** One range and its value. */
export interface Entry<V> {
  /** The first address. */
  readonly start: number;
  /** One past the last address. */
  readonly end: number;
  /** What the range maps to. */
  readonly value: V;
}

/** What is at an address, entry or gap, and how far up it reaches. Filled in by `seek`, so that looking makes nothing. */
export class Place<V> {
  /** The value of the entry, `null` for a gap. */
  value: V | null = null;
  /** Where the entry begins; of a gap, the address that was looked at. */
  start = -Infinity;
  /** Where the entry or the gap ends; infinity for the last gap. */
  end = -Infinity;
}

/** The most entries in a leaf, and children in an inner node. Wider is flatter, narrower copies less per edit. */
const LEAF_WIDTH = 16;
const INNER_WIDTH = 64;
/** A node with fewer than this many is merged with a neighbour. */
const NARROW = 4;

/** Cells per entry of a leaf. */
const ENTRY = 3;
/** Where the children of an inner node begin. */
const CHILDREN = 2;

/** The cells of a node. Whether it is a leaf is known from its height: leaves are at 0. */
type Node = readonly unknown[];

// SAFETY: of the casts below: they read the cells as the picture above says, and only this file makes nodes.

/** How many entries there are in a node and below it. */
function sizeOf(node: Node, height: number): number {
  return height === 0 ? node.length / ENTRY : node[0] as number;
}

/** How many entries or children a node has itself. */
function widthOf(node: Node, height: number): number {
  return height === 0 ? node.length / ENTRY : node.length - CHILDREN;
}

function firstsOf(inner: Node): readonly number[] {
  return inner[1] as readonly number[];
}

function firstOf(node: Node, height: number): number {
  return height === 0 ? node[0] as number : firstsOf(node)[0]!;
}

/** The cell of the last entry that starts at or before `x`; negative where there is none. */
function entryCell(leaf: Node, x: number): number {
  let low = 0;
  let high = (leaf.length / ENTRY) | 0; // An integer already, which the engine cannot know.
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (leaf[middle * ENTRY] as number <= x) low = middle + 1;
    else high = middle;
  }
  return (low - 1) * ENTRY;
}

/** Which child to look for `x` in: the last that does not begin above it, or the first. */
function childIndex(inner: Node, x: number): number {
  const firsts = firstsOf(inner);
  let low = 1;
  let high = firsts.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (firsts[middle]! <= x) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

function childAt(inner: Node, index: number): Node {
  return inner[CHILDREN + index] as Node;
}

/** The cell of the first entry that ends above `start`. */
function firstTouched(leaf: Node, start: number): number {
  const cell = entryCell(leaf, start);
  return cell >= 0 && leaf[cell + 1] as number > start ? cell : cell + ENTRY;
}

function entryOf<V>(leaf: Node, cell: number): Entry<V> {
  return { start: leaf[cell] as number, end: leaf[cell + 1] as number, value: leaf[cell + 2] as V };
}

/** Stands for no value. */
const NOTHING = Symbol("nothing");

/**
 * The short way for most edits: `[start, end)` becomes one entry or a gap, in one leaf that neither overflows nor
 * becomes narrow.
 *
 * Copies the path to the leaf. The node itself where nothing changes; `null` where the long way has to be taken.
 */
function replaceInPlace(node: Node, height: number, start: number, end: number, value: unknown): Node | null {
  if (height === 0) return replaceInLeaf(node, start, end, value);
  const firsts = firstsOf(node);
  const index = childIndex(node, start);
  if (index + 1 < firsts.length && firsts[index + 1]! < end) return null;
  const old = childAt(node, index);
  const child = replaceInPlace(old, height - 1, start, end, value);
  if (child === old) return node;
  if (child === null || widthOf(child, height - 1) < NARROW) return null;
  const copy = node.slice();
  copy[0] = node[0] as number + sizeOf(child, height - 1) - sizeOf(old, height - 1);
  copy[CHILDREN + index] = child;
  const first = firstOf(child, height - 1);
  if (first !== firsts[index]) copy[1] = firsts.with(index, first);
  return copy;
}

function replaceInLeaf(leaf: Node, start: number, end: number, value: unknown): Node | null {
  const from = firstTouched(leaf, start);
  let to = from;
  while (to < leaf.length && leaf[to] as number < end) to += ENTRY;
  if (to === from) {
    if (value === NOTHING) return leaf;
    return leaf.length < LEAF_WIDTH * ENTRY ? withEntry(leaf, from, start, end, value) : null;
  }
  if (to === from + ENTRY && leaf[from] === start && leaf[from + 1] === end) {
    return value === NOTHING ? withoutEntry(leaf, from) : withValue(leaf, from, value);
  }
  // What is left of the first entry touched, the new one, what is left of the last entry touched.
  const leavesLeft = leaf[from] as number < start;
  const leavesRight = leaf[to - 2] as number > end;
  const added = (leavesLeft ? ENTRY : 0) + (value === NOTHING ? 0 : ENTRY) + (leavesRight ? ENTRY : 0);
  if (leaf.length - (to - from) + added > LEAF_WIDTH * ENTRY) return null;
  const copy = withRoom(leaf, from, to, added);
  let at = from;
  if (leavesLeft) {
    put(copy, at, leaf[from], start, leaf[from + 2]);
    at += ENTRY;
  }
  if (value !== NOTHING) {
    put(copy, at, start, end, value);
    at += ENTRY;
  }
  if (leavesRight) put(copy, at, end, leaf[to - 2], leaf[to - 1]);
  return copy;
}

/**
 * A copy of `leaf` in which `added` cells, still empty, take the place of the cells `[from, to)`. By loops, since
 * `toSpliced` leaves compiled code.
 */
function withRoom(leaf: Node, from: number, to: number, added: number): unknown[] {
  const moved = added - (to - from);
  const copy: unknown[] = new Array(leaf.length + moved);
  for (let i = 0; i < from; i++) copy[i] = leaf[i];
  for (let i = to; i < leaf.length; i++) copy[i + moved] = leaf[i];
  return copy;
}

function put(cells: unknown[], at: number, start: unknown, end: unknown, value: unknown): void {
  cells[at] = start;
  cells[at + 1] = end;
  cells[at + 2] = value;
}

/** A leaf in which the entry in `cell` has another value. */
function withValue(leaf: Node, cell: number, value: unknown): Node {
  const copy = leaf.slice();
  copy[cell + 2] = value;
  return copy;
}

/** A leaf with one entry more, in `cell`. */
function withEntry(leaf: Node, cell: number, start: number, end: number, value: unknown): Node {
  const copy = withRoom(leaf, cell, cell, ENTRY);
  put(copy, cell, start, end, value);
  return copy;
}

/** A leaf without the entry in `cell`. */
function withoutEntry(leaf: Node, cell: number): Node {
  return withRoom(leaf, cell, cell + ENTRY, 0);
}

/**
 * Nodes for `cells` of so many units of `unit` cells, of even width. One that is only just too wide is parted so that
 * the first is nearly full: addresses are mostly given out upwards, and nothing more will come there.
 */
function parts(cells: readonly unknown[], unit: number, width: number): unknown[][] {
  const count = cells.length / unit;
  if (count === 0) return [];
  const wide = Math.floor(width * 0.75);
  if (count > width && count <= 2 * wide) return [cells.slice(0, wide * unit), cells.slice(wide * unit)];
  const parts = count <= width ? 1 : Math.ceil(count / wide);
  return Array.from(
    { length: parts },
    (_, part) => cells.slice(Math.floor(part * count / parts) * unit, Math.floor((part + 1) * count / parts) * unit),
  );
}

/** Leaves for `cells`, which are in order. */
function leaves(cells: readonly unknown[]): Node[] {
  return parts(cells, ENTRY, LEAF_WIDTH);
}

/** Inner nodes over `children`, which are `height` high. */
function inners(children: readonly Node[], height: number): Node[] {
  return parts(children, 1, INNER_WIDTH).map((cells) => {
    const some = cells as Node[];
    const size = some.reduce((size, child) => size + sizeOf(child, height), 0);
    return [size, some.map((child) => firstOf(child, height)), ...some];
  });
}

function childrenOf(inner: Node): Node[] {
  return inner.slice(CHILDREN) as Node[];
}

/** Joins two neighbours of the same height, again as one or two nodes. */
function join(left: Node, right: Node, height: number): Node[] {
  return height === 0 ? leaves([...left, ...right]) : inners([...childrenOf(left), ...childrenOf(right)], height - 1);
}

/** The nodes, of the same height as `node`, that hold its entries with `[start, end)` replaced by `pieces`. */
function replaceIn<V>(
  node: Node,
  height: number,
  start: number,
  end: number,
  pieces: readonly Entry<V>[],
): Node[] {
  if (height === 0) {
    const left = entriesIn<V>(node, 0, -Infinity, start).map((entry) => ({
      ...entry,
      end: Math.min(entry.end, start),
    }));
    const right = entriesIn<V>(node, 0, end, Infinity).map((entry) => ({
      ...entry,
      start: Math.max(entry.start, end),
    }));
    return leaves([...left, ...pieces, ...right].flatMap((entry) => [entry.start, entry.end, entry.value]));
  }
  const children = childrenOf(node);
  const first = childIndex(node, start);
  const last = Math.max(first, childIndex(node, end - 1));
  const replaced = replaceIn(children[first]!, height - 1, start, end, pieces);
  // An entry lies in one leaf, so what sticks out on the right of `end` is in the last child alone.
  if (last > first) replaced.push(...replaceIn(children[last]!, height - 1, start, end, []));

  children.splice(first, last + 1 - first, ...replaced);
  for (let i = Math.max(0, first - 1); i < children.length && i <= first + replaced.length; i++) {
    if (children.length < 2 || widthOf(children[i]!, height - 1) >= NARROW) continue;
    const left = i + 1 < children.length ? i : i - 1;
    children.splice(left, 2, ...join(children[left]!, children[left + 1]!, height - 1));
  }
  return inners(children, height - 1);
}

/** Adds the entries that overlap `[start, end)` to `entries`, whole and in order. */
function pushEntries<V>(entries: Entry<V>[], node: Node, height: number, start: number, end: number): void {
  if (height === 0) {
    for (let i = firstTouched(node, start); i < node.length && node[i] as number < end; i += ENTRY) {
      entries.push(entryOf(node, i));
    }
    return;
  }
  const firsts = firstsOf(node);
  for (let i = childIndex(node, start); i < firsts.length && firsts[i]! < end; i++) {
    pushEntries(entries, childAt(node, i), height - 1, start, end);
  }
}

function entriesIn<V>(node: Node, height: number, start: number, end: number): Entry<V>[] {
  const entries: Entry<V>[] = [];
  pushEntries(entries, node, height, start, end);
  return entries;
}

const NO_ENTRIES: readonly never[] = [];

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
