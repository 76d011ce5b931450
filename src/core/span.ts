import type { Entry } from "./range_map.ts";

/** A half-open range `[start, end)` of addresses in bytes, unchecked: what `MemoryRange` is inside the core. */
export interface Span {
  /** The first address. */
  readonly start: number;
  /** One past the last address. */
  readonly end: number;
}

/** Every address there can be. */
export const EVERYWHERE: readonly Span[] = [{ start: 0, end: Number.MAX_SAFE_INTEGER }];

/** The same addresses as ordered spans that neither overlap nor touch. */
export function normalize(spans: readonly Span[]): readonly Span[] {
  return spans.length < 2 ? spans : merged(spans);
}

function merged(spans: readonly Span[]): readonly Span[] {
  const sorted = spans.toSorted((a, b) => a.start - b.start);
  const found: { start: number; end: number }[] = [];
  for (const { start, end } of sorted) {
    const last = found.at(-1);
    if (last !== undefined && start <= last.end) last.end = Math.max(last.end, end);
    else found.push({ start, end });
  }
  return found;
}

/** At most `most` spans that cover `spans`, ordered: those with the least between them become one. */
export function fewSpans(spans: readonly Span[], most: number): readonly Span[] {
  const few = [...normalize(spans)];
  while (few.length > most) {
    let at = 1;
    const gap = (i: number) => (few[i]?.start ?? Infinity) - (few[i - 1]?.end ?? 0);
    for (let i = 2; i < few.length; i++) if (gap(i) < gap(at)) at = i;
    const [left, right] = [few[at - 1], few[at]];
    if (left === undefined || right === undefined) break;
    few.splice(at - 1, 2, { start: left.start, end: right.end });
  }
  return few;
}

/** The parts of `[start, end)` that none of `others` covers, which are in order. */
export function gaps(start: number, end: number, others: readonly Span[]): Span[] {
  const found: Span[] = [];
  let cursor = start;
  for (const other of others) {
    if (other.end <= cursor) continue;
    if (other.start >= end) break;
    if (cursor < other.start) found.push({ start: cursor, end: other.start });
    cursor = other.end;
  }
  if (cursor < end) found.push({ start: cursor, end });
  return found;
}

/** The spans among `some` that overlap one of `others`, which are ordered; and the rest. */
export function parted(
  some: readonly Span[],
  others: readonly Span[],
): { inside: readonly Span[]; outside: readonly Span[] } {
  if (some.length === 0) return { inside: some, outside: some };
  const { inside = [], outside = [] } = Object.groupBy(
    some,
    (span) => others.some((other) => span.start < other.end && other.start < span.end) ? "inside" : "outside",
  );
  return { inside, outside };
}

/** The part of `entry` inside `[start, end)`; the entry itself where it lies inside. */
export function clip<V>(entry: Entry<V>, start: number, end: number): Entry<V> {
  if (entry.start >= start && entry.end <= end) return entry;
  return { start: Math.max(entry.start, start), end: Math.min(entry.end, end), value: entry.value };
}
