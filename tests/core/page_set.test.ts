import { assert, assertEquals, assertStrictEquals, assertThrows } from "@std/assert";
import * as fc from "fast-check";
import { MemoryRange, PAGE_SIZE } from "../../src/core/memory_range.ts";
import { firstWordSet, WordRuns } from "../../src/core/page_runs.ts";
import { PageMarks } from "../../src/core/page_marks.ts";
import { PageSet } from "../../src/core/page_set.ts";

/** How many random cases each property tries. */
const RUNS = 300;
const GIB = 2 ** 30;

/** The naive set: page numbers. */
type Naive = Set<number>;

/** Runs of pages that are kept in either way: a few anywhere, or many close together. */
const runs = fc.oneof(
  fc.array(fc.tuple(fc.nat(400), fc.integer({ min: 1, max: 40 })), { maxLength: 12 }),
  fc.array(fc.tuple(fc.nat(150), fc.integer({ min: 1, max: 2 })), { maxLength: 90 }),
  fc.array(
    fc.tuple(fc.constantFrom(0, 31, 32, 63, 64, 2 ** 24, 2 ** 39, 2 ** 40 - 40), fc.integer({ min: 1, max: 40 })),
    {
      maxLength: 6,
    },
  ),
);

function rangesOf(pairs: readonly (readonly [number, number])[]): MemoryRange[] {
  return pairs.map(([page, length]) => MemoryRange.of(page * PAGE_SIZE, length * PAGE_SIZE));
}

function naiveOf(pairs: readonly (readonly [number, number])[]): Naive {
  const pages: Naive = new Set();
  for (const [page, length] of pairs) for (let i = 0; i < length; i++) pages.add(page + i);
  return pages;
}

/** The maximal runs of the naive set, as text. */
function textOf(pages: Naive): string[] {
  const sorted = [...pages].sort((a, b) => a - b);
  const found: string[] = [];
  for (let i = 0; i < sorted.length;) {
    let j = i + 1;
    while (j < sorted.length && sorted[j] === sorted[j - 1]! + 1) j++;
    found.push(new MemoryRange(sorted[i]! * PAGE_SIZE, (sorted[j - 1]! + 1) * PAGE_SIZE).toString());
    i = j;
  }
  return found;
}

function check(set: PageSet, expected: Naive): void {
  assertEquals([...set].map(String), textOf(expected));
  assertStrictEquals(set.count, expected.size);
  assertStrictEquals(set.byteLength, expected.size * PAGE_SIZE);
}

Deno.test("PageSet.of() has the pages of its ranges, as maximal runs in order, whatever order they come in", () => {
  fc.assert(
    fc.property(runs, (pairs) => {
      const set = PageSet.of(rangesOf(pairs));
      const expected = naiveOf(pairs);
      check(set, expected);
      for (const [page, length] of pairs) {
        for (const at of [page - 1, page, page + length - 1, page + length]) {
          if (at >= 0) assertStrictEquals(set.has(at * PAGE_SIZE + 17), expected.has(at));
        }
      }
    }),
    { numRuns: RUNS },
  );
});

Deno.test("PageSet: union, intersection, difference and within agree with a naive set", () => {
  fc.assert(
    fc.property(runs, runs, fc.nat(500), fc.nat(500), (left, right, from, length) => {
      const [a, b] = [PageSet.of(rangesOf(left)), PageSet.of(rangesOf(right))];
      const [x, y] = [naiveOf(left), naiveOf(right)];
      check(a.union(b), x.union(y));
      check(a.intersection(b), x.intersection(y));
      check(a.difference(b), x.difference(y));
      const range = MemoryRange.of(from * PAGE_SIZE, length * PAGE_SIZE);
      check(a.within(range), new Set([...x].filter((page) => page >= from && page < from + length)));
      // Operands are as they were.
      check(a, x);
      check(b, y);
    }),
    { numRuns: RUNS },
  );
});

Deno.test("PageSet: results of operations work as operands", () => {
  fc.assert(
    fc.property(fc.array(fc.tuple(fc.constantFrom("union", "intersection", "difference"), runs)), (steps) => {
      let set = PageSet.EMPTY;
      let expected: Naive = new Set();
      for (const [operation, pairs] of steps) {
        set = set[operation](PageSet.of(rangesOf(pairs)));
        expected = expected[operation](naiveOf(pairs));
        check(set, expected);
        assert(set.equals(PageSet.of([...set])));
      }
    }),
    { numRuns: RUNS },
  );
});

Deno.test("PageMarks gathers what was marked since the last take, in any order", () => {
  fc.assert(
    fc.property(fc.array(runs, { maxLength: 4 }), (rounds) => {
      const marks = new PageMarks();
      for (const pairs of rounds) {
        // Single bytes mark their page.
        for (const [page, length] of pairs) marks.add(page * PAGE_SIZE + 5, (page + length) * PAGE_SIZE - 4090);
        assertStrictEquals(marks.isEmpty, pairs.length === 0);
        check(marks.take(), naiveOf(pairs));
      }
      assertStrictEquals(marks.take(), PageSet.EMPTY);
    }),
    { numRuns: RUNS },
  );
});

Deno.test("PageMarks loses none of thousands of runs in a few orders one behind the other, wherever its room ends", () => {
  // So far apart that none of them become one, nor a bitmap.
  const stretch = fc.tuple(fc.integer({ min: 0, max: 4 }), fc.integer({ min: 1, max: 3000 }));
  fc.assert(
    fc.property(fc.array(stretch, { minLength: 1, maxLength: 5 }), fc.nat(2 ** 24), (stretches, last) => {
      const marks = new PageMarks();
      const expected: Naive = new Set();
      const add = (page: number) => {
        marks.add(page * PAGE_SIZE, (page + 1) * PAGE_SIZE);
        expected.add(page);
      };
      for (const [at, count] of stretches) for (let i = 0; i < count; i++) add(at * 2 ** 22 + 1200 * i);
      add(last);
      check(marks.take(), expected);
    }),
    {
      numRuns: 30,
      examples: [[[[4, 2048], [0, 2048]], 601], [[[4, 4096], [0, 4096]], 5], [[[4, 2048], [2, 2048]], 0]],
    },
  );
});

Deno.test("PageMarks takes bits beyond 2^31 of one bitmap", () => {
  const marks = new PageMarks();
  const words = new Uint32Array(2 ** 26 + 2);
  words[1] = 0b110;
  words[2 ** 26 + 1] = 0b1;
  marks.addWords(64, words, 0, 2 ** 40);
  check(marks.take(), new Set([97, 98, 2 ** 31 + 96]));
});

Deno.test("PageMarks takes the pages of a bitmap that begins anywhere, as far as they are asked for, beside runs", () => {
  const bitmap = fc.record({
    first: fc.integer({ min: -100, max: 3000 }),
    pairs: fc.array(fc.tuple(fc.nat(1200), fc.integer({ min: 1, max: 40 })), { maxLength: 60 }),
    length: fc.nat(48),
    from: fc.nat(2000),
    to: fc.nat(4000),
  });
  fc.assert(
    fc.property(fc.array(bitmap, { maxLength: 4 }), runs, (bitmaps, pairs) => {
      const marks = new PageMarks();
      const expected = naiveOf(pairs);
      for (const { first, pairs, length, from, to } of bitmaps) {
        const words = new Uint32Array(length);
        for (const bit of naiveOf(pairs)) {
          if (bit >= 32 * length) continue;
          words[bit >>> 5]! |= 1 << (bit & 31);
          if (first + bit >= from && first + bit < to) expected.add(first + bit);
        }
        marks.addWords(first, words, from, to);
        words.fill(0xffffffff); // What was handed over is looked at no more.
      }
      for (const range of rangesOf(pairs)) marks.add(range.start, range.end);
      assertStrictEquals(marks.isEmpty, expected.size === 0);
      check(marks.toSet(), expected);
      check(marks.take(), expected);
      assert(marks.isEmpty);
    }),
    { numRuns: RUNS },
  );
});

Deno.test("PageMarks keeps a bitmap of many pages as one, and of few as runs", () => {
  const marks = new PageMarks();
  const words = new Uint32Array(8192);
  words[1] = words[8190] = 3;
  marks.addWords(64, words, 0, Infinity);
  assert(marks.take().storedBytes <= 64);
  for (let i = 0; i < words.length; i += 2) words[i] = 1;
  marks.addWords(64, words, 0, Infinity);
  marks.add(0, PAGE_SIZE);
  const pages = marks.take();
  assertStrictEquals(pages.count, 4096 + 2 + 1);
  assert(pages.storedBytes <= words.byteLength + 64, `${pages.storedBytes}`);
});

Deno.test("WordRuns finds the runs of set bits in any stretch of a bitmap, long ones too", () => {
  const BITS = 4096;
  const stretches = fc.array(fc.tuple(fc.nat(BITS - 1), fc.oneof(fc.integer({ min: 1, max: 5 }), fc.nat(2000))));
  fc.assert(
    fc.property(stretches, fc.nat(BITS), fc.nat(BITS), (stretches, a, b) => {
      const [from, to] = [Math.min(a, b), Math.max(a, b)];
      const words = new Uint32Array(BITS / 32);
      const bits: Naive = new Set();
      for (const [start, length] of stretches) {
        for (let bit = start; bit < Math.min(BITS, start + length); bit++) {
          words[bit >>> 5]! |= 1 << (bit & 31);
          if (bit >= from && bit < to) bits.add(bit);
        }
      }
      const found: string[] = [];
      const runs = new WordRuns(words);
      // Whatever it was at before makes no difference.
      runs.restart(b, BITS);
      runs.next();
      runs.restart(from, to);
      while (runs.next()) found.push(new MemoryRange(runs.start * PAGE_SIZE, runs.end * PAGE_SIZE).toString());
      assert(!runs.next());
      assertEquals(found, textOf(bits));
      const first = words.findIndex((word) => word !== 0);
      assertStrictEquals(firstWordSet(words, 0, words.length), first === -1 ? words.length : first);
    }),
    { numRuns: RUNS },
  );
});

Deno.test("PageMarks marked over and over take no more memory than the pages they mark", () => {
  const marks = new PageMarks();
  const expected: Naive = new Set();
  let seed = 1;
  const random = (below: number) => (seed = seed * 1103515245 + 12345 & 0x7fffffff) % below;
  for (let i = 0; i < 300_000; i++) {
    const page = random(3000);
    marks.add(page * PAGE_SIZE, (page + 1) * PAGE_SIZE);
    expected.add(page);
  }
  assert(marks.storedBytes <= 16 * 8192, `${marks.storedBytes}`);
  check(marks.take(), expected);
  // And what is marked once is all there.
  for (let page = 20_000; page >= 0; page -= 2) marks.add(page * PAGE_SIZE, (page + 1) * PAGE_SIZE);
  assertStrictEquals(marks.take().count, 10_001);
});

Deno.test("PageSet takes little for few pages in 64 GiB, and a bit a page for every other page of 1 GiB", () => {
  const few = PageSet.of([0, 17, 63.5].map((gib) => MemoryRange.of(gib * GIB, PAGE_SIZE)));
  assert(few.storedBytes <= 48, `${few.storedBytes}`);
  const marks = new PageMarks();
  for (let at = 0; at < GIB; at += 2 * PAGE_SIZE) marks.add(at, at + PAGE_SIZE);
  const many = marks.take();
  assertStrictEquals(many.count, GIB / PAGE_SIZE / 2);
  assertStrictEquals(many.storedBytes, GIB / PAGE_SIZE / 8);
  assertStrictEquals(many.union(few).count, many.count + 2);
  const all = PageSet.of([MemoryRange.of(0, 64 * GIB)]);
  assertStrictEquals(all.storedBytes, 16);
  assertStrictEquals(all.difference(many).count, all.count - many.count);
});

Deno.test("PageSet refuses what is no range, no set, no address", () => {
  // @ts-expect-error what a JavaScript caller can do
  assertThrows(() => PageSet.of([{ start: 0, end: 4096 }]), TypeError);
  // @ts-expect-error what a JavaScript caller can do
  assertThrows(() => PageSet.EMPTY.union(new Set()), TypeError);
  // @ts-expect-error what a JavaScript caller can do
  assertThrows(() => PageSet.EMPTY.within([0, 4096]), TypeError);
  for (const bad of [-1, 0.5, NaN, Infinity]) assertThrows(() => PageSet.EMPTY.has(bad), RangeError);
  assert(!PageSet.of([MemoryRange.of(0, PAGE_SIZE)]).has(2 ** 52));
  assertStrictEquals(PageSet.of([MemoryRange.EMPTY]), PageSet.EMPTY);
});
