import { assert, assertEquals, assertLess } from "@std/assert";
import fc from "fast-check";
import {
  drawMemoryMap,
  GuestMemoryManager,
  type InspectGuestMemory,
  type InspectNode,
  Mappable,
  MemoryRange,
  type MemoryUsage,
} from "membacking";
import { RecordingPartition } from "membacking/testing";
import { map, mapping, PC, region } from "./support/inspected.ts";

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

Deno.test("drawMemoryMap() draws regions in one row that belong together by their names, and counts neighbours", () => {
  const part = (id: number, name: string, start: number, end: number, isMapped = true) => {
    const range = `0x${start.toString(16)}-0x${end.toString(16)}`;
    return region(id, name, 255, range, isMapped ? [range] : null, [mapping(range, 'memfd "ram"', true, start)]);
  };
  const regions = [
    part(1, "ram", 0, 0xa0000),
    part(2, "ram vga", 0xa0000, 0xc0000, false),
    ...Array.from({ length: 4 }, (_, i) => part(3 + i, `ram c${i}000`, 0xc0000 + i * 0x1000, 0xc1000 + i * 0x1000)),
    part(7, "ram", 0x100000, 0x200000),
    part(8, "ramdisk", 0x400000, 0x500000),
  ];
  const ranges = regions.filter(({ active }) => active).map(({ range }) => ({
    range,
    writable: true,
    executable: true,
  }));
  const partitions = [{ name: "vm", offset: 0, pin: false, ranges }];
  assertEquals(
    `\n${drawMemoryMap(map(regions, { partitions }))}\n`,
    `
                                                                                            0x500000
                0x0         0xa0000    0xc0000  0xc4000     0x100000     0x200000     0x400000     ╷
pri region      ╷   640K    ╷   128K   ╷  16K   ╷   240K    ╷     1M     ╷     2M     ╷     1M     ╷
255 ram ×7      │███ ram ███│┄┄ vga ┄┄┄│██ ×4 ██│           │███ ram ████│            ┊            ┊
255 ramdisk     ┊           ┊          ┊        ┊           ┊            ┊            │███ ram ████│
                ├───────────┼──────────┼────────┼───────────┼────────────┼────────────┼────────────┤
    guest sees  │███ ram ███│          │█ ram ██│           │███ ram ████│            │█ ramdisk ██│
    vm          │═══ rw ════│          │══ rw ══│           │════ rw ════│            │════ rw ════│

    ██ writable   ┄┄ region not mapped
`,
  );
});

Deno.test("drawMemoryMap() gives regions a row each that overlap, whatever their names", () => {
  const regions = ["ram", "ram old"].map((name, i) =>
    region(i, name, 1, "0x0-0x4000", i === 0 ? ["0x0-0x4000"] : [], [mapping("0x0-0x4000", 'memfd "ram"')])
  );
  assertEquals(
    `\n${drawMemoryMap(map(regions), { columns: 60 })}\n`,
    `
                0x0                                   0x4000
pri region      ╷                   16K                    ╷
  1 ram         │████████████████ ram +0x0 ████████████████│
  1 ram old     │░░░░░░░░░░░░░░░░ ram +0x0 ░░░░░░░░░░░░░░░░│
                ├──────────────────────────────────────────┤
    guest sees  │██████████████████ ram ███████████████████│

    ██ writable   ░░ hidden by a higher priority
`,
  );
});

Deno.test("drawMemoryMap() says what guest memory is made of and what it takes", () => {
  const usage = { transparentHuge: 0, hugetlb: 0, locked: 0, swapped: 0 };
  const plain = {
    name: "ram",
    backing: "shared",
    hugepageSize: null,
    copyOnWrite: false,
    transparentHugepages: null,
    hostNumaNode: null,
    prefetch: false,
  } as const;
  const pixels = { range: "0x0-0x800000", fileOffset: 0, writable: true, backing: 'memfd "pixels"' };
  const guest: InspectGuestMemory = {
    ...map([]),
    ram: [
      { ...plain, ranges: ["0x0-0xc0000000", "0x100000000-0x140000000"] },
      { ...plain, name: "node 1", ranges: ["0x140000000-0x180000000"], hostNumaNode: 1, hugepageSize: 2 ** 21 },
      {
        ...{ ...plain, name: "scratch", backing: "private", prefetch: true, transparentHugepages: true },
        ranges: ["0x0-0x1000", "0x2000-0x3000", "0x4000-0x5000"],
      },
      { ...plain, name: "restored from some old file", backing: "existing", ranges: ["0x300000000-0x300001000"] },
    ],
    devices: [
      { name: "screen", length: 2 ** 24, gpa: 0xe000_0000, mappings: [pixels] },
      { name: "whole", length: 2 ** 23, gpa: 0xf000_0000, mappings: [pixels] },
      { name: "disk", length: 0x4000, gpa: null, mappings: [] },
    ],
    usage: { ...usage, resident: 5 * 2 ** 20, private: 2 ** 20, shared: 2 ** 22 },
  };
  assertEquals(
    `\n${drawMemoryMap(guest)}\n`,
    `
The memory map has no regions

    ram      ram: 4G shared at 0x0-0xc0000000, 0x100000000-0x140000000
             node 1: 1G shared at 0x140000000-0x180000000, pages of 2M, host node 1
             scratch: 12K private at 0x0-0x1000 and 2 more, transparent huge pages, prefetched
             restored from some …: 4K of an existing file at 0x300000000-0x300001000
    devices  screen: 16M at 0xe0000000, 8M mapped
             whole: 8M at 0xf0000000, all of it mapped
             disk: 16K, not in the guest, nothing mapped
    in use   5M: 1M private, 4M shared
`,
  );
  const { ram, devices } = guest;
  const many = { ...guest, ram: Array.from({ length: 20 }, () => ram[1]!), devices: Array(8).fill(devices[2]) };
  assertEquals(
    `\n${drawMemoryMap(many, { columns: 60 })}\n`,
    `
The memory map has no regions

    ram      node 1: 1G shared at 0x140000000-0x180000000, …
             node 1: 1G shared at 0x140000000-0x180000000, …
             node 1: 1G shared at 0x140000000-0x180000000, …
             node 1: 1G shared at 0x140000000-0x180000000, …
             node 1: 1G shared at 0x140000000-0x180000000, …
             node 1: 1G shared at 0x140000000-0x180000000, …
             node 1: 1G shared at 0x140000000-0x180000000, …
             and 13 more
    devices  disk: 16K, not in the guest, nothing mapped
             disk: 16K, not in the guest, nothing mapped
             disk: 16K, not in the guest, nothing mapped
             disk: 16K, not in the guest, nothing mapped
             disk: 16K, not in the guest, nothing mapped
             disk: 16K, not in the guest, nothing mapped
             disk: 16K, not in the guest, nothing mapped
             disk: 16K, not in the guest, nothing mapped
    in use   5M: 1M private, 4M shared
`,
  );

  const inUse = (usage: MemoryUsage | null) =>
    drawMemoryMap({ ...guest, usage }).replace(/[^]* in use +/, "").split(/\n +/);
  assertEquals(inUse(null), ["the kernel does not tell"]);
  assertEquals(inUse({ ...usage, resident: 0, private: 0, shared: 0 }), ["nothing yet"]);
  assertEquals(inUse({ ...usage, resident: 4096, private: 4096, shared: 0 }), ["4K private"]);
  const busy = { resident: 2 ** 30, private: 2 ** 29, shared: 2 ** 29, hugetlb: 2 ** 31 };
  assertEquals(inUse({ ...busy, transparentHuge: 2 ** 21, locked: 4096, swapped: 8192 }), [
    "3G: 512M private, 512M shared, 2G in hugetlb pages",
    "of these 2M in transparent huge pages, 4K locked",
    "and 8K swapped out",
  ]);
});

Deno.test("drawMemoryMap() draws the memory of a PC", () => {
  const MIB = 2 ** 20;
  using guest = GuestMemoryManager.create({
    maxAddress: 2 ** 32,
    ram: [{ ranges: [new MemoryRange(0, 16 * MIB)], transparentHugepages: false }],
    x86Legacy: true,
  });
  using _attached = guest.attachPartition(new RecordingPartition({ name: "vm" }));
  assertEquals(
    `\n${drawMemoryMap(guest.inspect())}\n`,
    `
                0x0                      0xa0000                 0x100000                  0x1000000
pri region      ╷          640K          ╷         384K          ╷               15M               ╷
255 ram ×16     │███████ ram +0x0 ███████│█████ 14 regions ██████│█████████ ram +0x100000 █████████│
                ├────────────────────────┼───────────────────────┼─────────────────────────────────┤
    guest sees  │█████████ ram ██████████│█████████ ram █████████│██████████████ ram ██████████████│
    vm          │══════════ rw ══════════│═══════ 14 × rw ═══════│══════════════ rw ═══════════════│

    ██ writable

    ram      ram: 16M shared at 0x0-0x1000000, no transparent huge pages
    in use   nothing yet
`,
  );

  using pixels = Mappable.memfd("pixels", 8 * MIB);
  const screen = guest.newDeviceMemory("screen", 16 * MIB);
  screen.map({ offset: 0, mappable: pixels, length: 8 * MIB });
  screen.mapToGuest(0xe000_0000, true);
  guest.setRamVisibility(new MemoryRange(0xa_0000, 0xc_0000), "unmapped");
  guest.setRamVisibility(new MemoryRange(0xf_0000, MIB), "read-only");
  guest.memory.fill(2 * MIB, 3 * MIB, 1);
  assertEquals(
    `\n${drawMemoryMap(guest.inspect())}\n`,
    `
                                                                                          0xe1000000
                0x0      0xa0000  0xc0000   0xf0000  0x100000   0x1000000    0xe0000000 0xe0800000 ╷
pri region      ╷  640K  ╷  128K  ╷  192K   ╷  64K   ╷   15M    ╷   ~3.5G    ╷    8M    ╷    8M    ╷
255 ram ×16     │█ ram ██│┄ vga ┄┄│██ ×12 ██│▓f0000▓▓│██ ram ███│            ┊          ┊          ┊
  0 screen      ┊        ┊        ┊         ┊        ┊          ┊            │█ pixels █│··········│
                ├────────┼────────┼─────────┼────────┼──────────┼────────────┼──────────┼──────────┤
    guest sees  │█ ram ██│        │██ ram ██│▓f0000▓▓│██ ram ███│            │█ screen █│··········│
    vm          │══ rw ══│        │══ rw ═══│── ro ──│═══ rw ═══│            │═══ rw ═══│          ┊

    ██ writable   ▓▓ read-only   ·· hole   ┄┄ region not mapped

    ram      ram: 16M shared at 0x0-0x1000000, no transparent huge pages
    devices  screen: 16M at 0xe0000000, 8M mapped
    in use   3M shared
`,
  );
});

Deno.test("drawMemoryMap() says so when there is nothing to draw", () => {
  assertEquals(drawMemoryMap(map([])), "The memory map has no regions");
});

Deno.test("drawMemoryMap() stays within its columns whatever the map", () => {
  const page = fc.nat({ max: 2 ** 40 - 1 });
  const range = fc.tuple(page, page).filter(([a, b]) => a !== b)
    .map(([a, b]) => `0x${(Math.min(a, b) * 4096).toString(16)}-0x${(Math.max(a, b) * 4096).toString(16)}`);
  const anyName = fc.oneof(fc.string(), fc.constantFrom("ram", "ram vga", "ram c0000", "a name that is rather long"));
  const anyRegion = fc.tuple(fc.nat(), anyName, fc.nat({ max: 255 }), range, fc.option(fc.array(range)), range)
    .map(([id, name, priority, range, visible, mapped]) =>
      region(id, name, priority, range, visible, [mapping(mapped, name)])
    );
  const bytes = fc.nat({ max: 2 ** 40 });
  const anyGuest: fc.Arbitrary<Omit<InspectGuestMemory, keyof InspectNode>> = fc.record({
    ram: fc.array(fc.record({
      name: anyName,
      ranges: fc.array(range),
      backing: fc.constantFrom("shared", "private", "existing"),
      hugepageSize: fc.option(bytes),
      copyOnWrite: fc.boolean(),
      transparentHugepages: fc.option(fc.boolean()),
      hostNumaNode: fc.option(fc.nat()),
      prefetch: fc.boolean(),
    })),
    devices: fc.array(fc.record({
      name: anyName,
      length: bytes,
      gpa: fc.option(bytes),
      mappings: fc.array(
        fc.record({ range, fileOffset: bytes, writable: fc.boolean(), backing: fc.string() }),
      ),
    })),
    usage: fc.option(fc.record({
      ...{ resident: bytes, private: bytes, shared: bytes, transparentHuge: bytes },
      ...{ hugetlb: bytes, locked: bytes, swapped: bytes },
    })),
  });
  const columns = fc.integer({ min: 60, max: 200 });
  fc.assert(
    fc.property(fc.array(anyRegion, { maxLength: 60 }), anyGuest, columns, (regions, guest, columns) => {
      const picture = drawMemoryMap({ ...map(regions), ...guest }, { columns });
      for (const line of picture.split("\n")) assert([...line].length <= columns, line);
    }),
    { numRuns: 200 },
  );
});
