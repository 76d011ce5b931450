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
 *   Leaf    starts  [0, 0x3000, 0x8000]    a column of its own, so that a search touches numbers only
 *           entries [0-0x2000 a, 0x3000-0x4000 b, 0x8000-0x9000 c]
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
  constructor(readonly starts: readonly number[], readonly entries: readonly Entry<V>[]) {}
}

class Inner<V> {
  constructor(
    readonly firsts: readonly number[],
    readonly children: readonly Node<V>[],
    /** How many entries there are below. */
    readonly size: number,
  ) {}
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

/** Leaves of even width for `entries`, which are in order. */
function leaves<V>(entries: readonly Entry<V>[]): Node<V>[] {
  const count = entries.length;
  if (count === 0) return [];
  const parts = count <= WIDTH ? 1 : Math.ceil(count / (WIDTH * 0.75));
  const nodes: Node<V>[] = [];
  for (let part = 0; part < parts; part++) {
    const slice = entries.slice(Math.floor(part * count / parts), Math.floor((part + 1) * count / parts));
    nodes.push(new Leaf(slice.map(({ start }) => start), slice));
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
    nodes.push(new Inner(slice.map(firstOf), slice, slice.reduce((size, child) => size + sizeOf(child), 0)));
  }
  return nodes;
}

/** Joins two neighbours of the same height, again as one or two nodes. */
function join<V>(left: Node<V>, right: Node<V>): Node<V>[] {
  if (left instanceof Leaf && right instanceof Leaf) {
    return leaves([...left.entries, ...right.entries]);
  }
  return inners([...(left as Inner<V>).children, ...(right as Inner<V>).children]);
}

/** A copy of `column` with `[from, to)` replaced by the first `count` of `a`, `b` and `c`. */
function spliced<T>(column: readonly T[], from: number, to: number, count: number, a: T, b: T, c: T): T[] {
  if (column.length > 8) {
    if (count === 0) return column.toSpliced(from, to - from);
    if (count === 1) return column.toSpliced(from, to - from, a);
    return count === 2 ? column.toSpliced(from, to - from, a, b) : column.toSpliced(from, to - from, a, b, c);
  }
  // The built-in takes longer to start than to copy this little.
  const copy: T[] = [];
  for (let i = 0; i < from; i++) copy.push(column[i]!);
  if (count > 0) copy.push(a);
  if (count > 1) copy.push(b);
  if (count > 2) copy.push(c);
  for (let i = to; i < column.length; i++) copy.push(column[i]!);
  return copy;
}

/** The index of the first entry that ends above `start`. */
function firstTouched<V>({ starts, entries }: Leaf<V>, start: number): number {
  const index = upperBound(starts, start);
  return index > 0 && entries[index - 1]!.end > start ? index - 1 : index;
}

/**
 * The short way for most edits: at most one piece, in one leaf that neither overflows nor becomes narrow.
 *
 * Copies the path to the leaf and shares the columns that stay as they are. The node itself where nothing changes;
 * `null` where the long way has to be taken.
 */
function replaceInPlace<V>(node: Node<V>, start: number, end: number, piece: Entry<V> | undefined): Node<V> | null {
  if (node instanceof Inner) {
    const index = childIndex(node, start);
    if (index + 1 < node.firsts.length && node.firsts[index + 1]! < end) return null;
    const old = node.children[index]!;
    const child = replaceInPlace(old, start, end, piece);
    if (child === old) return node;
    if (child === null || widthOf(child) < NARROW) return null;
    const children = node.children.slice();
    children[index] = child;
    let { firsts } = node;
    const first = firstOf(child);
    if (first !== firsts[index]) {
      const copy = firsts.slice();
      copy[index] = first;
      firsts = copy;
    }
    return new Inner(firsts, children, node.size + sizeOf(child) - sizeOf(old));
  }
  const { starts, entries } = node;
  const from = firstTouched(node, start);
  let to = from;
  while (to < starts.length && starts[to]! < end) to++;
  if (to === from && piece === undefined) return node;
  const first = from < to ? entries[from]! : undefined;
  if (to === from + 1 && piece !== undefined && first?.start === piece.start && first.end === piece.end) {
    const copy = entries.slice();
    copy[from] = piece;
    return new Leaf(starts, copy);
  }
  // The new entries in order: what is left of the first touched one, the piece, what is left of the last one.
  const last = from < to ? entries[to - 1]! : undefined;
  const left = first !== undefined && first.start < start
    ? { start: first.start, end: start, value: first.value }
    : NONE;
  const right = last !== undefined && last.end > end ? { start: end, end: last.end, value: last.value } : NONE;
  const count = (left === NONE ? 0 : 1) + (piece === undefined ? 0 : 1) + (right === NONE ? 0 : 1);
  const length = starts.length - (to - from) + count;
  if (length === 0 || length > WIDTH) return null;
  const middle = piece ?? right;
  const a = left === NONE ? middle : left;
  const b = left === NONE ? right : middle;
  return new Leaf(
    spliced(starts, from, to, count, a.start, b.start, right.start),
    spliced<Entry<V>>(entries, from, to, count, a, b, right),
  );
}

const NO_PIECES: readonly never[] = [];

/** Stands where `spliced` does not look. */
const NONE: Entry<never> = { start: 0, end: 0, value: undefined as never };

function replaceInLeaf<V>({ entries }: Leaf<V>, start: number, end: number, pieces: readonly Entry<V>[]): Node<V>[] {
  const result: Entry<V>[] = [];
  for (const entry of entries) {
    if (entry.start < start) result.push(entry.end <= start ? entry : { ...entry, end: start });
  }
  for (const piece of pieces) result.push(piece);
  for (const entry of entries) {
    if (entry.end > end) result.push(entry.start >= end ? entry : { ...entry, start: end });
  }
  return leaves(result);
}

/** The nodes, of the same height as `node`, that hold its entries with `[start, end)` replaced by `pieces`. */
function replaceIn<V>(node: Node<V>, start: number, end: number, pieces: readonly Entry<V>[]): Node<V>[] {
  if (node instanceof Leaf) return replaceInLeaf(node, start, end, pieces);
  const first = childIndex(node, start);
  const last = Math.max(first, lowerBound(node.firsts, end) - 1);
  const replaced = replaceIn(node.children[first]!, start, end, pieces);
  // An entry lies in one leaf, so what sticks out on the right of `end` is in the last child alone.
  if (last > first) replaced.push(...replaceIn(node.children[last]!, start, end, []));

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
    const { entries } = node;
    for (let i = firstTouched(node, start); i < entries.length && entries[i]!.start < end; i++) into.push(entries[i]!);
    return;
  }
  for (let i = childIndex(node, start); i < node.children.length && node.firsts[i]! < end; i++) {
    collect(node.children[i]!, start, end, into);
  }
}

/** An immutable, ordered map from disjoint half-open ranges of numbers to values. */
export class RangeMap<V> implements Iterable<Entry<V>> {
  /** The map without entries, of any value type. */
  static readonly EMPTY: RangeMap<never> = new RangeMap<never>(new Leaf<never>([], []));

  readonly #root: Node<V>;

  /** The map with one entry. */
  static of<V>(start: number, end: number, value: V): RangeMap<V> {
    return new RangeMap(new Leaf<V>([start], [{ start, end, value }]));
  }

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
    const index = upperBound(node.starts, address) - 1;
    if (index < 0) return undefined;
    const entry = node.entries[index]!;
    return entry.end > address ? entry : undefined;
  }

  /** The value at `address`. */
  get(address: number): V | undefined {
    return this.entryAt(address)?.value;
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
    return i >= 0 && node.entries[i]!.end > start;
  }

  /** The entries that overlap `[start, end)`, whole and in order. */
  overlapping(start: number, end: number): Entry<V>[] {
    const entries: Entry<V>[] = [];
    collect(this.#root, start, end, entries);
    return entries;
  }

  /** The first entry of all. */
  first(): Entry<V> | undefined {
    let node = this.#root;
    while (node instanceof Inner) node = node.children[0]!;
    return node.entries.length === 0 ? undefined : node.entries[0];
  }

  /** The last entry that starts below `end`. */
  lastBelow(end: number): Entry<V> | undefined {
    let node = this.#root;
    while (node instanceof Inner) node = node.children[Math.max(0, lowerBound(node.firsts, end) - 1)]!;
    const i = lowerBound(node.starts, end) - 1;
    return i < 0 ? undefined : node.entries[i];
  }

  /** A map in which `[start, end)` holds `value`; what it overlaps is cut or gone. */
  set(start: number, end: number, value: V): RangeMap<V> {
    const piece = { start, end, value };
    const edited = replaceInPlace(this.#root, start, end, piece);
    return edited !== null ? new RangeMap(edited) : this.replace(start, end, [piece]);
  }

  /** A map without anything in `[start, end)`; what reaches out of it is cut. */
  delete(start: number, end: number): RangeMap<V> {
    return this.replace(start, end, NO_PIECES);
  }

  /** A map in which `[start, end)` holds just `pieces`, which lie inside it, in order and disjoint. */
  replace(start: number, end: number, pieces: readonly Entry<V>[]): RangeMap<V> {
    if (pieces.length < 2) {
      const edited = replaceInPlace(this.#root, start, end, pieces[0]);
      if (edited !== null) return edited === this.#root ? this : new RangeMap(edited);
    }
    let nodes = replaceIn(this.#root, start, end, pieces);
    while (nodes.length > 1) nodes = inners(nodes);
    let root = nodes[0];
    if (root === undefined) return RangeMap.EMPTY;
    while (root instanceof Inner && root.children.length === 1) root = root.children[0]!;
    return new RangeMap(root);
  }

  /** As `replace`, but pieces that continue a neighbour with the same value become one entry with it. */
  paint(start: number, end: number, pieces: readonly Entry<V>[], same: (a: V, b: V) => boolean): RangeMap<V> {
    const first = pieces[0];
    const last = pieces[pieces.length - 1];
    if (first === undefined || last === undefined) return this.delete(start, end);
    const left = first.start === start && start > 0 ? this.entryAt(start - 1) : undefined;
    const right = last.end === end ? this.entryAt(end) : undefined;
    const joinsLeft = left !== undefined && same(left.value, first.value);
    const joinsRight = right !== undefined && same(right.value, last.value);
    if (!joinsLeft && !joinsRight) return this.replace(start, end, pieces);
    const painted = pieces.slice();
    if (joinsLeft) painted[0] = { start: left.start, end: first.end, value: first.value };
    if (joinsRight) {
      const { start: lastStart, value } = painted[painted.length - 1]!;
      painted[painted.length - 1] = { start: lastStart, end: right.end, value };
    }
    const from = joinsLeft ? left.start : start;
    const to = joinsRight ? right.end : end;
    return this.replace(from, to, painted);
  }

  /** The entries in order. */
  [Symbol.iterator](): Iterator<Entry<V>> {
    return this.overlapping(-Infinity, Infinity)[Symbol.iterator]();
  }
}
