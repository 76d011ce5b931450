import { assert, assertEquals } from "@std/assert";
import * as fc from "fast-check";
import { CODE } from "../../src/serving/page_codes.ts";
import { PageReader } from "../../src/clients/page_reader.ts";
import { FixedSink, ThreadSink } from "../../src/serving/page_sinks.ts";
import { NO_ACCOUNTS, PageWriter } from "../../src/serving/page_writer.ts";
import { PAGE } from "../support/units.ts";

const FILES = Array.from({ length: 6 }, (_, fd) => ({ key: { fd }, file: { fd }, delta: fd * PAGE }));

interface Edit {
  readonly start: number;
  readonly pages: number;
  /** Which of `FILES`, 6 for private memory, 7 for nothing. */
  readonly what: number;
  readonly writable: boolean;
}

/** What a page shows, as text. */
function naive({ what, writable }: Edit): string {
  return what === 7 ? "nothing" : `${what} ${writable ? "rw" : "ro"}`;
}

function shown(reader: PageReader, gpa: number): string {
  const found = reader.at(gpa, true);
  if (found === undefined) return "nothing";
  assert(found.start <= gpa && gpa < found.end);
  const row = reader.row(found.code);
  if (row !== undefined) assertEquals(row.delta, row.fd * PAGE);
  return `${row?.fd ?? 6} ${(found.code & CODE.writable) !== 0 ? "rw" : "ro"}`;
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
});

Deno.test("the shared map shows after any edits what a list of edits says, page by page", () => {
  fc.assert(
    fc.property(fc.array(edit, { minLength: 1, maxLength: 25 }), (edits) => {
      const { writer, reader } = newMap(LENGTH);
      for (const { start, pages, what, writable } of edits) {
        const end = Math.min((start + pages) * PAGE, LENGTH);
        if (start * PAGE >= end) continue;
        const access = writable ? CODE.writable : 0;
        const file = FILES[what];
        if (what === 7) writer.paint(start * PAGE, end, null);
        else {writer.paint(start * PAGE, end, {
            key: file?.key ?? null,
            file: file?.file ?? null,
            delta: file?.delta ?? 0,
            access,
          });}
      }
      const expected = (page: number) => {
        const last = edits.findLast(({ start, pages }) => start <= page && page < start + pages);
        return last === undefined ? "nothing" : naive(last);
      };
      for (const anchor of ANCHORS) {
        for (let page = anchor; page < Math.min(anchor + 60, LENGTH / PAGE); page++) {
          assertEquals(shown(reader, page * PAGE), expected(page), `page ${page}`);
        }
      }
      assertEquals(reader.at(LENGTH, true), undefined);
      // Nothing mapped, nothing kept.
      writer.paint(0, LENGTH, null);
      assertEquals([writer.nodeCount, writer.rowCount], [1, 1]);
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
  assertEquals(writer.rowCount, 3);
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
      writer.paint(i * 2 ** 21, i * 2 ** 21 + PAGE, { key: { round, i }, file: { fd: i }, delta: i, access: 0 });
    }
    const code = reader.at(2999 * 2 ** 21, true)?.code ?? 0;
    assertEquals(reader.row(code)?.fd, 2999);
    assertEquals(writer.rowCount, 3001);
    rounds.push(sink.nodes.byteLength, sink.rows.byteLength);
  }
  assertEquals(rounds.slice(0, 2), rounds.slice(4), "it grew in the first round alone");
  for (let i = 0; i < 3000; i++) writer.paint(i * 2 ** 21, i * 2 ** 21 + PAGE, null);
  assertEquals([writer.nodeCount, writer.rowCount], [1, 1]);
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
  assertEquals([writer.nodeCount, writer.rowCount], [1, 1]);
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
