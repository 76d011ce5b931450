import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import { LockTable } from "../../src/core/lock_table.ts";

interface Held {
  start: number;
  end: number;
}

/** The first span in order of start, then end, that overlaps. */
function naiveConflict(held: readonly Held[], start: number, end: number): Held | undefined {
  return held.filter((span) => span.start < end && span.end > start)
    .sort((a, b) => a.start - b.start || a.end - b.end)[0];
}

Deno.test("LockTable answers as a plain list of locks does", () => {
  const span = fc.tuple(fc.nat(40), fc.integer({ min: 1, max: 40 })).map(([start, length]) => ({
    start,
    end: start + length,
  }));
  const command = fc.record({ kind: fc.constantFrom("add", "remove", "ask"), span, pick: fc.nat() });
  fc.assert(
    fc.property(fc.array(command, { maxLength: 200 }), (commands) => {
      const table = new LockTable();
      const held: Held[] = [];
      for (const { kind, span, pick } of commands) {
        if (kind === "add") {
          table.add(span.start, span.end);
          held.push(span);
        } else if (kind === "remove" && held.length > 0) {
          const [gone] = held.splice(pick % held.length, 1);
          if (gone !== undefined) table.remove(gone.start, gone.end);
        }
        assertEquals(table.conflict(span.start, span.end), naiveConflict(held, span.start, span.end));
        assertEquals(table.isEmpty, held.length === 0);
      }
      const counted = new Map<string, number>();
      for (const { start, end } of held) counted.set(`${start}-${end}`, (counted.get(`${start}-${end}`) ?? 0) + 1);
      assertEquals(
        new Map(table.entries().map(({ start, end, value }) => [`${start}-${end}`, value])),
        counted,
      );
      const starts = table.entries().map(({ start }) => start);
      assertEquals(starts, starts.toSorted((a, b) => a - b));
    }),
    { numRuns: 500 },
  );
});

Deno.test("LockTable takes a lock over ten thousand small ones as fast as any other", () => {
  const measure = (small: number) => {
    const table = new LockTable();
    for (let i = 0; i < small; i++) table.add(i * 2, i * 2 + 1);
    const rounds = 2000;
    const before = performance.now();
    for (let i = 0; i < rounds; i++) {
      table.add(0, 2 * small + i);
      table.conflict(2 * small - 1, 2 * small);
      table.remove(0, 2 * small + i);
    }
    return (performance.now() - before) / rounds;
  };
  measure(100);
  const few = Math.min(measure(100), measure(100), measure(100));
  const many = Math.min(measure(10_000), measure(10_000), measure(10_000));
  // The depth doubles from 100 to 10,000; a linear cost would be a hundred times as high.
  assert(many < few * 20, `${many * 1000} us over 10,000 locks against ${few * 1000} us over 100`);
});
