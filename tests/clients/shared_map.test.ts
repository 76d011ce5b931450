import { assert, assertEquals, assertThrows } from "@std/assert";
import * as fc from "fast-check";
import { MembackingError } from "membacking";
import { CODE, REGION_ROW, ROW } from "../../src/serving/page_codes.ts";
import { PageReader } from "../../src/clients/page_reader.ts";
import { FixedSink, ThreadSink } from "../../src/serving/page_sinks.ts";
import { NO_ACCOUNTS, PageWriter } from "../../src/serving/page_writer.ts";
import type { MapRegion } from "../../src/serving/region_rows.ts";
import { PAGE } from "../support/units.ts";

/** Names of every length around what one row, and two and three, have room for. */
const REGIONS: readonly MapRegion[] = Array.from({ length: 40 }, (_, id) => ({
  id: id + 1,
  name: "\0r\u{1f9e0}e\ud800gion\uffff".repeat(4).slice(0, id),
  priority: id * 6,
  type: id % 2 === 0 ? "ram" : "device",
}));

const [region = { id: 0, name: "", priority: 0, type: "ram" as const }] = REGIONS;
const FILES = Array.from(
  { length: 6 },
  (_, fd) => ({ key: { fd }, file: { fd }, delta: fd * PAGE, kind: "shared" as const, region }),
);
const PRIVATE = { key: {}, file: null, delta: 6 * PAGE, kind: "private" as const };

interface Edit {
  readonly start: number;
  readonly pages: number;
  /** Which of `FILES`, 6 for private memory, 7 for nothing. */
  readonly what: number;
  readonly writable: boolean;
  /** Whose. */
  readonly region: MapRegion;
}

/** What a page shows, as text. */
function naive({ what, writable, region }: Edit): string {
  return what === 7 ? "nothing" : `${what} ${writable ? "rw" : "ro"} ${JSON.stringify(region)}`;
}

function shown(reader: PageReader, gpa: number): string {
  const found = reader.at(gpa, true);
  if (found === undefined) return "nothing";
  assert(found.start <= gpa && gpa < found.end);
  const row = reader.row(found.code);
  if (row !== undefined) assertEquals(row.delta, row.fd * PAGE);
  return `${row?.fd ?? 6} ${(found.code & CODE.writable) !== 0 ? "rw" : "ro"}`;
}

/** The same, and who shows there. */
function shownBy(reader: PageReader, gpa: number): string {
  const found = reader.pieceAt(gpa);
  if (found === undefined) return "nothing";
  assert(found.start <= gpa && gpa < found.end);
  const { region, kind, delta } = reader.nature(found.code);
  assertEquals(kind === "private", delta === 6 * PAGE);
  return `${shown(reader, gpa)} ${JSON.stringify(region)}`;
}

/** A writer, and a reader of what it writes. */
function newMap(length: number): { writer: PageWriter; reader: PageReader; sink: ThreadSink } {
  const writer = new PageWriter(length, NO_ACCOUNTS);
  const sink = new ThreadSink();
  writer.addSink(sink);
  return { writer, reader: new PageReader(length, sink.nodes, sink.rows), sink };
}

// Three levels: pages at the ends of nodes, in the middle and far away.
const LENGTH = 2 ** 31 + 0x5000;
const ANCHORS = [0, 500, 1020, 512 * 512 - 6, 512 * 512 + 600, LENGTH / PAGE - 40];

const edit = fc.record({
  start: fc.tuple(fc.constantFrom(...ANCHORS), fc.nat(40)).map(([anchor, by]) => anchor + by),
  pages: fc.oneof(fc.nat(12), fc.constantFrom(512, 1024, 512 * 512, 512 * 512 + 3)),
  what: fc.nat(7),
  writable: fc.boolean(),
  region: fc.constantFrom(...REGIONS),
});

Deno.test("the shared map shows after any edits what a list of edits says, page by page", () => {
  fc.assert(
    fc.property(fc.array(edit, { minLength: 1, maxLength: 25 }), (edits) => {
      const { writer, reader } = newMap(LENGTH);
      for (const { start, pages, what, writable, region } of edits) {
        const end = Math.min((start + pages) * PAGE, LENGTH);
        if (start * PAGE >= end) continue;
        const access = writable ? CODE.writable : 0;
        writer.paint(start * PAGE, end, what === 7 ? null : { ...FILES[what] ?? PRIVATE, access, region });
      }
      const expected = (page: number) => {
        const last = edits.findLast(({ start, pages }) => start <= page && page < start + pages);
        return last === undefined ? "nothing" : naive(last);
      };
      for (const anchor of ANCHORS) {
        for (let page = anchor; page < Math.min(anchor + 60, LENGTH / PAGE); page++) {
          assertEquals(shownBy(reader, page * PAGE), expected(page), `page ${page}`);
        }
      }
      assertEquals(reader.at(LENGTH, true), undefined);
      // Nothing mapped, nothing kept.
      writer.paint(0, LENGTH, null);
      assertEquals([writer.nodeCount, writer.rowCount], [1, 0]);
    }),
    { numRuns: 500 },
  );
});

Deno.test("a file that is shown again over itself keeps its row", () => {
  const { writer, reader } = newMap(2 ** 30);
  const [a, b] = [FILES[1], FILES[2]];
  assert(a !== undefined && b !== undefined);
  writer.paint(0, PAGE, { ...a, access: 0 });
  writer.paint(0, 512 * PAGE, { ...a, access: 0 });
  writer.paint(2 ** 29, 2 ** 29 + PAGE, { ...b, access: 0 });
  assertEquals([shown(reader, 0), shown(reader, 2 ** 29)], ["1 ro", "2 ro"]);
  writer.paint(PAGE, PAGE, { ...FILES[3] ?? a, access: 0 });
  assertEquals(writer.rowCount, 2);
});

Deno.test("the shared map tells how far the same access reaches, whatever the files", () => {
  const { writer, reader } = newMap(2 ** 40);
  const [a, b] = [FILES[0], FILES[1]];
  assert(a !== undefined && b !== undefined);
  // Neither end is a multiple of a node.
  writer.paint(3 * PAGE, 2 ** 30 + 5 * PAGE, { ...a, access: CODE.writable });
  writer.paint(2 ** 30 + 5 * PAGE, 2 ** 30 + 9 * PAGE, { ...b, access: CODE.writable });
  writer.paint(2 ** 30 + 9 * PAGE, 2 ** 31, { ...b, access: 0 });
  for (const gpa of [3 * PAGE, 2 ** 29, 2 ** 30 + 8 * PAGE]) {
    const found = reader.at(gpa, false);
    assertEquals([found?.start, found?.end], [3 * PAGE, 2 ** 30 + 9 * PAGE]);
  }
  assertEquals(reader.at(2 ** 30 + 8 * PAGE, true)?.start, 2 ** 30 + 5 * PAGE);
  assertEquals(reader.at(2 ** 40 - 1, false), undefined);
});

Deno.test("the shared map grows, and uses its nodes and rows again", () => {
  const { writer, reader, sink } = newMap(2 ** 36);
  const rounds: number[] = [];
  for (let round = 0; round < 3; round++) {
    for (let i = 0; i < 3000; i++) {
      writer.paint(i * 2 ** 21, i * 2 ** 21 + PAGE, {
        ...{ key: { round, i }, file: { fd: i }, delta: i, kind: "shared", region, access: 0 },
      });
    }
    const code = reader.at(2999 * 2 ** 21, true)?.code ?? 0;
    assertEquals(reader.row(code)?.fd, 2999);
    assertEquals(writer.rowCount, 3000);
    rounds.push(sink.nodes.byteLength, sink.rows.byteLength);
  }
  assertEquals(rounds.slice(0, 2), rounds.slice(4), "it grew in the first round alone");
  for (let i = 0; i < 3000; i++) writer.paint(i * 2 ** 21, i * 2 ** 21 + PAGE, null);
  assertEquals([writer.nodeCount, writer.rowCount], [1, 0]);
});

Deno.test("what is scribbled over the shared map misleads who reads it, and neither hangs it nor reaches the writer", () => {
  const { writer, reader, sink } = newMap(2 ** 36);
  const [a] = FILES;
  assert(a !== undefined);
  writer.paint(0, 2 ** 21 + PAGE, { ...a, access: CODE.writable });
  const words = new Int32Array(sink.nodes);
  for (const entry of [-1, -2, -0x8000_0000, 0x7fff_ffff, 5]) {
    words.fill(entry);
    for (const gpa of [0, PAGE, 2 ** 35]) {
      const found = reader.at(gpa, true);
      if (found !== undefined) reader.row(found.code);
    }
    writer.paint(2 ** 30, 2 ** 30 + PAGE, { ...a, access: 0 });
    writer.paint(2 ** 30, 2 ** 30 + PAGE, null);
  }
  writer.paint(0, 2 ** 36, null);
  assertEquals([writer.nodeCount, writer.rowCount], [1, 0]);
});

Deno.test("a region is written down once while what it shows comes and goes, and not kept for ever", () => {
  const { writer, reader } = newMap(2 ** 30);
  const paint = { ...PRIVATE, access: 0 };
  const written: number[] = [];
  for (const region of [...REGIONS, ...REGIONS]) {
    writer.paint(0, PAGE, { ...paint, region });
    assertEquals(reader.nature(reader.pieceAt(0)?.code ?? 0).region, region);
    writer.paint(0, PAGE, null);
    written.push(writer.regionRowCount);
  }
  assertEquals(written.at(39), written.at(-1), "the second time there was nothing to write");
  for (let id = 100; id < 1000; id++) {
    writer.paint(0, PAGE, { ...paint, region: { id, name: `region ${id}`, priority: 0, type: "ram" } });
    writer.paint(0, PAGE, null);
    assert(writer.regionRowCount < 300, `${writer.regionRowCount}`);
  }
  // Of many that show nothing goes.
  const many = Array.from(
    { length: 500 },
    (_, i): MapRegion => ({ id: i + 2000, name: `${i}`, priority: 1, type: "ram" }),
  );
  for (const [i, region] of many.entries()) writer.paint(i * PAGE, (i + 1) * PAGE, { ...paint, key: {}, region });
  for (let i = 0; i < 500; i += 2) writer.paint(i * PAGE, (i + 1) * PAGE, null);
  for (let i = 1; i < 500; i += 2) {
    assertEquals(reader.nature(reader.pieceAt(i * PAGE)?.code ?? 0).region, many[i]);
  }
});

Deno.test("what is scribbled over rows is a MembackingError to who asks for a region, or another name, and never more", () => {
  const { writer, sink } = newMap(2 ** 30);
  const region = REGIONS.at(-1)!;
  writer.paint(0, PAGE, { ...PRIVATE, access: 0, region });
  const numbers = new Float64Array(sink.rows);
  const row = 1;
  const regionRow = numbers[row * ROW.length + ROW.region] ?? 0;
  const errors: string[] = [];
  for (const [at, places] of [[row, Object.values(ROW)], [regionRow, Object.values(REGION_ROW)]] as const) {
    for (const place of places.filter((place) => place < ROW.length)) {
      for (const value of [NaN, -1, 0, 0.5, 1, 7, 1e6, 2 ** 48, 2 ** 60, Infinity]) {
        const index = at * ROW.length + place;
        const kept = numbers[index] ?? 0;
        numbers[index] = value;
        const reader = new PageReader(2 ** 30, sink.nodes, sink.rows);
        try {
          const { region } = reader.nature(reader.pieceAt(0)?.code ?? 0);
          assert(typeof region.name === "string" && region.priority <= 255);
        } catch (error) {
          assert(error instanceof MembackingError, `${error}`);
          errors.push(error.message);
        }
        numbers[index] = kept;
      }
    }
  }
  assert(errors.length > 40, `${errors.length}`);
  new Int32Array(sink.nodes)[0] = CODE.readable; // A code of no row.
  const reader = new PageReader(2 ** 30, sink.nodes, sink.rows);
  assertThrows(() => reader.nature(reader.pieceAt(0)?.code ?? 0), MembackingError, "makes no sense");
});

Deno.test("a sink that comes later has everything, and one that is too small says so once", () => {
  const { writer } = newMap(2 ** 36);
  const [a] = FILES;
  assert(a !== undefined);
  writer.paint(3 * PAGE, 2 ** 30, { ...a, access: CODE.writable });
  const later = new ThreadSink();
  writer.addSink(later);
  const reader = new PageReader(2 ** 36, later.nodes, later.rows);
  assertEquals([shown(reader, 3 * PAGE), shown(reader, 2 ** 30 - 1), shown(reader, 0)], ["0 rw", "0 rw", "nothing"]);
  let overflows = 0;
  writer.addSink(new FixedSink(new Int32Array(512 * 20), new Float64Array(64 * 4), () => overflows++));
  for (let i = 0; i < 3000; i++) writer.paint(i * 2 ** 21, i * 2 ** 21 + PAGE, { ...a, access: 0 });
  assertEquals(overflows, 1);
});
