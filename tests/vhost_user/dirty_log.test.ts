import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import { DirtyLog } from "../../src/vhost_user/dirty_log.ts";
import type { BackendLink } from "../../src/vhost_user/link.ts";
import { WrittenMemory } from "../../src/vhost_user/written_memory.ts";

const PAGE = 0x1000;

Deno.test("a log reports the pages marked in a range as runs, once, and leaves the others", () => {
  using log = new DirtyLog(200 * PAGE);
  const page = fc.integer({ min: 0, max: 199 });
  fc.assert(
    fc.property(fc.uniqueArray(page), page, page, (marked, a, b) => {
      log.file.write(0, new Uint8Array(PAGE));
      for (const each of marked) {
        const byte = new Uint8Array(1);
        log.file.read(each >> 3, byte);
        byte[0] = (byte[0] ?? 0) | 1 << (each & 7);
        log.file.write(each >> 3, byte);
      }
      const [start, end] = [Math.min(a, b), Math.max(a, b)];
      const take = (from: number, to: number) => {
        const taken: number[] = [];
        let last = -1;
        log.take({ start: from * PAGE, end: to * PAGE }, (runStart, runEnd) => {
          assert(runStart > last, "runs are ascending and do not touch");
          last = runEnd;
          for (let gpa = runStart; gpa < runEnd; gpa += PAGE) taken.push(gpa / PAGE);
        });
        return taken;
      };
      const sorted = [...marked].sort((x, y) => x - y);
      assertEquals(take(start, end), sorted.filter((each) => each >= start && each < end));
      assertEquals(take(start, end), []);
      assertEquals(take(0, 200), sorted.filter((each) => each < start || each >= end));
    }),
    { numRuns: 300 },
  );
});

Deno.test("a log that is written full of nonsense says no more than that everything was written", () => {
  using log = new DirtyLog(2 ** 32);
  assert(log.end >= 2 ** 32);
  log.file.write(0, new Uint8Array(log.file.size).fill(0xff));
  const runs: [number, number][] = [];
  log.take({ start: 0x3000, end: 0x9_0000_0000 }, (start, end) => runs.push([start, end]));
  assertEquals(runs, [[0x3000, log.end]]);
});

Deno.test("memory that leaves the table while its marks are told is told the next time", () => {
  const told: number[] = [];
  // All there is of a back end here: a log in which everything is marked.
  const link = { connection: { state: "open" }, log: { take: tell }, canLog: true } as unknown as BackendLink;
  const written = new WrittenMemory(link);
  written.carry([{ start: 0, end: PAGE }]);
  const mark = (start: number) => {
    told.push(start);
    if (start === 0) written.carry([{ start: 5 * PAGE, end: 6 * PAGE }]);
  };
  for (let round = 0; round < 3; round++) written.take([], mark);
  assertEquals(told, [0, 5 * PAGE]);

  function tell({ start, end }: { start: number; end: number }, each: (start: number, end: number) => void): void {
    each(start, end);
  }
});

Deno.test("a log that is given up while its marks are told tells no more of them", () => {
  const log = new DirtyLog(4 * PAGE);
  log.file.write(0, new Uint8Array([0b1101]));
  const link = { connection: { state: "open" }, log, stopLog: () => link.log = null } as unknown as
    & BackendLink
    & { log: DirtyLog | null };
  const written = new WrittenMemory(link);
  const told: number[] = [];
  const mark = (start: number) => {
    told.push(start / PAGE);
    written.stopLogging();
  };
  written.take([{ start: 0, end: 3 * PAGE }, { start: 3 * PAGE, end: 4 * PAGE }], mark);
  assertEquals(told, [0]);
});
