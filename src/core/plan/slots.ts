/**
 * Ranges a target holds + what is wanted -> the least disruptive changes. Partitions (KVM slots) and DMA targets alike.
 *
 * A slot's host address is always the VA mapper's address of its GPA, so whose memory shows there does not matter to
 * KVM: a range that still wants its access throughout stays, whatever is mapped under it. A range that does not want
 * it throughout goes as a whole, since targets cannot split one, and what is left of it outside the change comes back.
 *
 * ```
 *   book     [   rw   ][  rw  ]
 *   changed       |--------|
 *   wanted        | rw |ro |
 *   gone               [  rw  ]
 *   added              [ro][rw]      the first range is kept: it still is rw wherever it was compared
 * ```
 *
 * Outside the changed spans every range already wants what it has, so that a small change under a big slot costs a
 * small time.
 *
 * @module
 */

import { LimitError } from "../errors.ts";
import type { Entry, RangeMap } from "../range_map.ts";
import { gaps, type Span } from "../span.ts";

/** What to tell one target. */
export interface RangeChanges<V> {
  /** Ranges to take away, each exactly one that the target holds. */
  readonly gone: readonly Entry<V>[];
  /** Ranges to add after that. */
  readonly added: readonly Entry<V>[];
  /** What the target holds then. */
  readonly book: RangeMap<V>;
}

/** Whether `wanted`, ordered and disjoint, is `value` throughout `[start, end)`. */
function wantsThroughout<V>(
  wanted: readonly Entry<V>[],
  start: number,
  end: number,
  value: V,
  same: (a: V, b: V) => boolean,
): boolean {
  // The first wanted range that ends above `start`.
  let low = 0;
  let high = wanted.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (wanted[middle]!.end <= start) low = middle + 1;
    else high = middle;
  }
  let cursor = start;
  for (let i = low; i < wanted.length && cursor < end; i++) {
    const entry = wanted[i]!;
    if (entry.start > cursor || !same(entry.value, value)) return false;
    cursor = entry.end;
  }
  return cursor >= end;
}

/**
 * Compares what a target holds with what is wanted over `changed`.
 *
 * `wanted` is cut to `changed`; both are ordered and disjoint. Returns `null` where nothing has to be told.
 */
export function reconcile<V>(
  book: RangeMap<V>,
  wanted: readonly Entry<V>[],
  changed: readonly Span[],
  same: (a: V, b: V) => boolean,
): RangeChanges<V> | null {
  const [only] = changed;
  if (only !== undefined && changed.length === 1) {
    // The usual case: one range holds all of it, and still wants its access.
    const entry = book.entryAt(only.start);
    if (
      entry !== undefined && entry.end >= only.end && wantsThroughout(wanted, only.start, only.end, entry.value, same)
    ) {
      return null;
    }
  }
  const held = heldOver(book, changed);
  const gone: Entry<V>[] = [];
  const kept: Entry<V>[] = [];
  for (const { entry, spans } of held) {
    const keeps = spans.every((span) =>
      wantsThroughout(wanted, Math.max(entry.start, span.start), Math.min(entry.end, span.end), entry.value, same)
    );
    (keeps ? kept : gone).push(entry);
  }
  const added = uncovered(wanted, kept);
  for (const { start, end, value } of gone) {
    // Outside of the changed spans they want what they had.
    for (const gap of gaps(start, end, changed)) added.push({ ...gap, value });
  }
  if (gone.length === 0 && added.length === 0) return null;
  added.sort((a, b) => a.start - b.start);

  let next = book;
  for (const { start, end } of gone) next = next.delete(start, end);
  for (const { start, end, value } of added) next = next.set(start, end, value);
  return { gone, added, book: next };
}

/** Each held range that overlaps a changed span, once, with the spans that it overlaps. */
function heldOver<V>(book: RangeMap<V>, changed: readonly Span[]): { entry: Entry<V>; spans: Span[] }[] {
  const held: { entry: Entry<V>; spans: Span[] }[] = [];
  for (const span of changed) {
    for (const entry of book.overlapping(span.start, span.end)) {
      const last = held.at(-1);
      if (last?.entry.start === entry.start) last.spans.push(span);
      else held.push({ entry, spans: [span] });
    }
  }
  return held;
}

/** The parts of `wanted` that none of `kept` covers. */
function uncovered<V>(wanted: readonly Entry<V>[], kept: readonly Entry<V>[]): Entry<V>[] {
  const open: Entry<V>[] = [];
  let k = 0;
  for (const { start, end, value } of wanted) {
    let cursor = start;
    while (k < kept.length && kept[k]!.end <= cursor) k++;
    for (let i = k; i < kept.length && kept[i]!.start < end; i++) {
      if (cursor < kept[i]!.start) open.push({ start: cursor, end: kept[i]!.start, value });
      cursor = kept[i]!.end;
    }
    if (cursor < end) open.push({ start: cursor, end, value });
  }
  return open;
}

/**
 * Makes the changes fit into a target that can hold `capacity` ranges: ranges added by this very request are joined
 * where they touch, and only if they would not fit otherwise, because a joined slot goes whole when a part of it does.
 *
 * @throws {LimitError} If they do not fit even then.
 */
export function fitCapacity<V>(
  changes: RangeChanges<V>,
  capacity: number,
  same: (a: V, b: V) => boolean,
): RangeChanges<V> {
  let excess = changes.book.size - capacity;
  if (excess <= 0) return changes;
  const added: Entry<V>[] = [];
  let { book } = changes;
  for (const entry of changes.added) {
    const last = added.at(-1);
    if (excess > 0 && last !== undefined && last.end === entry.start && same(last.value, entry.value)) {
      added[added.length - 1] = { start: last.start, end: entry.end, value: last.value };
      book = book.set(last.start, entry.end, last.value);
      excess--;
    } else {
      added.push(entry);
    }
  }
  if (excess > 0) {
    throw new LimitError("memory slots", capacity, book.size, "use fewer or larger mappings");
  }
  return { gone: changes.gone, added, book };
}
