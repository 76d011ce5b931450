/**
 * An ordered map from disjoint ranges to values, as a persistent B+ tree.
 *
 * Every edit returns a new map that shares what did not change with the old one, so an old state of the memory map is
 * kept for nothing and undoing is forgetting. Values do not know where they lie, so cutting an entry copies no value:
 * a mapping stores `fileOffset - gpa` and is right wherever it is cut.
 *
 * ```
 *   Inner   firsts [0, 0x9000, ...]        one first address per child
 *             |        |
 *   Leaf    starts [0, 0x3000, 0x8000]     columns, so that a look-up touches numbers only
 *           ends   [0x2000, 0x4000, 0x9000]
 *           values [a, b, c]
 * ```
 *
 * A look-up costs O(log n), an edit O(log n + entries touched).
 *
 * @module
 */

/** The most entries in a leaf and children in an inner node. Wider is flatter, narrower copies less per edit. */
const WIDTH = 32;
/** A node with fewer than this many is merged with a neighbour. */
const NARROW = WIDTH / 4;

/** One range and its value. */
export interface Entry<V> {
  /** The first address. */
  readonly start: number;
  /** One past the last address. */
  readonly end: number;
  /** What the range maps to. */
  readonly value: V;
}

class Leaf<V> {
  constructor(
    readonly starts: readonly number[],
    readonly ends: readonly number[],
    readonly values: readonly V[],
  ) {}
}

class Inner<V> {
  readonly size: number;
  constructor(readonly firsts: readonly number[], readonly children: readonly Node<V>[]) {
    let size = 0;
    for (const child of children) size += sizeOf(child);
    this.size = size;
  }
}

type Node<V> = Leaf<V> | Inner<V>;

// Indices below come from the arrays' own lengths, so `!` holds: a range check per element would only hide the logic.

function sizeOf<V>(node: Node<V>): number {
  return node instanceof Leaf ? node.starts.length : node.size;
}

function widthOf<V>(node: Node<V>): number {
  return node instanceof Leaf ? node.starts.length : node.children.length;
}

function firstOf<V>(node: Node<V>): number {
  return node instanceof Leaf ? node.starts[0]! : node.firsts[0]!;
}

/** The index of the first number above `x` in an ascending array. */
function upperBound(sorted: readonly number[], x: number): number {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (sorted[middle]! <= x) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** The index of the child that holds the entry at or before `x`; the first child where there is none. */
function childIndex<V>(node: Inner<V>, x: number): number {
  const index = upperBound(node.firsts, x) - 1;
  return index < 0 ? 0 : index;
}

/** Cuts columns that grew too long into leaves of even width. */
function leaves<V>(starts: number[], ends: number[], values: V[]): Node<V>[] {
  const count = starts.length;
  if (count === 0) return [];
  if (count <= WIDTH) return [new Leaf(starts, ends, values)];
  const parts = Math.ceil(count / (WIDTH * 0.75));
  const nodes: Node<V>[] = [];
  for (let part = 0; part < parts; part++) {
    const from = Math.floor(part * count / parts);
    const to = Math.floor((part + 1) * count / parts);
    nodes.push(new Leaf(starts.slice(from, to), ends.slice(from, to), values.slice(from, to)));
  }
  return nodes;
}

function inners<V>(children: Node<V>[]): Node<V>[] {
  const count = children.length;
  if (count === 0) return [];
  const parts = count <= WIDTH ? 1 : Math.ceil(count / (WIDTH * 0.75));
  const nodes: Node<V>[] = [];
  for (let part = 0; part < parts; part++) {
    const slice = children.slice(Math.floor(part * count / parts), Math.floor((part + 1) * count / parts));
    nodes.push(new Inner(slice.map(firstOf), slice));
  }
  return nodes;
}

/** Joins two neighbours of the same height, again as one or two nodes. */
function join<V>(left: Node<V>, right: Node<V>): Node<V>[] {
  if (left instanceof Leaf && right instanceof Leaf) {
    return leaves(
      [...left.starts, ...right.starts],
      [...left.ends, ...right.ends],
      [...left.values, ...right.values],
    );
  }
  return inners([...(left as Inner<V>).children, ...(right as Inner<V>).children]);
}

function replaceInLeaf<V>(
  leaf: Leaf<V>,
  start: number,
  end: number,
  pieces: readonly Entry<V>[],
): Node<V>[] {
  const { starts, ends, values } = leaf;
  // Entries [from, to) overlap [start, end).
  let from = upperBound(starts, start);
  if (from > 0 && ends[from - 1]! > start) from--;
  let to = from;
  while (to < starts.length && starts[to]! < end) to++;

  const newStarts = starts.slice(0, from);
  const newEnds = ends.slice(0, from);
  const newValues = values.slice(0, from);
  if (from < to && starts[from]! < start) {
    newStarts.push(starts[from]!);
    newEnds.push(start);
    newValues.push(values[from]!);
  }
  for (let i = 0; i < pieces.length; i++) {
    const piece = pieces[i]!;
    newStarts.push(piece.start);
    newEnds.push(piece.end);
    newValues.push(piece.value);
  }
  if (from < to && ends[to - 1]! > end) {
    newStarts.push(end);
    newEnds.push(ends[to - 1]!);
    newValues.push(values[to - 1]!);
  }
  for (let i = to; i < starts.length; i++) {
    newStarts.push(starts[i]!);
    newEnds.push(ends[i]!);
    newValues.push(values[i]!);
  }
  return leaves(newStarts, newEnds, newValues);
}

/** The nodes, of the same height as `node`, that hold its entries with `[start, end)` replaced by `pieces`. */
function replaceIn<V>(node: Node<V>, start: number, end: number, pieces: readonly Entry<V>[]): Node<V>[] {
  if (node instanceof Leaf) return replaceInLeaf(node, start, end, pieces);
  const first = childIndex(node, start);
  const last = Math.max(first, lowerBound(node.firsts, end) - 1);
  const replaced = replaceIn(node.children[first]!, start, end, pieces);
  // An entry lies in one leaf, so what sticks out on the right of `end` is in the last child alone.
  if (last > first) replaced.push(...replaceIn(node.children[last]!, start, end, []));

  if (replaced.length === 1 && last === first && widthOf(replaced[0]!) >= NARROW) {
    const children = node.children.slice();
    const firsts = node.firsts.slice();
    children[first] = replaced[0]!;
    firsts[first] = firstOf(replaced[0]!);
    return [new Inner(firsts, children)];
  }
  const children = [...node.children.slice(0, first), ...replaced, ...node.children.slice(last + 1)];
  for (let i = Math.max(0, first - 1); i < children.length && i <= first + replaced.length; i++) {
    if (children.length < 2 || widthOf(children[i]!) >= NARROW) continue;
    const left = i + 1 < children.length ? i : i - 1;
    children.splice(left, 2, ...join(children[left]!, children[left + 1]!));
  }
  return inners(children);
}

/** The index of the first number at or above `x` in an ascending array. */
function lowerBound(sorted: readonly number[], x: number): number {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (sorted[middle]! < x) low = middle + 1;
    else high = middle;
  }
  return low;
}

function collect<V>(node: Node<V>, start: number, end: number, into: Entry<V>[]): void {
  if (node instanceof Leaf) {
    const { starts, ends, values } = node;
    let i = upperBound(starts, start);
    if (i > 0 && ends[i - 1]! > start) i--;
    for (; i < starts.length && starts[i]! < end; i++) {
      into.push({ start: starts[i]!, end: ends[i]!, value: values[i]! });
    }
    return;
  }
  for (let i = childIndex(node, start); i < node.children.length && node.firsts[i]! < end; i++) {
    collect(node.children[i]!, start, end, into);
  }
}

/** An immutable, ordered map from disjoint half-open ranges of numbers to values. */
export class RangeMap<V> implements Iterable<Entry<V>> {
  /** The map without entries, of any value type. */
  static readonly EMPTY: RangeMap<never> = new RangeMap<never>(new Leaf<never>([], [], []));

  readonly #root: Node<V>;

  private constructor(root: Node<V>) {
    this.#root = root;
  }

  /** How many entries there are. */
  get size(): number {
    return sizeOf(this.#root);
  }

  /** The entry that holds `address`. */
  entryAt(address: number): Entry<V> | undefined {
    let node = this.#root;
    while (node instanceof Inner) node = node.children[childIndex(node, address)]!;
    const i = upperBound(node.starts, address) - 1;
    if (i < 0 || node.ends[i]! <= address) return undefined;
    return { start: node.starts[i]!, end: node.ends[i]!, value: node.values[i]! };
  }

  /** The value at `address`. */
  get(address: number): V | undefined {
    let node = this.#root;
    while (node instanceof Inner) node = node.children[childIndex(node, address)]!;
    const i = upperBound(node.starts, address) - 1;
    return i < 0 || node.ends[i]! <= address ? undefined : node.values[i]!;
  }

  /** Whether an entry overlaps `[start, end)`. */
  overlaps(start: number, end: number): boolean {
    let node = this.#root;
    // The last entry that starts below `end` is the only candidate: entries are disjoint, so their ends ascend too.
    while (node instanceof Inner) {
      const index = lowerBound(node.firsts, end) - 1;
      if (index < 0) return false;
      node = node.children[index]!;
    }
    const i = lowerBound(node.starts, end) - 1;
    return i >= 0 && node.ends[i]! > start;
  }

  /** The entries that overlap `[start, end)`, whole and in order. */
  overlapping(start: number, end: number): Entry<V>[] {
    const entries: Entry<V>[] = [];
    collect(this.#root, start, end, entries);
    return entries;
  }

  /** The last entry that starts below `end`. */
  lastBelow(end: number): Entry<V> | undefined {
    let node = this.#root;
    while (node instanceof Inner) node = node.children[Math.max(0, lowerBound(node.firsts, end) - 1)]!;
    const i = lowerBound(node.starts, end) - 1;
    return i < 0 ? undefined : { start: node.starts[i]!, end: node.ends[i]!, value: node.values[i]! };
  }

  /** A map in which `[start, end)` holds `value`; what it overlaps is cut or gone. */
  set(start: number, end: number, value: V): RangeMap<V> {
    return this.replace(start, end, [{ start, end, value }]);
  }

  /** A map without anything in `[start, end)`; what reaches out of it is cut. */
  delete(start: number, end: number): RangeMap<V> {
    return this.overlaps(start, end) ? this.replace(start, end, []) : this;
  }

  /** A map in which `[start, end)` holds just `pieces`, which lie inside it, in order and disjoint. */
  replace(start: number, end: number, pieces: readonly Entry<V>[]): RangeMap<V> {
    let nodes = replaceIn(this.#root, start, end, pieces);
    while (nodes.length > 1) nodes = inners(nodes);
    let root = nodes[0];
    if (root === undefined) return RangeMap.EMPTY;
    while (root instanceof Inner && root.children.length === 1) root = root.children[0]!;
    return new RangeMap(root);
  }

  /** As `replace`, but pieces that continue a neighbour with the same value become one entry with it. */
  paint(start: number, end: number, pieces: readonly Entry<V>[], same: (a: V, b: V) => boolean): RangeMap<V> {
    const painted = pieces.slice();
    const first = painted[0];
    if (first !== undefined && first.start === start && start > 0) {
      const left = this.entryAt(start - 1);
      if (left !== undefined && left.end <= start && same(left.value, first.value)) {
        painted[0] = { start: left.start, end: first.end, value: first.value };
      }
    }
    const last = painted.at(-1);
    if (last !== undefined && last.end === end) {
      const right = this.entryAt(end);
      if (right !== undefined && right.start >= end && same(right.value, last.value)) {
        painted[painted.length - 1] = { start: last.start, end: right.end, value: last.value };
      }
    }
    return this.replace(
      Math.min(start, painted[0]?.start ?? start),
      Math.max(end, painted.at(-1)?.end ?? end),
      painted,
    );
  }

  /** The entries in order. */
  [Symbol.iterator](): Iterator<Entry<V>> {
    return this.overlapping(-Infinity, Infinity)[Symbol.iterator]();
  }
}
