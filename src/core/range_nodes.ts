/**
 * The nodes of range maps: plain arrays, and loops over them. Written for the engine rather than the reader.
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

/** Cells per entry of a leaf. */
export const ENTRY = 3;
/** Where the children of an inner node begin. */
const CHILDREN = 2;

/** The cells of a node. Whether it is a leaf is known from its height: leaves are at 0. */
export type Node = readonly unknown[];

// SAFETY: of the casts below: they read the cells as the picture above says, and only this file makes nodes.

/** How many entries there are in a node and below it. */
export function sizeOf(node: Node, height: number): number {
  return height === 0 ? node.length / ENTRY : node[0] as number;
}

/** How many entries or children a node has itself. */
export function widthOf(node: Node, height: number): number {
  return height === 0 ? node.length / ENTRY : node.length - CHILDREN;
}

export function firstsOf(inner: Node): readonly number[] {
  return inner[1] as readonly number[];
}

function firstOf(node: Node, height: number): number {
  return height === 0 ? node[0] as number : firstsOf(node)[0]!;
}

/** The cell of the last entry that starts at or before `x`; negative where there is none. */
export function entryCell(leaf: Node, x: number): number {
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
export function childIndex(inner: Node, x: number): number {
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

export function childAt(inner: Node, index: number): Node {
  return inner[CHILDREN + index] as Node;
}

/** The cell of the first entry that ends above `start`. */
export function firstTouched(leaf: Node, start: number): number {
  const cell = entryCell(leaf, start);
  return cell >= 0 && leaf[cell + 1] as number > start ? cell : cell + ENTRY;
}

export function entryOf<V>(leaf: Node, cell: number): Entry<V> {
  return { start: leaf[cell] as number, end: leaf[cell + 1] as number, value: leaf[cell + 2] as V };
}

/** Stands for no value. */
export const NOTHING = Symbol("nothing");

/**
 * The short way for most edits: `[start, end)` becomes one entry or a gap, in one leaf that neither overflows nor
 * becomes narrow.
 *
 * Copies the path to the leaf. The node itself where nothing changes; `null` where the long way has to be taken.
 */
export function replaceInPlace(node: Node, height: number, start: number, end: number, value: unknown): Node | null {
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
export function inners(children: readonly Node[], height: number): Node[] {
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
export function replaceIn<V>(
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

export function entriesIn<V>(node: Node, height: number, start: number, end: number): Entry<V>[] {
  const entries: Entry<V>[] = [];
  pushEntries(entries, node, height, start, end);
  return entries;
}

export const NO_ENTRIES: readonly never[] = [];
