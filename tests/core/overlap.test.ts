import { assert, assertEquals } from "@std/assert";
import * as fc from "fast-check";
import { MemoryRange, PAGE_SIZE } from "../../src/core/memory_range.ts";
import { hide, type Repainted, show, type View } from "../../src/core/map/overlap.ts";
import type { Region } from "../../src/core/map/region.ts";
import { RangeMap } from "../../src/core/range_map.ts";

const PAGES = 24;

const someRegions = fc.array(
  fc.record({ start: fc.nat(PAGES - 1), length: fc.integer({ min: 1, max: 12 }) }),
  { minLength: 1, maxLength: 8 },
).map((shapes) =>
  shapes.map(({ start, length }, id): Region => ({
    id,
    age: id,
    name: `region ${id}`,
    range: new MemoryRange(start * PAGE_SIZE, Math.min(PAGES, start + length) * PAGE_SIZE),
    // Some have one in common, so that age decides.
    priority: (id * 5) % 3,
    type: "ram",
    holes: "exit",
    latest: undefined,
  }))
);

/** The winner of each page among the regions that are mapped. */
function winners(mapped: ReadonlySet<Region>): (Region | undefined)[] {
  return Array.from(
    { length: PAGES },
    (_, page) =>
      [...mapped].filter(({ range }) => range.containsAddress(page * PAGE_SIZE))
        .sort((a, b) => b.priority - a.priority || a.id - b.id)[0],
  );
}

Deno.test("show and hide paint what a list of pages says", () => {
  fc.assert(
    fc.property(someRegions, fc.array(fc.nat(7), { maxLength: 40, size: "max" }), (regions, toggles) => {
      let view: View = { visible: RangeMap.EMPTY, beaten: [] };
      const mapped = new Set<Region>();
      for (const toggle of toggles) {
        const region = regions[toggle % regions.length]!;
        const before = winners(mapped);
        const isShown = mapped.has(region);
        const next: Repainted = isShown ? hide(view, region) : show(view, region);
        if (isShown) mapped.delete(region);
        else mapped.add(region);
        const after = winners(mapped);

        const painted = Array.from({ length: PAGES }, (_, page) => next.visible.get(page * PAGE_SIZE));
        assertEquals(painted.map((owner) => owner?.id), after.map((owner) => owner?.id));
        for (let page = 0; page < PAGES; page++) {
          const gpa = page * PAGE_SIZE;
          const isChanged = next.changed.some(({ start, end }) => start <= gpa && gpa < end);
          assert(before[page] === after[page] || isChanged, `page ${page} changed`);
        }
        view = next;
      }
    }),
    { numRuns: 300 },
  );
});
