import { assert, assertEquals, assertLess } from "@std/assert";
import fc from "fast-check";
import { type DrawableMap, type DrawableRegion, drawMemoryMap } from "../src/draw.ts";

function region(
  id: number,
  name: string,
  priority: number,
  range: string,
  visible: string[] | null,
  mappings: DrawableRegion["mappings"],
): DrawableRegion {
  return { id, name, priority, range, mapParams: visible && { writable: true }, visible: visible ?? [], mappings };
}

const PC: DrawableMap = {
  regions: [
    region(0, "ram", 0, "0x0-0x40000000", ["0x0-0xa0000", "0xc0000-0x40000000"], [
      { range: "0x0-0x40000000", writable: true, file: "ram", fileOffset: 0 },
    ]),
    region(1, "vga", 9, "0xa0000-0xc0000", ["0xa0000-0xc0000"], [
      { range: "0xa0000-0xb0000", writable: true, file: "vga", fileOffset: 0 },
    ]),
    region(2, "bios", 9, "0x80000000-0x80010000", ["0x80000000-0x80010000"], [
      { range: "0x80000000-0x80010000", writable: false, file: "bios" },
    ]),
    region(3, "bar", 4, "0x20000000-0x20010000", null, []),
  ],
  partitions: [{
    name: "vm",
    offset: 0x1000,
    ranges: [{ range: "0x1000-0xa1000", writable: true }, { range: "0x80001000-0x80011000", writable: false }],
  }],
};

Deno.test("drawMemoryMap() draws the regions by priority, then what the guest sees, then each partition", () => {
  assertEquals(
    `\n${drawMemoryMap(PC)}\n`,
    `
                                                                0x20010000                0x80010000
                0x0      0xa0000  0xb0000  0xc0000      0x20000000           0x40000000   0x80000000
pri region      ╷  640K  ╷  64K   ╷  64K   ╷   ~511M    ╷  64K  ╷   ~512M    ╷     1G     ╷  64K   ╷
  9 vga         ┊        │█ vga ██│········│            ┊       ┊            ┊            ┊        ┊
  9 bios        ┊        ┊        ┊        ┊            ┊       ┊            ┊            │▓ bios ▓│
  4 bar         ┊        ┊        ┊        ┊            │┄┄┄┄┄┄┄│            ┊            ┊        ┊
  0 ram         │█ ram ██│░ ram +0xa0000 ░░│█████████ ram +0xc0000 ██████████│            ┊        ┊
                ├────────┼────────┼────────┼────────────┼───────┼────────────┼────────────┼────────┤
    guest sees  │█ ram ██│█ vga ██│········│██████████████ ram ██████████████│            │▓ bios ▓│
    vm+0x1000   │══ rw ══│        ┊        ┊            ┊       ┊            ┊            │── ro ──│

    ██ writable   ▓▓ read-only   ░░ hidden by a higher priority   ·· hole   ┄┄ region not mapped
`,
  );
});

Deno.test("drawMemoryMap() continues below when there are too many boundaries for one line", () => {
  assertEquals(
    `\n${drawMemoryMap(PC, { columns: 60 })}\n`,
    `
                                                  0x20000000
                0x0       0xa0000  0xb0000   0xc0000       ╷
pri region      ╷  640K   ╷  64K   ╷   64K   ╷    ~511M    ╷
  9 vga         ┊         │█ vga ██│·········│             ┊
  0 ram         │██ ram ██│░░ ram +0xa0000 ░░│████ ram █████
                ├─────────┼────────┼─────────┼─────────────┤
    guest sees  │██ ram ██│█ vga ██│·········│████ ram █████
    vm+0x1000   │══ rw ═══│        ┊         ┊             ┊

                        0x20010000                0x80010000
                0x20000000           0x40000000   0x80000000
pri region      ╷  64K  ╷   ~512M    ╷     1G     ╷  64K   ╷
  9 bios        ┊       ┊            ┊            │▓ bios ▓│
  4 bar         │┄┄┄┄┄┄┄│            ┊            ┊        ┊
  0 ram         ████ ram +0xc0000 ███│            ┊        ┊
                ├───────┼────────────┼────────────┼────────┤
    guest sees  ████████ ram ████████│            │▓ bios ▓│
    vm+0x1000   ┊       ┊            ┊            │── ro ──│

    ██ writable   ▓▓ read-only
    ░░ hidden by a higher priority   ·· hole
    ┄┄ region not mapped
`,
  );
});

Deno.test("drawMemoryMap() adds nothing but ANSI codes when asked for colour", () => {
  const colored = drawMemoryMap(PC, { color: true });
  // deno-lint-ignore no-control-regex
  const plain = colored.replaceAll(/\x1b\[[\d;]*m/g, "");
  assertEquals(plain.split("\n").map((line) => line.trimEnd()).join("\n"), drawMemoryMap(PC));
  assert(colored.length > plain.length);
  for (const line of colored.split("\n")) assert(!line.includes("\x1b") || line.endsWith("\x1b[0m"));
});

Deno.test("drawMemoryMap() sums up a map of 30,000 regions", () => {
  const regions = Array.from({ length: 30_000 }, (_, i) => {
    const range = `0x${(i * 0x3000).toString(16)}-0x${(i * 0x3000 + 0x2000).toString(16)}`;
    return region(i, `r${i}`, i % 3, range, [range], [{ range, writable: true }]);
  });
  assertEquals(
    `\n${drawMemoryMap({ regions })}\n`,
    `
                                                                                          0x15f8f000
                                  0x3fec000     0x7fd7000      0xbfc3000     0xffae000    0x13f9a000
                    0x0    0x1ff5000     0x5fe1000     0x9fcc000      0xdfb8000     0x11fa3000     ╷
pri region          ╷ ~32M ╷ ~32M ╷ ~32M ╷ ~32M ╷ ~32M ╷ ~32M  ╷ ~32M ╷ ~32M ╷ ~32M ╷ ~32M ╷ ~32M  ╷
  2 10,000 regions  │ 909 █│ 909 █│ 909 █│ 909 █│ 909 █│█ 909 █│ 909 █│ 909 █│ 909 █│ 910 █│█ 909 █│
  1 10,000 regions  │ 909 █│ 909 █│ 909 █│ 909 █│ 909 █│█ 910 █│ 909 █│ 909 █│ 909 █│ 909 █│█ 909 █│
  0 10,000 regions  │ 909 █│ 910 █│ 909 █│ 909 █│ 909 █│█ 909 █│ 909 █│ 909 █│ 909 █│ 909 █│█ 909 █│
                    ├──────┼──────┼──────┼──────┼──────┼───────┼──────┼──────┼──────┼──────┼───────┤
    guest sees      │ 2.7k │ 2.7k │ 2.7k │ 2.7k │ 2.7k │ 2.7k █│ 2.7k │ 2.7k │ 2.7k │ 2.7k │ 2.7k █│

    ██ writable   small pieces are counted
`,
  );
});

Deno.test("drawMemoryMap() sums up a map of more priorities than rows", () => {
  const regions = Array.from({ length: 100 }, (_, i) => region(i, `r${i}`, i, "0x0-0x1000", null, []));
  const lines = drawMemoryMap({ regions }).split("\n");
  assert(lines.some((line) => line.includes("77 more layers")));
  assertLess(lines.length, 40);
});

Deno.test("drawMemoryMap() says so when there is nothing to draw", () => {
  assertEquals(drawMemoryMap({ regions: [] }), "The memory map has no regions");
});

Deno.test("drawMemoryMap() stays within its columns whatever the map", () => {
  const pages = fc.nat({ max: 2 ** 40 - 1 });
  const range = fc.tuple(pages, pages).filter(([a, b]) => a !== b)
    .map(([a, b]) => `0x${(Math.min(a, b) * 4096).toString(16)}-0x${(Math.max(a, b) * 4096).toString(16)}`);
  const regions = fc.array(
    fc.record({
      id: fc.nat(),
      name: fc.string({ unit: fc.constantFrom(..."abcdefgh-/0") }),
      range,
      priority: fc.nat({ max: 255 }),
      mapParams: fc.constantFrom(null, { writable: true }, { writable: false }),
      visible: fc.array(range, { maxLength: 3 }),
      mappings: fc.array(fc.record({ range, writable: fc.boolean(), file: fc.string() }), { maxLength: 1 }),
    }),
    { maxLength: 60 },
  );
  fc.assert(
    fc.property(regions, fc.integer({ min: 60, max: 200 }), (regions, columns) => {
      const text = drawMemoryMap({ regions, partitions: [{ name: "vm", ranges: [] }] }, { columns });
      for (const line of text.split("\n")) assert([...line].length <= columns, line);
    }),
    { numRuns: 200 },
  );
});
