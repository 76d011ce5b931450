import { assert, assertEquals, assertFalse, assertMatch, assertStrictEquals, assertThrows } from "@std/assert";
import * as fc from "fast-check";
import { MemoryRange } from "membacking";
import { ownRange } from "../../src/core/memory_range.ts";

const PAGE = 4096;
const LIMIT = 2 ** 52;

/** A range in a small space, so that ranges meet, touch and miss each other often; empty ones included. */
const range = fc.tuple(fc.nat(16), fc.nat(8)).map(([page, pages]) => MemoryRange.of(page * PAGE, pages * PAGE));

/** The pages of a range, the naive way. */
function pages(range: MemoryRange): Set<number> {
  const set = new Set<number>();
  for (let page = range.start / PAGE; page < range.end / PAGE; page++) set.add(page);
  return set;
}

Deno.test("MemoryRange has its ends, its length and whether it is empty", () => {
  const range = new MemoryRange(0x1000, 0x3000);
  assertStrictEquals(range.start, 0x1000);
  assertStrictEquals(range.end, 0x3000);
  assertStrictEquals(range.length, 0x2000);
  assertFalse(range.isEmpty);
  assert(new MemoryRange(0x1000, 0x1000).isEmpty);
  assert(MemoryRange.EMPTY.isEmpty);
});

Deno.test("MemoryRange reaches to 2^52 and no further", () => {
  assertStrictEquals(new MemoryRange(LIMIT - PAGE, LIMIT).length, PAGE);
  assertStrictEquals(new MemoryRange(0, LIMIT).length, LIMIT);
  assertThrows(() => new MemoryRange(0, LIMIT + PAGE), RangeError, "0x10000000001000");
  assertThrows(() => MemoryRange.of(LIMIT - PAGE, 2 * PAGE), RangeError);
  assertThrows(() => new MemoryRange(LIMIT - PAGE, LIMIT).offsetBy(PAGE), RangeError);
});

for (
  const [what, value] of [
    ["unaligned", 0x1001],
    ["a fraction", 0.5],
    ["negative", -PAGE],
    ["NaN", NaN],
    ["Infinity", Infinity],
    ["past the safe integers", 2 ** 53],
  ] as const
) {
  Deno.test(`MemoryRange refuses an end that is ${what}`, () => {
    assertThrows(() => new MemoryRange(value, LIMIT), RangeError, "Range start");
    assertThrows(() => new MemoryRange(0, value), RangeError, "Range end");
    assertThrows(() => MemoryRange.of(value, PAGE), RangeError);
    assertThrows(() => MemoryRange.of(0, value), RangeError);
    assertThrows(() => MemoryRange.of(PAGE, PAGE).offsetBy(value === -PAGE ? -2 * PAGE : value), RangeError);
  });
}

Deno.test("MemoryRange refuses ends that are not numbers", () => {
  const notNumbers: unknown[] = ["4096", 4096n, null, undefined, {}];
  for (const value of notNumbers) {
    assertThrows(() => new MemoryRange(value as number, PAGE), TypeError);
    assertThrows(() => new MemoryRange(0, value as number), TypeError);
  }
});

Deno.test("MemoryRange refuses an end below its start", () => {
  assertThrows(() => new MemoryRange(0x2000, 0x1000), RangeError, "Range end 0x1000 is below its start 0x2000");
});

Deno.test("MemoryRange.bounding is the smallest range of whole pages around the bytes", () => {
  fc.assert(fc.property(fc.nat(1 << 20), fc.nat(1 << 16), (start, length) => {
    const bounding = MemoryRange.bounding(start, start + length);
    assert(bounding.start <= start && bounding.end >= start + length);
    assert(start - bounding.start < PAGE && bounding.end - (start + length) < PAGE);
  }));
});

Deno.test("MemoryRange.bounding refuses fractions, negatives, NaN and ends beyond 2^52", () => {
  for (const value of [0.5, -1, NaN, Infinity]) {
    assertThrows(() => MemoryRange.bounding(value, LIMIT), RangeError);
    assertThrows(() => MemoryRange.bounding(0, value), RangeError);
  }
  assertThrows(() => MemoryRange.bounding(0, LIMIT + 1), RangeError);
});

Deno.test("MemoryRange relations agree with sets of pages", () => {
  fc.assert(fc.property(range, range, (a, b) => {
    const both = pages(a).intersection(pages(b));
    assertEquals(a.overlaps(b), both.size > 0);
    assertEquals(a.overlaps(b), b.overlaps(a));
    assertEquals(pages(a.intersect(b)), both);
    assertEquals(a.equals(b), a.start === b.start && a.end === b.end);
    if (!b.isEmpty) assertEquals(a.contains(b), pages(b).isSubsetOf(pages(a)));
    assertEquals(a.containsAddress(b.start), pages(a).has(b.start / PAGE));
    assertEquals(a.containsAddress(b.start + PAGE - 1), pages(a).has(b.start / PAGE));
  }));
});

Deno.test("MemoryRange.intersect of disjoint ranges is EMPTY", () => {
  assertStrictEquals(new MemoryRange(0, 0x1000).intersect(new MemoryRange(0x1000, 0x2000)), MemoryRange.EMPTY);
});

Deno.test("MemoryRange.offsetBy moves both ends and there and back is the same range", () => {
  fc.assert(fc.property(range, fc.nat(64), (range, pages) => {
    const moved = range.offsetBy(pages * PAGE);
    assertStrictEquals(moved.start, range.start + pages * PAGE);
    assertStrictEquals(moved.length, range.length);
    assert(moved.offsetBy(-pages * PAGE).equals(range));
  }));
});

Deno.test("MemoryRange prints as hexadecimal ends", () => {
  assertStrictEquals(new MemoryRange(0x1000, 0xa000_0000).toString(), "0x1000-0xa0000000");
  assertMatch(Deno.inspect(new MemoryRange(0x1000, 0x3000)), /MemoryRange 0x1000-0x3000/);
});

Deno.test("a range never changes, and what only passes for one is copied where it enters", () => {
  const range = new MemoryRange(0x1000, 0x3000);
  assertThrows(() => Object.assign(range, { end: NaN }), TypeError);
  assertThrows(() => Object.defineProperty(range, "end", { value: 2 ** 40 }), TypeError);
  assertEquals(ownRange(range, "A test"), range);
  let reads = 0;
  class Growing extends MemoryRange {
    constructor() {
      super(0x1000, 0x2000);
      Object.defineProperty(this, "end", { get: () => 0x2000 * ++reads });
    }
  }
  const own = ownRange(new Growing(), "A test");
  assertEquals([own.start, own.end, own.end, reads], [0x1000, 0x2000, 0x2000, 1]);
  assert(Object.isFrozen(own));
  const bare = Object.assign(Object.create(MemoryRange.prototype), { start: 0, end: NaN });
  assertThrows(() => ownRange(bare, "A test"), RangeError);
  const shown = new Proxy(range, { get: (target, name) => name === "end" ? 0x1001 : Reflect.get(target, name) });
  assertThrows(() => ownRange(shown, "A test"), TypeError);
  assertThrows(
    () => ownRange({ start: 0, end: 0x1000 } as MemoryRange, "A test"),
    TypeError,
    "A test needs a MemoryRange",
  );
});

Deno.test("MemoryRange.parse reads what toString writes, and decimal numbers", () => {
  fc.assert(fc.property(fc.nat(2 ** 30), fc.nat(2 ** 30), (start, length) => {
    const range = MemoryRange.of(start * 4096, length * 4096);
    assertEquals(MemoryRange.parse(`${range}`), range);
  }));
  assertEquals(MemoryRange.parse("4096-0X3000"), new MemoryRange(0x1000, 0x3000));
  for (const text of ["", "0x1000", "0x1000-", "-0x1000", "0x1000-0x2000 ", "0x1000..0x2000", "a-b", "1e3-0x2000"]) {
    assertThrows(() => MemoryRange.parse(text), SyntaxError, "is not a range, which has the form 0x1000-0x3000");
  }
  assertThrows(() => MemoryRange.parse("0x3000-0x1000"), RangeError);
  assertThrows(() => MemoryRange.parse("0x1-0x1000"), RangeError);
  assertThrows(() => MemoryRange.parse(7 as unknown as string), TypeError);
  assertThrows(() => new MemoryRange(0, 4096).offsetBy(4096n as unknown as number), TypeError, "must be a number");
});
