import { assert, assertEquals, assertLess } from "@std/assert";
import fc from "fast-check";
import { drawMemoryMap } from "../src/draw.ts";
import type { InspectMapping, InspectNode, InspectRegion } from "../src/inspect.ts";

function map(regions: readonly InspectRegion[], rest: Partial<InspectNode> = {}): InspectNode {
  return {
    base: 0x7f00_0000_0000,
    length: 2 ** 40,
    partitions: [],
    dmaTargets: [],
    locks: [],
    hostMappings: 1,
    outOfStep: [],
    ...rest,
    regions,
  };
}

/** A region that is visible at `visible`, or not mapped if that is `null`. */
function region(
  id: number,
  name: string,
  priority: number,
  range: string,
  visible: readonly string[] | null,
  mappings: readonly InspectMapping[],
): InspectRegion {
  return {
    id,
    name,
    range,
    priority,
    type: "ram",
    holes: "exit",
    mapParams: visible && { writable: true, executable: true, prefetch: false },
    active: visible !== null && visible.length > 0,
    visible: visible ?? [],
    mappings,
  };
}

function mapping(range: string, backing: string, writable = true, fileOffset: number | null = 0): InspectMapping {
  return { range, rangeInRegion: range, writable, fileOffset, backing };
}

const PC = map([
  region(1, "ram", 0, "0x0-0x40000000", ["0x0-0xa0000", "0xc0000-0x40000000"], [
    mapping("0x0-0x40000000", 'memfd "memory"'),
  ]),
  region(2, "vga", 9, "0xa0000-0xc0000", ["0xa0000-0xc0000"], [
    mapping("0xa0000-0xb0000", "private", true, null),
  ]),
  region(3, "bios", 9, "0x80000000-0x80010000", ["0x80000000-0x80010000"], [
    mapping("0x80000000-0x80010000", '"/usr/share/bios.bin"', false),
  ]),
  region(4, "bar", 4, "0x20000000-0x20010000", null, []),
], {
  partitions: [{
    name: "vm",
    offset: 0x1000,
    pin: false,
    ranges: [
      { range: "0x0-0xa0000", writable: true, executable: true },
      { range: "0x80000000-0x80010000", writable: false, executable: true },
    ],
  }],
  dmaTargets: [{ name: "nic", ranges: ["0xc0000-0x40000000"] }],
});

Deno.test("drawMemoryMap() draws the regions by priority, then what the guest sees, then each partition", () => {
  assertEquals(
    `\n${drawMemoryMap(PC)}\n`,
    `
                                                                0x20010000                0x80010000
                0x0      0xa0000  0xb0000  0xc0000      0x20000000           0x40000000   0x80000000
pri region      ╷  640K  ╷  64K   ╷  64K   ╷   ~511M    ╷  64K  ╷   ~512M    ╷     1G     ╷  64K   ╷
  9 vga         ┊        │█priva…█│········│            ┊       ┊            ┊            ┊        ┊
  9 bios        ┊        ┊        ┊        ┊            ┊       ┊            ┊            │▓bios.…▓│
  4 bar         ┊        ┊        ┊        ┊            │┄┄┄┄┄┄┄│            ┊            ┊        ┊
  0 ram         │█memory█│░░░░ memory ░░░░░│████████ memory +0xc0000 ████████│            ┊        ┊
                ├────────┼────────┼────────┼────────────┼───────┼────────────┼────────────┼────────┤
    guest sees  │█ ram ██│█ vga ██│········│██████████████ ram ██████████████│            │▓ bios ▓│
    vm+0x1000   │══ rw ══│        ┊        ┊            ┊       ┊            ┊            │── ro ──│
    nic         ┊        ┊        ┊        │══════════════ dma ══════════════│            ┊        ┊

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
  9 vga         ┊         │█priva…█│·········│             ┊
  0 ram         │█memory██│░░░░░ memory ░░░░░│██ memory ████
                ├─────────┼────────┼─────────┼─────────────┤
    guest sees  │██ ram ██│█ vga ██│·········│████ ram █████
    vm+0x1000   │══ rw ═══│        ┊         ┊             ┊
    nic         ┊         ┊        ┊         │════ dma ═════

                        0x20010000                0x80010000
                0x20000000           0x40000000   0x80000000
pri region      ╷  64K  ╷   ~512M    ╷     1G     ╷  64K   ╷
  9 bios        ┊       ┊            ┊            │▓bios.…▓│
  4 bar         │┄┄┄┄┄┄┄│            ┊            ┊        ┊
  0 ram         ██ memory +0xc0000 ██│            ┊        ┊
                ├───────┼────────────┼────────────┼────────┤
    guest sees  ████████ ram ████████│            │▓ bios ▓│
    vm+0x1000   ┊       ┊            ┊            │── ro ──│
    nic         ════════ dma ════════│            ┊        ┊

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
    return region(i, `r${i}`, i % 3, range, [range], [mapping(range, "file descriptor 3")]);
  });
  assertEquals(
    `\n${drawMemoryMap(map(regions))}\n`,
    `
                                                                                          0x15f8f000
                                  0x3fec000     0x7fd7000      0xbfc3000     0xffae000    0x13f9a000
                    0x0    0x1ff5000     0x5fe1000     0x9fcc000      0xdfb8000     0x11fa3000     ╷
pri region          ╷ ~32M ╷ ~32M ╷ ~32M ╷ ~32M ╷ ~32M ╷ ~32M  ╷ ~32M ╷ ~32M ╷ ~32M ╷ ~32M ╷ ~32M  ╷
  2 10,000 regions  │█909██│█909██│█909██│█909██│█909██│█ 909 █│█909██│█909██│█909██│█910██│█ 909 █│
  1 10,000 regions  │█909██│█909██│█909██│█909██│█909██│█ 910 █│█909██│█909██│█909██│█909██│█ 909 █│
  0 10,000 regions  │█909██│█910██│█909██│█909██│█909██│█ 909 █│█909██│█909██│█909██│█909██│█ 909 █│
                    ├──────┼──────┼──────┼──────┼──────┼───────┼──────┼──────┼──────┼──────┼───────┤
    guest sees      │█2.7k█│█2.7k█│█2.7k█│█2.7k█│█2.7k█│█2.7k██│█2.7k█│█2.7k█│█2.7k█│█2.7k█│█2.7k██│

    ██ writable   small pieces are counted
`,
  );
});

Deno.test("drawMemoryMap() sums up a map of more priorities than rows", () => {
  const regions = Array.from({ length: 100 }, (_, i) => region(i, `r${i}`, i, "0x0-0x1000", null, []));
  const lines = drawMemoryMap(map(regions)).split("\n");
  assert(lines.some((line) => line.includes("77 more layers")));
  assertLess(lines.length, 40);
});

Deno.test("drawMemoryMap() shows what is locked and what is out of step, if anything", () => {
  const rest = { locks: [{ range: "0x1000-0x2000", count: 2 }], outOfStep: ["0x3000-0x4000"] };
  const ram = region(1, "ram", 0, "0x0-0x4000", ["0x0-0x4000"], [mapping("0x0-0x4000", "private", true, null)]);
  assertEquals(
    `\n${drawMemoryMap(map([ram], rest), { columns: 60 })}\n`,
    `
                                                      0x4000
                 0x0       0x1000     0x2000    0x3000     ╷
pri region       ╷   4K    ╷    4K    ╷   4K    ╷    4K    ╷
  0 ram          │████████████████ private ████████████████│
                 ├─────────┼──────────┼─────────┼──────────┤
    guest sees   │██████████████████ ram ██████████████████│
    locked       ┊         │═ locked ═│         ┊          ┊
    out of step  ┊         ┊          ┊         │═══ ? ════│

    ██ writable
`,
  );
  assert(!drawMemoryMap(map([ram])).includes("locked"));
});

Deno.test("drawMemoryMap() says so when there is nothing to draw", () => {
  assertEquals(drawMemoryMap(map([])), "The memory map has no regions");
});

Deno.test("drawMemoryMap() stays within its columns whatever the map", () => {
  const page = fc.nat({ max: 2 ** 40 - 1 });
  const range = fc.tuple(page, page).filter(([a, b]) => a !== b)
    .map(([a, b]) => `0x${(Math.min(a, b) * 4096).toString(16)}-0x${(Math.max(a, b) * 4096).toString(16)}`);
  const anyRegion = fc.tuple(fc.nat(), fc.string(), fc.nat({ max: 255 }), range, fc.option(fc.array(range)), range)
    .map(([id, name, priority, range, visible, mapped]) =>
      region(id, name, priority, range, visible, [mapping(mapped, name)])
    );
  fc.assert(
    fc.property(fc.array(anyRegion, { maxLength: 60 }), fc.integer({ min: 60, max: 200 }), (regions, columns) => {
      for (const line of drawMemoryMap(map(regions), { columns }).split("\n")) {
        assert([...line].length <= columns, line);
      }
    }),
    { numRuns: 200 },
  );
});
