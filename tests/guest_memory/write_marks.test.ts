import { assert, assertEquals, assertStrictEquals } from "@std/assert";
import * as fc from "fast-check";
import { PageMarks } from "../../src/core/page_marks.ts";
import { PageSet } from "../../src/core/page_set.ts";
import { MemoryRange } from "../../src/core/memory_range.ts";
import { WriteMarks } from "../../src/memory/write_marks.ts";
import { PAGE } from "../support/units.ts";

const GIB = 2 ** 30;

function taken(marks: WriteMarks): string[] {
  const found = new PageMarks();
  let last = -1;
  marks.take((start, end) => {
    assert(start >= last && end > start);
    last = end;
    found.add(start, end);
  });
  return [...found.take()].map(String);
}

Deno.test("WriteMarks has the pages that were marked since the last time, by address or through windows", () => {
  const length = 4 * GIB;
  using marks = WriteMarks.create(length);
  // Another thread's look at the same bytes, and another process's.
  const other = WriteMarks.at(marks.address, length);
  using foreign = WriteMarks.inFile(marks.fd, length);
  const spans = fc.array(
    fc.record({
      page: fc.oneof(
        fc.nat(300),
        fc.integer({ min: 4000, max: 4200 }),
        fc.integer({ min: 0, max: length / PAGE - 100 }),
      ),
      offset: fc.nat(PAGE - 1),
      length: fc.oneof(fc.integer({ min: 1, max: 9 }), fc.integer({ min: 1, max: 50 * PAGE })),
      by: fc.constantFrom("owner", "thread", "process", "window"),
      lead: fc.nat(5000),
    }),
    { maxLength: 20 },
  );
  fc.assert(
    fc.property(spans, (spans) => {
      const extra: [number, number][] = [];
      for (const { page, offset, length, by, lead } of spans) {
        const start = page * PAGE + offset;
        const end = start + length;
        if (by === "owner") marks.mark(start, end);
        else if (by === "thread") other.mark(start, end);
        else if (by === "process") foreign.mark(start, end);
        else {
          const base = Math.max(0, page - lead) * PAGE;
          const window = other.window(base, Math.min(4 * GIB, base + 5100 * PAGE));
          window.mark(start - base, end - base);
          // As accessors do, which set the byte of a page themselves.
          const { openFrom, openEnd } = window;
          assert(openFrom <= page - base / PAGE && page - base / PAGE < openEnd);
          for (const also of [openFrom, openEnd - 1]) window.pages[also] = 1;
          extra.push([base / PAGE + openFrom, 1], [base / PAGE + openEnd - 1, 1]);
        }
      }
      const expected = PageSet.of([
        ...extra.map(([page, count]) => MemoryRange.of(page * PAGE, count * PAGE)),
        ...spans.map(({ page, offset, length }) =>
          MemoryRange.bounding(page * PAGE + offset, page * PAGE + offset + length)
        ),
      ]);
      assertEquals(taken(marks), [...expected].map(String));
      assertEquals(taken(marks), []);
    }),
    { numRuns: 200 },
  );
});

Deno.test("WriteMarks of 64 GiB take no memory but for what is marked, and an access of no bytes marks nothing", () => {
  using marks = WriteMarks.create(64 * GIB);
  marks.mark(0x1000, 0x1000);
  const window = marks.window(GIB, GIB + 16 * PAGE);
  window.mark(0, 0);
  window.mark(5, 5);
  assertEquals(taken(marks), []);
  window.mark(16 * PAGE - 1, 16 * PAGE);
  marks.mark(64 * GIB - 1, 64 * GIB);
  assertEquals(taken(marks), ["0x4000f000-0x40010000", "0xffffff000-0x1000000000"]);
  const { blocks } = Deno.statSync(`/proc/self/fd/${marks.fd}`);
  assert(blocks !== null && blocks * 512 <= 16 * PAGE, `${blocks}`);
  assertStrictEquals(marks.length, 64 * GIB);
});
