/**
 * Which spans are locked, and how often: any number of spans that may overlap in any way.
 *
 * A balanced (AVL) tree of spans in the order of their starts, each node with the highest end below it. So one span
 * over ten thousand small ones costs as much as any other: adding, removing and finding a conflict are O(log n).
 *
 * @module
 */

import type { Span } from "./span.ts";

interface Node {
  readonly start: number;
  readonly end: number;
  /** How many locks there are on just this span. */
  count: number;
  left: Node | null;
  right: Node | null;
  height: number;
  /** The highest end of this node and all below it. */
  maxEnd: number;
}

/** Locked spans. */
export class LockTable {
  #root: Node | null = null;

  /** Whether nothing is locked. */
  get isEmpty(): boolean {
    return this.#root === null;
  }

  /** Locks `[start, end)` once more. */
  add(start: number, end: number): void {
    this.#root = add(this.#root, start, end);
  }

  /** Takes one lock of exactly `[start, end)` away again. */
  remove(start: number, end: number): void {
    this.#root = remove(this.#root, start, end);
  }

  /** The first locked span that overlaps `[start, end)`. */
  conflict(start: number, end: number): Span | undefined {
    let node = this.#root;
    while (node !== null) {
      // If anything on the left ends above `start`, the first conflict is there, or else everything from there on
      // begins at or above `end`.
      if (node.left !== null && node.left.maxEnd > start) node = node.left;
      else if (node.start < end && node.end > start) return { start: node.start, end: node.end };
      else node = node.start < end ? node.right : null;
    }
    return undefined;
  }

  /** The locked spans, in the order of their starts, with how often each is locked. */
  entries(): { start: number; end: number; value: number }[] {
    const entries: { start: number; end: number; value: number }[] = [];
    const visit = (node: Node | null) => {
      if (node === null) return;
      visit(node.left);
      entries.push({ start: node.start, end: node.end, value: node.count });
      visit(node.right);
    };
    visit(this.#root);
    return entries;
  }
}

function heightOf(node: Node | null): number {
  return node === null ? 0 : node.height;
}

/** Works out again what a node says about those below it. */
function refresh(node: Node): Node {
  const { left, right } = node;
  node.height = 1 + Math.max(heightOf(left), heightOf(right));
  node.maxEnd = Math.max(node.end, left?.maxEnd ?? 0, right?.maxEnd ?? 0);
  return node;
}

function rotateRight(node: Node, left: Node): Node {
  node.left = left.right;
  left.right = refresh(node);
  return refresh(left);
}

function rotateLeft(node: Node, right: Node): Node {
  node.right = right.left;
  right.left = refresh(node);
  return refresh(right);
}

/** The same nodes with both sides of almost equal height; they differ by two at most before. */
function balance(node: Node): Node {
  const { left, right } = node;
  const tilt = heightOf(left) - heightOf(right);
  if (tilt > 1 && left !== null) {
    if (left.right !== null && heightOf(left.left) < left.right.height) node.left = rotateLeft(left, left.right);
    return rotateRight(node, node.left ?? left);
  }
  if (tilt < -1 && right !== null) {
    if (right.left !== null && heightOf(right.right) < right.left.height) node.right = rotateRight(right, right.left);
    return rotateLeft(node, node.right ?? right);
  }
  return refresh(node);
}

/** Below 0 if `[start, end)` sorts before the node, 0 if it is the node's own span. */
function compare(start: number, end: number, node: Node): number {
  return start - node.start || end - node.end;
}

function add(node: Node | null, start: number, end: number): Node {
  if (node === null) return { start, end, count: 1, left: null, right: null, height: 1, maxEnd: end };
  const order = compare(start, end, node);
  if (order === 0) {
    node.count++;
    return node;
  }
  if (order < 0) node.left = add(node.left, start, end);
  else node.right = add(node.right, start, end);
  return balance(node);
}

function remove(node: Node | null, start: number, end: number): Node | null {
  if (node === null) return null;
  const order = compare(start, end, node);
  if (order < 0) node.left = remove(node.left, start, end);
  else if (order > 0) node.right = remove(node.right, start, end);
  else if (node.count > 1) node.count--;
  else if (node.right === null) return node.left;
  else {
    const next = firstOf(node.right);
    next.right = withoutFirst(node.right);
    next.left = node.left;
    return balance(next);
  }
  return balance(node);
}

function firstOf(node: Node): Node {
  while (node.left !== null) node = node.left;
  return node;
}

function withoutFirst(node: Node): Node | null {
  if (node.left === null) return node.right;
  node.left = withoutFirst(node.left);
  return balance(node);
}
