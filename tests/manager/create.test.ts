import { assert, assertEquals, assertInstanceOf, assertStringIncludes, assertThrows } from "@std/assert";
import {
  DisposedError,
  GuestMemoryManager,
  type GuestMemoryOptions,
  Mappable,
  MappingError,
  MemoryRange,
  OsError,
  type RamBacking,
  RamLayoutError,
  RegionOverlapError,
  VaMapper,
} from "membacking";
import { RecordingPartition } from "membacking/testing";
import { mappings, openFds } from "../support/proc.ts";
import { range } from "../support/units.ts";

const MIB = 2 ** 20;
const GIB = 2 ** 30;

function create(ram: RamBacking[], rest: Partial<GuestMemoryOptions> = {}): GuestMemoryManager {
  return GuestMemoryManager.create({ maxAddress: 16 * MIB, ram, ...rest });
}

Deno.test("RAM is there, zeroed and writable, and nothing else is", () => {
  using guest = create([{ ranges: [range(0, MIB), range(4 * MIB, 5 * MIB)] }]);
  const { memory } = guest;
  assertEquals(memory.length, 16 * MIB);
  assertEquals(memory.readUint32(4 * MIB), 0);
  memory.writeUint32(5 * MIB - 4, 7);
  assertEquals(memory.readUint32(5 * MIB - 4), 7);
  assertThrows(() => memory.readUint8(MIB));
  assertEquals(guest.ramRanges.map(String), ["0x0-0x100000", "0x400000-0x500000"]);
});

Deno.test("each backing is a memory of its own: shared, private and existing side by side", () => {
  using file = Mappable.memfd("saved", 4 * MIB);
  file.write(0, new Uint8Array([1, 2, 3]));
  using guest = create([
    { ranges: [range(0, MIB)], name: "low" },
    { ranges: [range(2 * MIB, 3 * MIB)], backing: "private", name: "middle" },
    { ranges: [range(4 * MIB, 5 * MIB)], backing: file, name: "high" },
  ]);
  const { memory } = guest;
  memory.fill(0, MIB, 0xaa);
  memory.fill(2 * MIB, MIB, 0xbb);
  assertEquals([...memory.read(4 * MIB, 4)], [1, 2, 3, 0]);
  assertEquals([memory.readUint8(MIB - 1), memory.readUint8(2 * MIB)], [0xaa, 0xbb]);
  assertEquals(guest.inspect().regions.map(({ name, mappings }) => [name, mappings[0]?.backing]), [
    ["low", 'memfd "low"'],
    ["middle", "private"],
    ["high", 'memfd "saved"'],
  ]);
});

Deno.test("a manager restores what another one left in its file", () => {
  const ranges = [range(0, 3 * MIB), range(8 * MIB, 9 * MIB)];
  let saved: Mappable;
  {
    using before = create([{ ranges }], { x86Legacy: true });
    before.memory.writeUint32(0xc_0000, 0x1234);
    before.memory.writeUint32(8 * MIB, 0x5678);
    const [shared] = before.shareableRegions();
    assert(shared !== undefined);
    saved = Mappable.fromFd(shared.fd);
  }
  using file = saved;
  using after = create([{ ranges, backing: file }], { x86Legacy: true });
  assertEquals([after.memory.readUint32(0xc_0000), after.memory.readUint32(8 * MIB)], [0x1234, 0x5678]);
});

Deno.test("a file of just the right length is restored range by range", () => {
  using file = Mappable.memfd("snapshot", 2 * MIB);
  file.write(0, new Uint8Array([1]));
  file.write(MIB, new Uint8Array([2]));
  using guest = create([{ ranges: [range(MIB, 2 * MIB), range(4 * MIB, 5 * MIB)], backing: file }]);
  assertEquals([guest.memory.readUint8(MIB), guest.memory.readUint8(4 * MIB)], [1, 2]);
});

Deno.test("a file that exists stays the caller's and is not closed with the manager", () => {
  using file = Mappable.memfd("saved", 2 * MIB);
  {
    using guest = create([{ ranges: [range(0, 2 * MIB)], backing: file }]);
    guest.memory.writeUint8(0, 9);
  }
  const byte = new Uint8Array(1);
  file.read(0, byte);
  assertEquals(byte[0], 9);
});

Deno.test("the parts of a split range are one kernel mapping and one file", () => {
  using guest = create([{ ranges: [range(0, 4 * MIB)] }], { x86Legacy: true });
  const { base, length } = guest.inspect();
  const ours = mappings(base, base + length).filter(({ file }) => file !== "");
  assertEquals(ours.map(({ start, end, access }) => [start - base, end - base, access]), [[0, 4 * MIB, "rw-s"]]);
  assertEquals(guest.shareableRegions().map(({ range, fileOffset }) => [`${range}`, fileOffset]), [[
    "0x0-0x400000",
    0,
  ]]);
});

Deno.test("GPAs, host addresses and file offsets agree modulo 2 MiB", () => {
  using guest = create([{ ranges: [range(0x3000, MIB), range(4 * MIB + 0x5000, 6 * MIB)] }]);
  const { base } = guest.inspect();
  assertEquals(base % (2 * MIB), 0);
  for (const { range, fileOffset } of guest.shareableRegions()) {
    assertEquals(fileOffset % (2 * MIB), range.start % (2 * MIB));
  }
});

Deno.test("a guest without RAM is one too", () => {
  using guest = create([]);
  assertEquals([guest.ramRanges, guest.shareableRegions(), guest.inspect().regions], [[], [], []]);
});

Deno.test("RAM has priority 255 and is of type ram", () => {
  using guest = create([{ ranges: [range(0, MIB)], name: "dimm" }]);
  const [region] = guest.inspect().regions;
  assertEquals([region?.name, region?.priority, region?.type, region?.active], ["dimm", 255, "ram", true]);
});

Deno.test("prefetch and pin reach the partition", () => {
  using guest = create([{ ranges: [range(0, MIB)], prefetch: true }, { ranges: [range(MIB, 2 * MIB)] }], { pin: true });
  const vm = new RecordingPartition();
  const attached = guest.attachPartition(vm);
  const prefetched = vm.calls.filter(({ method }) => method === "prefetchRange").map(({ range }) => `${range}`);
  assertEquals(prefetched, ["0x0-0x100000"]);
  assertEquals(vm.pinned.map(String), ["0x0-0x200000"]);
  attached[Symbol.dispose]();
  assertEquals([vm.pinned.length, vm.ranges.length], [0, 0]);
});

Deno.test("one partition is not attached twice", () => {
  using guest = create([{ ranges: [range(0, MIB)] }]);
  const vm = new RecordingPartition();
  using _attached = guest.attachPartition(vm);
  assertThrows(() => guest.attachPartition(vm), TypeError, "attached");
  const other = new RecordingPartition();
  using _both = guest.attachPartition(other, { aliasOffset: GIB });
  assertThrows(() => guest.attachPartition(other, { aliasOffset: 2 * GIB }), TypeError, "attached");
});

Deno.test("a NUMA node the host has is used, and one it lacks is an error that names it", () => {
  using guest = create([{ ranges: [range(0, MIB)], hostNumaNode: 0 }]);
  guest.memory.fill(0, MIB, 1);
  for (const hostNumaNode of [63, 64, 1023]) {
    for (const backing of ["shared", "private"] as const) {
      const error = assertThrows(() => create([{ ranges: [range(0, MIB)], backing, hostNumaNode }]), MappingError);
      assertInstanceOf(error.cause, OsError);
      assertEquals([error.cause.syscall, error.cause.code], ["mbind", "EINVAL"]);
      assertStringIncludes(error.message, `NUMA node ${hostNumaNode}`);
    }
  }
});

Deno.test("transparent huge pages are asked for, or declined, where they are wanted", () => {
  using guest = create([
    { ranges: [range(0, 2 * MIB)], transparentHugepages: true, backing: "private" },
    { ranges: [range(4 * MIB, 6 * MIB)], transparentHugepages: false, backing: "private" },
  ]);
  assertEquals(guest.inspect().ram.map(({ transparentHugepages }) => transparentHugepages), [true, false]);
});

const LOW = range(0, 2 * MIB);

/** Each row of the table of what does not go together: how it is asked for, the error, and numbers in its message. */
const REFUSED: [string, RamBacking[], Partial<GuestMemoryOptions>, string, string[]][] = [
  [
    "private memory with x86 legacy",
    [{ ranges: [LOW], backing: "private" }],
    { x86Legacy: true },
    "private-with-x86-legacy",
    ["0x200000"],
  ],
  [
    "huge pages with private memory",
    [{ ranges: [LOW], backing: "private", hugepageSize: 2 * MIB }],
    {},
    "hugepages-with-private",
    ["0x200000"],
  ],
  [
    "huge pages with x86 legacy",
    [{ ranges: [LOW], hugepageSize: 2 * MIB }],
    { x86Legacy: true },
    "hugepages-with-x86-legacy",
    ["0x200000"],
  ],
  ["a huge page size that is no power of two", [{ ranges: [LOW], hugepageSize: 3 * MIB }], {}, "hugepage-size", [
    "0x300000",
  ]],
  [
    "a size that is no multiple of the huge pages",
    [{ ranges: [range(0, 3 * MIB)], hugepageSize: 2 * MIB }],
    {},
    "unaligned-size",
    [
      "0x300000",
      "0x200000",
    ],
  ],
  [
    "a range that does not begin at a huge page",
    [{ ranges: [range(MIB, 3 * MIB)], hugepageSize: 2 * MIB }],
    {},
    "unaligned-range",
    [
      "0x100000-0x300000",
      "0x200000",
    ],
  ],
  [
    "x86 legacy RAM that does not begin at 0",
    [{ ranges: [range(0x1000, 2 * MIB)] }],
    { x86Legacy: true },
    "x86-legacy-range",
    [
      "0x1000-0x200000",
    ],
  ],
  ["x86 legacy RAM of less than 1 MiB", [{ ranges: [range(0, 0xf_f000)] }], { x86Legacy: true }, "x86-legacy-range", [
    "0x0-0xff000",
    "0x100000",
  ]],
];

for (const [what, ram, options, kind, numbers] of REFUSED) {
  Deno.test(`GuestMemoryManager.create() refuses ${what} and leaves nothing behind`, () => {
    const [fds, vmas] = [openFds(), mappings().filter(({ file }) => file.includes("memfd")).length];
    const error = assertThrows(() => create(ram, options), RamLayoutError);
    assertEquals(error.kind, kind);
    for (const number of numbers) assertStringIncludes(error.message, number);
    assertEquals([openFds(), mappings().filter(({ file }) => file.includes("memfd")).length], [fds, vmas]);
  });
}

Deno.test("GuestMemoryManager.create() refuses huge pages with a file that exists", () => {
  using file = Mappable.memfd("saved", 2 * MIB);
  const error = assertThrows(
    () => create([{ ranges: [LOW], backing: file, hugepageSize: 2 * MIB }]),
    RamLayoutError,
    "0x200000",
  );
  assertEquals(error.kind, "hugepages-with-existing");
});

Deno.test("GuestMemoryManager.create() refuses a file that is too short, read-only or closed", () => {
  using short = Mappable.memfd("short", MIB);
  const error = assertThrows(() => create([{ ranges: [LOW], backing: short }]), MappingError, "0x100000");
  assertEquals(`${error.range}`, "0x0-0x200000");

  const path = Deno.makeTempFileSync({ dir: "/dev/shm" });
  try {
    Deno.truncateSync(path, 2 * MIB);
    using readOnly = Mappable.open(path);
    assertThrows(() => create([{ ranges: [LOW], backing: readOnly }]), MappingError, "not writable");
  } finally {
    Deno.removeSync(path);
  }
  const closed = Mappable.memfd("closed", 2 * MIB);
  closed[Symbol.dispose]();
  assertThrows(() => create([{ ranges: [LOW], backing: closed }]), DisposedError);
});

Deno.test("GuestMemoryManager.create() refuses RAM that overlaps, even exactly, or leaves guest memory", () => {
  const overlap = assertThrows(
    () => create([{ ranges: [LOW], name: "a" }, { ranges: [range(MIB, 3 * MIB)], name: "b" }]),
    RegionOverlapError,
  );
  assertEquals([overlap.existing.name, overlap.new.name], ["a", "b"]);
  assertThrows(() => create([{ ranges: [LOW] }, { ranges: [LOW] }]), RegionOverlapError);
  assertThrows(() => create([{ ranges: [range(15 * MIB, 17 * MIB)] }]), RangeError, "0x1000000");
  assertThrows(() => create([{ ranges: [] }]), RangeError);
  assertThrows(() => create([{ ranges: [MemoryRange.EMPTY] }]), RangeError);
});

Deno.test("GuestMemoryManager.create() checks numbers and types", () => {
  for (const maxAddress of [0, -4096, 0.5, NaN, Infinity, 4097, 2 ** 53]) {
    assertThrows(() => create([], { maxAddress }), RangeError);
  }
  const wrong = (value: unknown) => value as never;
  for (
    const backing of [
      { ranges: [[0, 4096]] },
      { ranges: LOW },
      { ranges: [LOW], backing: "anonymous" },
      { ranges: [LOW], backing: 3 },
      { ranges: [LOW], name: 3 },
      { ranges: [LOW], prefetch: 1 },
      { ranges: [LOW], transparentHugepages: "yes" },
      { ranges: [LOW], hugepageSize: "2M" },
    ]
  ) {
    assertThrows(() => create([wrong(backing)]), TypeError);
  }
  for (const hostNumaNode of [-1, 0.5, 1024, NaN]) {
    assertThrows(() => create([{ ranges: [LOW], hostNumaNode }]), RangeError);
  }
  for (const hugepageSize of [-2 * MIB, 0.5, NaN, 2 ** 53]) {
    assertThrows(() => create([{ ranges: [LOW], hugepageSize }]), RangeError);
  }
  assertThrows(() => create(wrong(undefined)), TypeError);
  assertThrows(() => create([], { overlap: wrong("none") }), TypeError);
});

Deno.test("an alias map that does not fit is refused with the numbers", () => {
  using guest = create([{ ranges: [LOW] }]);
  const vm = new RecordingPartition();
  for (const aliasOffset of [0, 14 * MIB, 2 ** 52, 2 ** 52 - 8 * MIB, 17 * MIB]) {
    const error = assertThrows(() => guest.attachPartition(vm, { aliasOffset }), RamLayoutError);
    assertEquals(error.kind, "alias-map");
    assertStringIncludes(error.message, `0x${aliasOffset.toString(16)}`);
  }
  for (const aliasOffset of [-1, 0.5, NaN, 2 ** 53]) {
    assertThrows(() => guest.attachPartition(vm, { aliasOffset }), RangeError);
  }
  assertEquals(vm.calls.length, 0);
});

Deno.test("with an alias all memory appears twice, follows every change twice, and goes with the handle", () => {
  using guest = create([{ ranges: [LOW] }], { x86Legacy: true, pin: true });
  const vm = new RecordingPartition({ capacity: 64 });
  const attached = guest.attachPartition(vm, { aliasOffset: GIB });
  const { base } = guest.inspect();
  assertEquals([vm.hvaAt(0xc_0000), vm.hvaAt(GIB + 0xc_0000)], [base + 0xc_0000, base + 0xc_0000]);
  assertEquals(vm.pinned.map(String), ["0x0-0x200000"]);
  assertEquals(guest.inspect().partitions.map(({ name, offset }) => [name, offset]), [
    ["partition", 0],
    ["partition alias", GIB],
  ]);
  guest.setRamVisibility(range(0xc_0000, 0xc_4000), "read-only");
  assertEquals([vm.accessAt(0xc_0000)?.writable, vm.accessAt(GIB + 0xc_0000)?.writable], [false, false]);
  guest.setRamVisibility(range(0xc_0000, 0xc_4000), "unmapped");
  assertEquals([vm.accessAt(0xc_0000), vm.accessAt(GIB + 0xc_0000)], [null, null]);
  attached[Symbol.dispose]();
  attached[Symbol.dispose]();
  assertEquals(vm.ranges.length, 0);
});

Deno.test("an alias that does not fit into the partition is undone as a whole", () => {
  using guest = create([{ ranges: [LOW, range(4 * MIB, 5 * MIB), range(8 * MIB, 9 * MIB)] }]);
  const vm = new RecordingPartition({ capacity: 5 });
  assertThrows(() => guest.attachPartition(vm, { aliasOffset: GIB }));
  assertEquals([vm.ranges.length, guest.inspect().partitions.length], [0, 0]);
  using _attached = guest.attachPartition(vm);
  assertEquals(vm.ranges.length, 3);
});

Deno.test("a manager can be disposed before the handles it gave out, and twice", () => {
  const guest = create([{ ranges: [LOW] }]);
  const vm = new RecordingPartition();
  const attached = guest.attachPartition(vm, { aliasOffset: GIB });
  const watching = guest.watchShareableRegions(() => {});
  const bar = guest.newDeviceMemory("bar", 0x1000);
  bar.mapToGuest(8 * MIB, true);
  guest[Symbol.dispose]();
  guest[Symbol.dispose]();
  for (const handle of [attached, watching, bar]) handle[Symbol.dispose]();
  assertEquals(vm.ranges.length, 0);
  assertThrows(() => guest.setRamVisibility(LOW, "unmapped"), DisposedError);
  assertThrows(() => guest.memory.readUint8(0), DisposedError);
  assertThrows(() => guest.shareableRegions(), DisposedError);
  assertThrows(() => bar.mapToGuest(0, true), DisposedError);
});

Deno.test("a thousand managers leave no file descriptor and no mapping behind", () => {
  const cycle = () => {
    using guest = create([{ ranges: [LOW] }, { ranges: [range(4 * MIB, 6 * MIB)], backing: "private" }], {
      maxAddress: 8 * MIB,
    });
    guest.memory.writeUint8(0, 1);
    using file = Mappable.memfd("bar", 0x4000);
    const bar = guest.newDeviceMemory("bar", 0x4000);
    bar.map({ offset: 0, mappable: file, length: 0x4000 });
    bar.mapToGuest(7 * MIB, true);
  };
  const memfds = () => mappings().filter(({ file }) => file.includes("memfd")).length;
  for (let i = 0; i < 10; i++) cycle();
  const [fds, files, vmas] = [openFds(), memfds(), mappings().length];
  for (let i = 0; i < 1000; i++) cycle();
  assertEquals([openFds(), memfds()], [fds, files]);
  // One each would be a thousand more. V8 maps and unmaps memory of its own meanwhile, a hundred or two.
  assert(mappings().length < vmas + 500, `${mappings().length} mappings, ${vmas} before`);
});

Deno.test("a manager takes a reservation of the caller's, which stays the caller's", () => {
  using va = VaMapper.reserve(64 * MIB);
  {
    using guest = GuestMemoryManager.create({ maxAddress: 16 * MIB, ram: [{ ranges: [range(0, MIB)] }], va });
    assertEquals(guest.memory.hostAddress(0, 1), va.base);
    guest.memory.writeUint8(5, 1);
    assertThrows(() => GuestMemoryManager.create({ maxAddress: 16 * MIB, ram: [], va }), TypeError, "reserve another");
  }
  assertEquals([va.disposed, va.length], [false, 64 * MIB]);
  assertThrows(() => GuestMemoryManager.create({ maxAddress: 128 * MIB, ram: [], va }), RangeError, "needs as many");
  assertThrows(() => GuestMemoryManager.create({ maxAddress: MIB, ram: [], va: null as never }), TypeError);
});
