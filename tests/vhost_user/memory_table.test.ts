import { assert, assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import { LimitError } from "membacking";
import { changeTable, joined, type Run, type TableRules } from "../../src/vhost_user/memory_table.ts";

const PAGES = 24;
type Page = { file: string; offset: number } | null;

/** One page each, from small numbers: 0 is nothing, others are a file and a distance between GPA and offset. */
const pages = fc.array(fc.integer({ min: 0, max: 4 }), { minLength: PAGES, maxLength: PAGES }).map((kinds) =>
  kinds.map((kind, i): Page => kind === 0 ? null : { file: kind < 3 ? "a" : "b", offset: i + (kind % 2) * 100 })
);

/** The runs of pages, cut at `cuts` as well. */
function runsOf(list: readonly Page[], cuts: readonly number[]): Run<string>[] {
  const runs: Run<string>[] = [];
  list.forEach((page, i) => {
    if (page === null) return;
    const run = { start: i, end: i + 1, file: page.file, fileOffset: page.offset };
    const last = runs.at(-1);
    const [whole] = last === undefined ? [] : joined([last, run]);
    if (last !== undefined && whole?.end === i + 1 && last.end === i && !cuts.includes(i)) {
      runs[runs.length - 1] = whole;
    } else runs.push(run);
  });
  return runs;
}

function pagesOf(runs: readonly Run<string>[]): Page[] {
  const list: Page[] = new Array(PAGES).fill(null);
  for (const { start, end, file, fileOffset } of runs) {
    for (let i = start; i < end; i++) {
      assertEquals(list[i], null, "two entries overlap");
      list[i] = { file, offset: fileOffset + i - start };
    }
  }
  return list;
}

/** What a back end has after the messages. */
function applied(table: readonly Run<string>[], change: ReturnType<typeof changeTable<string>>): Run<string>[] {
  const left = [...table];
  for (const entry of change.removed) {
    const at = left.findIndex((each) => each.start === entry.start && each.end === entry.end);
    assert(at >= 0, "an entry is removed that is not there");
    left.splice(at, 1);
  }
  for (const entry of change.added) {
    assert(!left.some(({ start, end }) => start < entry.end && entry.start < end), "an entry is added over another");
    left.push(entry);
  }
  return left.sort((a, b) => a.start - b.start);
}

const cuts = fc.array(fc.integer({ min: 0, max: PAGES }), { maxLength: 8 });
const slots = (capacity: number, busy?: (entry: Run<string>) => boolean): TableRules<string> => ({
  kind: "slots",
  capacity,
  ...(busy !== undefined && { busy }),
});

Deno.test("whatever the table was, after the change it covers exactly what is wanted", () => {
  fc.assert(
    fc.property(pages, cuts, pages, cuts, fc.boolean(), (old, oldCuts, next, nextCuts, whole) => {
      const table = whole ? joined(runsOf(old, oldCuts)) : runsOf(old, oldCuts);
      const wanted = runsOf(next, nextCuts);
      const rules: TableRules<string> = whole ? { kind: "whole", capacity: PAGES } : slots(PAGES);
      const change = changeTable(table, wanted, rules);
      assertEquals(pagesOf(applied(table, change)), next);
      assertEquals(change.table, applied(table, change));
      if (whole) assertEquals(change.table, joined(wanted));
    }),
    { numRuns: 500 },
  );
});

Deno.test("an entry that is still right is left alone, and nothing changes where nothing has to", () => {
  fc.assert(
    fc.property(pages, cuts, pages, (old, oldCuts, next) => {
      const table = runsOf(old, oldCuts);
      const { removed } = changeTable(table, runsOf(next, []), slots(PAGES));
      for (const entry of removed) {
        const stillRight = Array.from({ length: entry.end - entry.start }, (_, i) => entry.start + i)
          .every((i) => old[i]?.file === next[i]?.file && old[i]?.offset === next[i]?.offset);
        assert(!stillRight, "an entry was removed for nothing");
      }
      const same = changeTable(table, runsOf(old, []), slots(PAGES));
      assertEquals([same.removed, same.added], [[], []]);
    }),
    { numRuns: 500 },
  );
});

Deno.test("entries are joined when there is no room for them otherwise, and the request fails only when even that does not do", () => {
  fc.assert(
    fc.property(pages, cuts, pages, cuts, fc.integer({ min: 1, max: 12 }), (old, oldCuts, next, nextCuts, capacity) => {
      const table = runsOf(old, oldCuts);
      if (table.length > capacity) return;
      const wanted = runsOf(next, nextCuts);
      const least = joined(wanted).length;
      if (least > capacity) {
        const error = assertThrows(() => changeTable(table, wanted, slots(capacity)), LimitError);
        assertEquals([error.have, error.want], [capacity, least]);
      } else {
        const change = changeTable(table, wanted, slots(capacity));
        assert(change.table.length <= capacity);
        assertEquals(pagesOf(applied(table, change)), next);
      }
    }),
    { numRuns: 500 },
  );
});

Deno.test("an entry where a vring runs is joined with its neighbours last of all", () => {
  const entry = (start: number, end: number): Run<string> => ({ start, end, file: "a", fileOffset: start });
  const table = [entry(0, 1), entry(1, 2), entry(2, 3), entry(3, 4)];
  const wanted = [...table, entry(6, 7)];
  const busy = ({ start }: Run<string>) => start === 0;
  const careful = changeTable(table, wanted, slots(4, busy));
  assertEquals(careful.table.map(({ start, end }) => [start, end]), [[0, 1], [1, 4], [6, 7]]);
  const hasty = changeTable(table, wanted, slots(2, busy));
  assertEquals(hasty.table.map(({ start, end }) => [start, end]), [[0, 4], [6, 7]]);
});

Deno.test("x86 legacy RAM, 16 pieces of one file, is one entry", () => {
  const starts = [0, 0xa0000, ...Array.from({ length: 12 }, (_, i) => 0xc0000 + 0x4000 * i), 0xf0000, 0x10_0000];
  const ends = [...starts.slice(1), 0x800_0000];
  const wanted = starts.map((start, i) => ({ start, end: ends[i]!, file: "ram", fileOffset: start }));
  assertEquals(wanted.length, 16);
  for (const rules of [{ kind: "whole", capacity: 8 } as const, slots(32)]) {
    assertEquals(changeTable([], wanted, rules).table, [{ start: 0, end: 0x800_0000, file: "ram", fileOffset: 0 }]);
  }
});
