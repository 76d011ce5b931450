/**
 * The nodes of range maps, and loops over them. Written for the engine rather than the reader.
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

/** The most entries in a leaf, and children in an inner node. Wider is flatter, narrower copies less per edit. */
const LEAF_WIDTH = 16;
const INNER_WIDTH = 64;
/** A node with fewer than this many is merged with a neighbour. */
const NARROW = 4;

/** A node. Whether it is a leaf is known from its height: leaves are at 0. */
export type Node = Leaf | Inner;

/** Entries side by side. */
export class Leaf {
  /**
   * The start and the end of each entry, in order, and infinity behind them: so the engine keeps all of them as plain
   * doubles, whatever the addresses, and what follows the last entry needs no case of its own.
   */
  readonly bounds: readonly number[];
  readonly values: readonly unknown[];

  constructor(bounds: readonly number[], values: readonly unknown[]) {
    this.bounds = bounds;
    this.values = values;
  }

  /** The leaf with these entries, which are in order. */
  static of<V>(entries: readonly Entry<V>[]): Leaf {
    const { length } = entries;
    // All leaves have arrays of one kind, which is what compiled code expects then.
    const bounds = newBounds(length);
    const values = newValues(length);
    for (let i = 0; i < length; i++) put(bounds, values, 2 * i, entries[i]!.start, entries[i]!.end, entries[i]!.value);
    return new Leaf(bounds, values);
  }

  /** Where the bounds are of the last entry that starts at or before `x`; negative where there is none. */
  cellAt(x: number): number {
    const { bounds } = this;
    let cell = 0;
    // One by one: there are few, and it takes less than halving.
    while (cell + 1 < bounds.length && bounds[cell]! <= x) cell += 2;
    return cell - 2;
  }

  /** Where the bounds are of the first entry that ends above `start`. */
  firstTouched(start: number): number {
    const cell = this.cellAt(start);
    return cell >= 0 && this.bounds[cell + 1]! > start ? cell : cell + 2;
  }

  /** The entry whose bounds are at `cell`. */
  entry<V>(cell: number): Entry<V> {
    const { bounds, values } = this;
    // SAFETY: the map that made the leaf put values of its own type in.
    return { start: bounds[cell]!, end: bounds[cell + 1]!, value: values[cell >> 1] as V };
  }
}

/** Nodes side by side, all of one height. */
export class Inner {
  /** How many entries there are below it. */
  readonly size: number;
  /** The first address of each child. */
  readonly firsts: readonly number[];
  readonly children: readonly Node[];

  constructor(size: number, firsts: readonly number[], children: readonly Node[]) {
    this.size = size;
    this.firsts = firsts;
    this.children = children;
  }

  /** Which child to look for `x` in: the last that does not begin above it, or the first. */
  indexOf(x: number): number {
    const { firsts } = this;
    let low = 1;
    let high = firsts.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (firsts[middle]! <= x) low = middle + 1;
      else high = middle;
    }
    return low - 1;
  }
}

function newBounds(count: number): number[] {
  const bounds: number[] = new Array(2 * count + 1);
  bounds[2 * count] = Infinity;
  return bounds;
}

function newValues(count: number): unknown[] {
  return new Array(count);
}

/** Writes an entry down, and says where the next one goes. */
function put(bounds: number[], values: unknown[], at: number, start: number, end: number, value: unknown): number {
  bounds[at] = start;
  bounds[at + 1] = end;
  values[at >> 1] = value;
  return at + 2;
}

/** How many entries there are in a node and below it. */
export function sizeOf(node: Node): number {
  return node instanceof Leaf ? node.values.length : node.size;
}

/** How many entries or children a node has itself. */
export function widthOf(node: Node): number {
  return node instanceof Leaf ? node.values.length : node.children.length;
}

function firstOf(node: Node): number {
  return node instanceof Leaf ? node.bounds[0]! : node.firsts[0]!;
}

/** The leaf without entries. */
export const EMPTY_LEAF: Leaf = Leaf.of([]);

/** Stands for no value. */
const NOTHING = Symbol("nothing");

/** As `replaceInPlace`, for a gap. */
export function deleteInPlace(node: Node, height: number, start: number, end: number): Node | null {
  return replaceInPlace(node, height, start, end, NOTHING);
}

/**
 * The short way for most edits: `[start, end)` becomes one entry or a gap, in one leaf that neither overflows nor
 * becomes narrow.
 *
 * Copies the path to the leaf. The node itself where nothing changes; `null` where the long way has to be taken.
 */
export function replaceInPlace(node: Node, height: number, start: number, end: number, value: unknown): Node | null {
  if (height === 0) return replaceInLeaf(node as Leaf, start, end, value);
  const { size, firsts, children } = node as Inner;
  const index = (node as Inner).indexOf(start);
  if (index + 1 < firsts.length && firsts[index + 1]! < end) return null;
  const old = children[index]!;
  const child = replaceInPlace(old, height - 1, start, end, value);
  if (child === old) return node;
  if (child === null || widthOf(child) < NARROW) return null;
  const copy = children.slice();
  copy[index] = child;
  const first = firstOf(child);
  return new Inner(
    size + sizeOf(child) - sizeOf(old),
    first === firsts[index] ? firsts : firsts.with(index, first),
    copy,
  );
}

function replaceInLeaf(leaf: Leaf, start: number, end: number, value: unknown): Leaf | null {
  const { bounds, values } = leaf;
  const from = leaf.firstTouched(start);
  let to = from;
  while (to + 1 < bounds.length && bounds[to]! < end) to += 2;
  if (to === from && value === NOTHING) return leaf;
  if (to === from + 2 && bounds[from] === start && bounds[from + 1] === end && value !== NOTHING) {
    const copy = values.slice();
    copy[from >> 1] = value;
    return new Leaf(bounds, copy);
  }
  // What is left of the first entry touched, the new one, what is left of the last entry touched.
  const leavesLeft = to > from && bounds[from]! < start;
  const leavesRight = to > from && bounds[to - 1]! > end;
  const added = (leavesLeft ? 1 : 0) + (value === NOTHING ? 0 : 1) + (leavesRight ? 1 : 0);
  const count = values.length - ((to - from) >> 1) + added;
  if (count > LEAF_WIDTH) return null;
  // By loops, since `toSpliced` leaves compiled code.
  const newer = newBounds(count);
  const copy = newValues(count);
  let at = 0;
  while (at < from) at = put(newer, copy, at, bounds[at]!, bounds[at + 1]!, values[at >> 1]);
  if (leavesLeft) at = put(newer, copy, at, bounds[from]!, start, values[from >> 1]);
  if (value !== NOTHING) at = put(newer, copy, at, start, end, value);
  if (leavesRight) at = put(newer, copy, at, end, bounds[to - 1]!, values[(to - 2) >> 1]);
  for (let i = to; i + 1 < bounds.length; i += 2) {
    at = put(newer, copy, at, bounds[i]!, bounds[i + 1]!, values[i >> 1]);
  }
  return new Leaf(newer, copy);
}

/**
 * Parts of `items`, of even width. One that is only just too wide is parted so that the first is nearly full: addresses
 * are mostly given out upwards, and nothing more will come there.
 */
function parts<T>(items: readonly T[], width: number): T[][] {
  const count = items.length;
  if (count === 0) return [];
  const wide = Math.floor(width * 0.75);
  if (count > width && count <= 2 * wide) return [items.slice(0, wide), items.slice(wide)];
  const parts = count <= width ? 1 : Math.ceil(count / wide);
  return Array.from(
    { length: parts },
    (_, part) => items.slice(Math.floor(part * count / parts), Math.floor((part + 1) * count / parts)),
  );
}

/** Leaves for `entries`, which are in order. */
function leaves<V>(entries: readonly Entry<V>[]): Node[] {
  return parts(entries, LEAF_WIDTH).map((some) => Leaf.of(some));
}

/** Inner nodes over `children`. */
export function inners(children: readonly Node[]): Node[] {
  return parts(children, INNER_WIDTH).map((some) =>
    new Inner(some.reduce((size, child) => size + sizeOf(child), 0), some.map(firstOf), some)
  );
}

/** Joins two neighbours of the same height, again as one or two nodes. */
function join(left: Node, right: Node): Node[] {
  if (left instanceof Inner && right instanceof Inner) return inners([...left.children, ...right.children]);
  return leaves([...entriesIn(left, -Infinity, Infinity), ...entriesIn(right, -Infinity, Infinity)]);
}

/** The nodes, of the same height as `node`, that hold its entries with `[start, end)` replaced by `pieces`. */
export function replaceIn<V>(node: Node, start: number, end: number, pieces: readonly Entry<V>[]): Node[] {
  if (node instanceof Leaf) {
    const left = entriesIn<V>(node, -Infinity, start).map((entry) => ({ ...entry, end: Math.min(entry.end, start) }));
    const right = entriesIn<V>(node, end, Infinity).map((entry) => ({ ...entry, start: Math.max(entry.start, end) }));
    return leaves([...left, ...pieces, ...right]);
  }
  const children = node.children.slice();
  const first = node.indexOf(start);
  const last = Math.max(first, node.indexOf(end - 1));
  const replaced = replaceIn(children[first]!, start, end, pieces);
  // An entry lies in one leaf, so what sticks out on the right of `end` is in the last child alone.
  if (last > first) replaced.push(...replaceIn(children[last]!, start, end, []));

  children.splice(first, last + 1 - first, ...replaced);
  for (let i = Math.max(0, first - 1); i < children.length && i <= first + replaced.length; i++) {
    if (children.length < 2 || widthOf(children[i]!) >= NARROW) continue;
    const left = i + 1 < children.length ? i : i - 1;
    children.splice(left, 2, ...join(children[left]!, children[left + 1]!));
  }
  return inners(children);
}

/** Adds the entries that overlap `[start, end)` to `entries`, whole and in order. */
function pushEntries<V>(entries: Entry<V>[], node: Node, start: number, end: number): void {
  if (node instanceof Leaf) {
    const { bounds } = node;
    for (let i = node.firstTouched(start); i + 1 < bounds.length && bounds[i]! < end; i += 2) {
      entries.push(node.entry(i));
    }
    return;
  }
  const { firsts, children } = node;
  for (let i = node.indexOf(start); i < firsts.length && firsts[i]! < end; i++) {
    pushEntries(entries, children[i]!, start, end);
  }
}

export function entriesIn<V>(node: Node, start: number, end: number): Entry<V>[] {
  const entries: Entry<V>[] = [];
  pushEntries(entries, node, start, end);
  return entries;
}

export const NO_ENTRIES: readonly never[] = [];
