import { assert, assertEquals, assertStrictEquals } from "@std/assert";
import * as fc from "fast-check";
import { type Entry, Place, RangeMap } from "../../src/core/range_map.ts";

/** How many random sequences each property tries. */
const RUNS = 300;

type Edit = { kind: "set" | "delete" | "replace"; start: number; length: number; cuts: number[] };

/** The naive model: one cell per address, holding the number of the edit that filled it. */
type Cells = (number | undefined)[];

function editWithin(limit: number, longest: number): fc.Arbitrary<Edit> {
  return fc.record({
    kind: fc.constantFrom("set", "set", "delete", "replace"),
    start: fc.nat(limit - 1),
    length: fc.integer({ min: 1, max: longest }),
    cuts: fc.array(fc.nat(longest), { maxLength: 6 }),
  });
}

/** Applies one edit to the map and to the cells. */
function apply(map: RangeMap<number>, cells: Cells, edit: Edit, serial: number): RangeMap<number> {
  const { start } = edit;
  const end = Math.min(cells.length, start + edit.length);
  cells.fill(undefined, start, end);
  if (edit.kind === "delete") return map.delete(start, end);
  if (edit.kind === "set") {
    cells.fill(serial, start, end);
    return map.set(start, end, serial);
  }
  const bounds = [...new Set(edit.cuts.map((cut) => start + cut).filter((cut) => cut <= end))].sort((a, b) => a - b);
  const pieces: Entry<number>[] = [];
  for (let i = 0; i + 1 < bounds.length; i += 2) {
    const piece = { start: bounds[i]!, end: bounds[i + 1]!, value: serial + i / 100 };
    cells.fill(piece.value, piece.start, piece.end);
    pieces.push(piece);
  }
  return map.replace(start, end, pieces);
}

/** The map and the cells, `size` of them, after `edits`. */
function made(edits: readonly Edit[], size: number): { map: RangeMap<number>; cells: Cells } {
  const cells: Cells = Array.from({ length: size });
  const map = edits.reduce<RangeMap<number>>((map, edit, i) => apply(map, cells, edit, i + 1), RangeMap.EMPTY);
  return { map, cells };
}

/** The runs of equal cells. Every edit writes values of its own, so a run is an entry. */
function entriesOf(cells: Cells): Entry<number>[] {
  const entries: Entry<number>[] = [];
  for (let start = 0; start < cells.length;) {
    const value = cells[start];
    let end = start;
    while (end < cells.length && cells[end] === value) end++;
    if (value !== undefined) entries.push({ start, end, value });
    start = end;
  }
  return entries;
}

Deno.test("RangeMap holds what an array of cells holds after any edits", () => {
  fc.assert(
    fc.property(fc.array(editWithin(200, 30), { maxLength: 120, size: "max" }), (edits) => {
      const { map, cells } = made(edits, 200);
      const expected = entriesOf(cells);
      assertEquals([...map], expected);
      assertEquals(map.size, expected.length);
      for (let address = 0; address < cells.length; address++) {
        assertStrictEquals(map.get(address), cells[address]);
        assertEquals(map.entryAt(address), expected.find((e) => e.start <= address && address < e.end));
      }
    }),
    { numRuns: RUNS },
  );
});

Deno.test("RangeMap answers every range query as a scan of the entries does", () => {
  fc.assert(
    fc.property(
      fc.array(editWithin(300, 12), { maxLength: 150, size: "max" }),
      fc.array(fc.tuple(fc.nat(300), fc.integer({ min: 1, max: 60 })), { minLength: 1, maxLength: 20 }),
      (edits, queries) => {
        const { map, cells } = made(edits, 300);
        const entries = entriesOf(cells);
        for (const [start, length] of queries) {
          const end = start + length;
          const inside = entries.filter((e) => e.start < end && e.end > start);
          assertEquals(map.overlapping(start, end), inside);
          assertEquals(map.overlaps(start, end), inside.length > 0);
          assertEquals(map.lastBelow(end), entries.findLast((e) => e.start < end));
          const [first] = inside;
          const sole = first === undefined ? null : first.start <= start && first.end >= end ? first.value : undefined;
          assertStrictEquals(map.throughout(start, end), sole);
        }
      },
    ),
    { numRuns: RUNS },
  );
});

Deno.test("RangeMap.seek finds the entry or the gap at an address, and where it ends", () => {
  fc.assert(
    fc.property(fc.array(editWithin(400, 20), { maxLength: 100, size: "max" }), (edits) => {
      const { map, cells } = made(edits, 400);
      const entries = entriesOf(cells);
      const place = new Place<number>();
      for (let address = -1; address <= 400; address++) {
        map.seek(address, place);
        const entry = entries.find(({ start, end }) => start <= address && address < end);
        const next = entries.find(({ start }) => start > address);
        assertStrictEquals(place.value, entry?.value ?? null);
        assertStrictEquals(place.start, entry?.start ?? address);
        assertStrictEquals(place.end, entry?.end ?? next?.start ?? Infinity);
      }
    }),
    { numRuns: RUNS },
  );
});

Deno.test("RangeMap edits leave every earlier version as it was", () => {
  fc.assert(
    fc.property(fc.array(editWithin(400, 20), { maxLength: 100, size: "max" }), (edits) => {
      let map: RangeMap<number> = RangeMap.EMPTY;
      const cells: Cells = Array.from({ length: 400 });
      const versions: { map: RangeMap<number>; entries: Entry<number>[] }[] = [];
      edits.forEach((edit, i) => {
        versions.push({ map, entries: entriesOf(cells) });
        map = apply(map, cells, edit, i + 1);
      });
      for (const version of versions) assertEquals([...version.map], version.entries);
    }),
    { numRuns: RUNS / 3 },
  );
});

Deno.test("RangeMap stays right with thousands of entries, through wide and narrow edits", () => {
  const limit = 20_000;
  fc.assert(
    fc.property(
      fc.array(fc.oneof(editWithin(limit, 4), editWithin(limit, 4), editWithin(limit, 3000)), {
        minLength: 200,
        maxLength: 400,
        size: "max",
      }),
      (edits) => {
        let map: RangeMap<number> = RangeMap.EMPTY;
        const cells: Cells = Array.from({ length: limit });
        for (let start = 0; start < limit; start += 3) {
          map = map.set(start, start + 2, -start);
          cells.fill(-start, start, start + 2);
        }
        edits.forEach((edit, i) => {
          map = apply(map, cells, edit, i + 1);
        });
        assertEquals([...map], entriesOf(cells));
        assertEquals(map.size, [...map].length);
      },
    ),
    { numRuns: 8 },
  );
});

Deno.test("RangeMap takes entries in descending, ascending and inside-out order", () => {
  const count = 3000;
  const ascending = Array.from({ length: count }, (_, i) => i);
  const orders = {
    ascending,
    descending: ascending.toReversed(),
    insideOut: ascending.map((i) => i % 2 === 0 ? (count + i) / 2 : (count - i - 1) / 2),
  };
  for (const [name, order] of Object.entries(orders)) {
    let map: RangeMap<number> = RangeMap.EMPTY;
    for (const i of order) map = map.set(i * 10, i * 10 + 5, i);
    assertEquals([...map].map((entry) => entry.value), ascending, name);
    for (const i of order) map = map.delete(i * 10, i * 10 + 5);
    assertStrictEquals(map.size, 0, name);
    assertEquals([...map], [], name);
  }
});

Deno.test("RangeMap.delete of nothing returns the map itself", () => {
  const map = RangeMap.EMPTY.replace(0, 0, []);
  assert(map.size === 0);
  const one: RangeMap<string> = (RangeMap.EMPTY as RangeMap<string>).set(0x1000, 0x2000, "a");
  assertStrictEquals(one.delete(0x2000, 0x3000), one);
  assertStrictEquals(one.delete(0, 0x1000), one);
});

Deno.test("RangeMap keeps both remainders when the middle of an entry is replaced", () => {
  const map = (RangeMap.EMPTY as RangeMap<string>).set(0, 0x5000, "old").set(0x2000, 0x3000, "new");
  assertEquals([...map], [
    { start: 0, end: 0x2000, value: "old" },
    { start: 0x2000, end: 0x3000, value: "new" },
    { start: 0x3000, end: 0x5000, value: "old" },
  ]);
});
