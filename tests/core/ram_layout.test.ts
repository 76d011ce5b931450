import { assert, assertEquals, assertInstanceOf, assertStringIncludes, assertThrows } from "@std/assert";
import fc from "fast-check";
import { RegionOverlapError } from "../../src/core/errors.ts";
import { MemoryRange } from "../../src/core/memory_range.ts";
import {
  checkAlias,
  layOutRam,
  nearest,
  RAM_ALIGNMENT,
  RamLayoutError,
  type RamLayoutErrorKind,
  type RamRequest,
} from "../../src/core/ram_layout.ts";
import { range } from "../support/units.ts";

const MIB = 2 ** 20;
const GIB = 2 ** 30;

function request(ranges: MemoryRange[], rest: Partial<RamRequest> = {}): RamRequest {
  return { name: "ram", ranges, kind: "shared", hugepageSize: undefined, ...rest };
}

function layOut(requests: RamRequest[], options: { x86Legacy?: boolean; maxAddress?: number } = {}) {
  return layOutRam(requests, { x86Legacy: false, maxAddress: 2 ** 40, ...options });
}

/** The pieces of a layout as text. */
function pieces(requests: RamRequest[], options: { x86Legacy?: boolean } = {}): string[] {
  return layOut(requests, options).flatMap((layout) =>
    layout.pieces.map(({ name, range, fileOffset }) => `${name} ${range} @0x${fileOffset.toString(16)}`)
  );
}

Deno.test("RAM ranges lie in one file, one behind the other", () => {
  assertEquals(pieces([request([range(0, 3 * GIB), range(4 * GIB, 5 * GIB)])]), [
    "ram 0x0-0xc0000000 @0x0",
    "ram 0x100000000-0x140000000 @0xc0000000",
  ]);
});

Deno.test("file offsets are congruent to the GPAs modulo 2 MiB after a range of odd size", () => {
  const [layout] = layOut([request([range(0, 0x30_1000), range(0x1000_0000, 0x1000_4000), range(0x2000_5000, GIB)])]);
  assert(layout !== undefined);
  assertEquals(layout.pieces.map(({ fileOffset }) => fileOffset), [0, 0x40_0000, 0x40_5000]);
  for (const { range, fileOffset } of layout.pieces) {
    assertEquals(fileOffset % RAM_ALIGNMENT, range.start % RAM_ALIGNMENT);
  }
  assertEquals(layout.fileSize, 0x40_5000 + GIB - 0x2000_5000);
});

Deno.test("a file exactly as long as its ranges holds one right behind the other, a longer one as a memfd does", () => {
  const ranges = [range(MIB, 2 * MIB), range(4 * MIB, 5 * MIB)];
  const offsets = (existingSize: number) =>
    layOut([request(ranges, { kind: "existing", existingSize })])[0]?.pieces.map(({ fileOffset }) => fileOffset);
  assertEquals(offsets(2 * MIB), [0, MIB]);
  assertEquals(offsets(3 * MIB), [MIB, 2 * MIB]);
});

Deno.test("every backing has a file of its own", () => {
  const layouts = layOut([request([range(0, MIB)], { name: "node 0" }), request([range(MIB, 2 * MIB)])]);
  assertEquals(layouts.map(({ pieces }) => pieces[0]?.fileOffset), [0, MIB]);
  assertEquals(layouts.map(({ fileSize }) => fileSize), [MIB, 2 * MIB]);
});

Deno.test("private memory has no file and no offsets", () => {
  const [layout] = layOut([request([range(0x1000, MIB), range(GIB, 2 * GIB)], { kind: "private" })]);
  assertEquals(layout?.pieces.map(({ fileOffset }) => fileOffset), [0, 0]);
  assertEquals(layout?.fileSize, 0);
});

Deno.test("huge pages larger than 2 MiB ask for file offsets congruent modulo their own size", () => {
  const [layout] = layOut([request([range(2 * GIB, 3 * GIB), range(5 * GIB, 6 * GIB)], { hugepageSize: GIB })]);
  assertEquals(layout?.pieces.map(({ fileOffset }) => fileOffset), [0, GIB]);
  assertEquals([layout?.pageSize, layout?.fileSize], [GIB, 2 * GIB]);
});

Deno.test("x86 legacy makes regions of the VGA window and the thirteen PAM ranges", () => {
  const shown = pieces([request([range(0, 0x20_0000)])], { x86Legacy: true });
  assertEquals(shown.length, 16);
  assertEquals(shown.slice(0, 5), [
    "ram 0x0-0xa0000 @0x0",
    "ram vga 0xa0000-0xc0000 @0xa0000",
    "ram c0000 0xc0000-0xc4000 @0xc0000",
    "ram c4000 0xc4000-0xc8000 @0xc4000",
    "ram c8000 0xc8000-0xcc000 @0xc8000",
  ]);
  assertEquals(shown.slice(-3), [
    "ram ec000 0xec000-0xf0000 @0xec000",
    "ram f0000 0xf0000-0x100000 @0xf0000",
    "ram 0x100000-0x200000 @0x100000",
  ]);
});

Deno.test("x86 legacy with exactly 1 MiB of RAM has nothing above the last PAM range", () => {
  assertEquals(pieces([request([range(0, MIB)])], { x86Legacy: true }).at(-1), "ram f0000 0xf0000-0x100000 @0xf0000");
});

Deno.test("x86 legacy splits the low range of whichever backing has it and no other", () => {
  const shown = pieces([request([range(4 * GIB, 5 * GIB)]), request([range(GIB, 2 * GIB), range(0, MIB)])], {
    x86Legacy: true,
  });
  assertEquals(shown.length, 2 + 15);
  assertEquals(shown[2], "ram 0x0-0xa0000 @0x40000000");
});

const REFUSED: [RamLayoutErrorKind, string, RamRequest[], { x86Legacy?: boolean }, string[]][] = [
  [
    "private-with-x86-legacy",
    "private memory with x86 legacy",
    [request([range(0, MIB)], { kind: "private" })],
    { x86Legacy: true },
    ["0x100000"],
  ],
  [
    "hugepages-with-private",
    "huge pages with private memory",
    [request([range(0, 2 * MIB)], { kind: "private", hugepageSize: 2 * MIB })],
    {},
    ["0x200000"],
  ],
  [
    "hugepages-with-existing",
    "huge pages with a file that exists",
    [request([range(0, 2 * MIB)], { kind: "existing", existingPageSize: 4096, hugepageSize: 2 * MIB })],
    {},
    ["0x200000"],
  ],
  [
    "hugepages-with-x86-legacy",
    "huge pages with x86 legacy",
    [request([range(0, 2 * MIB)], { hugepageSize: 2 * MIB })],
    { x86Legacy: true },
    ["0x200000"],
  ],
  [
    "hugepages-with-x86-legacy",
    "a file of huge pages with x86 legacy",
    [request([range(0, 2 * MIB)], { kind: "existing", existingPageSize: 2 * MIB })],
    { x86Legacy: true },
    ["0x200000"],
  ],
  [
    "hugepage-size",
    "a huge page size that is no power of two",
    [request([range(0, 6 * MIB)], { hugepageSize: 3 * MIB })],
    {},
    ["0x300000"],
  ],
  ["hugepage-size", "a huge page size of one page", [request([range(0, MIB)], { hugepageSize: 4096 })], {}, ["0x1000"]],
  [
    "unaligned-size",
    "RAM that is not a multiple of its huge pages",
    [request([range(0, 3 * MIB)], { hugepageSize: 2 * MIB })],
    {},
    ["0x300000", "0x200000"],
  ],
  [
    "unaligned-range",
    "a range that does not consist of huge pages",
    [request([range(0, 3 * MIB), range(4 * MIB, 5 * MIB)], { hugepageSize: 2 * MIB })],
    {},
    ["0x0-0x300000", "0x200000"],
  ],
  [
    "unaligned-range",
    "a range that does not begin at a huge page",
    [request([range(MIB, 3 * MIB)], { hugepageSize: 2 * MIB })],
    {},
    ["0x100000-0x300000", "0x200000"],
  ],
  [
    "unaligned-range",
    "a range that does not consist of the huge pages of a file that exists",
    [request([range(MIB, 3 * MIB)], { kind: "existing", existingPageSize: 2 * MIB })],
    {},
    ["0x100000-0x300000", "0x200000"],
  ],
  [
    "x86-legacy-range",
    "x86 legacy RAM that does not begin at 0",
    [request([range(0x1000, 2 * MIB)])],
    { x86Legacy: true },
    ["0x1000-0x200000", "0x100000"],
  ],
  [
    "x86-legacy-range",
    "x86 legacy RAM below 1 MiB",
    [request([range(0, 0xff000), range(MIB, 2 * MIB)])],
    { x86Legacy: true },
    ["0x0-0xff000", "0x100000"],
  ],
  ["x86-legacy-range", "x86 legacy without RAM", [], { x86Legacy: true }, ["0x100000"]],
];

for (const [kind, what, requests, options, numbers] of REFUSED) {
  Deno.test(`RAM layout refuses ${what}`, () => {
    const error = assertThrows(() => layOut(requests, options), RamLayoutError);
    assertEquals([error.kind, error.name], [kind, "RamLayoutError"]);
    for (const number of numbers) assertStringIncludes(error.message, number);
  });
}

Deno.test("RAM layout refuses ranges that overlap, in one backing or in two, and names both", () => {
  for (
    const requests of [
      [request([range(0, 0x3000), range(0x2000, 0x4000)], { name: "a" })],
      [request([range(0x2000, 0x4000)], { name: "a" }), request([range(0, 0x3000)], { name: "a" })],
      [request([range(0, 0x3000)], { name: "a" }), request([range(0, 0x3000)], { name: "b" })],
    ]
  ) {
    const error = assertThrows(() => layOut(requests), RegionOverlapError);
    assertEquals(error.existing.name, "a");
    assertInstanceOf(error.new.range, MemoryRange);
  }
});

Deno.test("RAM layout refuses empty ranges, no ranges, and ranges beyond the end", () => {
  assertThrows(() => layOut([request([])]), RangeError, "at least one range");
  assertThrows(() => layOut([request([range(0x1000, 0x1000)])]), RangeError, "0x1000-0x1000");
  const error = assertThrows(() => layOut([request([range(0, 0x2000)])], { maxAddress: 0x1000 }), RangeError);
  assertStringIncludes(error.message, "0x0-0x2000");
  assertStringIncludes(error.message, "0x1000");
});

Deno.test("an alias map lies above guest memory, below 2^52, at a multiple of the large pages", () => {
  checkAlias(GIB, GIB, 4096);
  checkAlias(2 ** 52 - GIB, GIB, 4096);
  for (
    const [offset, length, pageSize, text] of [
      [GIB - 2 * MIB, GIB, 4096, "0x3fe00000"],
      [0, GIB, 4096, "0x40000000"],
      [2 ** 52 - GIB + 2 * MIB, GIB, 4096, "0x10000000000000"],
      [GIB + MIB, GIB, 4096, "0x200000"],
      [GIB + 2 * MIB, GIB, GIB, "0x40000000"],
    ] as const
  ) {
    const error = assertThrows(() => checkAlias(offset, length, pageSize), RamLayoutError, text);
    assertEquals(error.kind, "alias-map");
  }
});

Deno.test("the nearest ranges are those that overlap, and else those next to it", () => {
  const ranges = [range(0, 0xa0000), range(0xa0000, 0xc0000), range(0xc0000, 0xc4000), range(0x100000, 0x200000)];
  const near = (start: number, end: number, count: number) => nearest(ranges, range(start, end), count).map(String);
  assertEquals(near(0xc0000, 0xc2000, 1), ["0xc0000-0xc4000"]);
  assertEquals(near(0xf0000, 0xf4000, 2), ["0xc0000-0xc4000", "0x100000-0x200000"]);
  assertEquals(near(0x500000, 0x600000, 1), ["0x100000-0x200000"]);
});

Deno.test("whatever the ranges, file parts are disjoint and congruent, and the file ends with the last", () => {
  const page = fc.integer({ min: 0, max: 4000 });
  const ranges = fc.uniqueArray(page, { minLength: 2, maxLength: 12 }).map((cuts) => {
    const sorted = cuts.sort((a, b) => a - b).map((cut) => cut * 0x1000);
    return sorted.slice(1).flatMap((end, i) => i % 2 === 0 ? [range(sorted[i] ?? 0, end)] : []);
  });
  fc.assert(
    fc.property(ranges, fc.boolean(), (ranges, reversed) => {
      const [layout] = layOut([request(reversed ? ranges.toReversed() : ranges)]);
      assert(layout !== undefined);
      let end = 0;
      for (const { range, fileOffset } of layout.pieces) {
        assert(fileOffset >= end);
        assert(fileOffset - end < RAM_ALIGNMENT);
        assertEquals(fileOffset % RAM_ALIGNMENT, range.start % RAM_ALIGNMENT);
        end = fileOffset + range.length;
      }
      assertEquals(layout.fileSize, end);
    }),
  );
});
