import { assert, assertEquals, assertRejects, assertStrictEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import {
  DisposedError,
  GuestMemoryError,
  GuestMemoryManager,
  type LockedMemory,
  Mappable,
  MappingError,
  MembackingError,
  MemoryLockedError,
  MemoryRange,
  type RegionHandle,
} from "membacking";
import { RecordingPartition } from "membacking/testing";
import { mappings, openFds } from "../support/proc.ts";
import { HUGE_PAGE, hugePageTest } from "../support/require.ts";
import { PAGE, range } from "../support/units.ts";

const MIB = 2 ** 20;

/** A region of its own besides RAM, to be changed at will. */
function region(guest: GuestMemoryManager, start: number, end: number, file: Mappable | "private"): RegionHandle {
  const region = guest.regions.newRegion({ name: "extra", range: range(start, end), priority: 1 });
  region.addMapping({ rangeInRegion: range(0, end - start), mappable: file });
  region.map();
  return region;
}

function create(): GuestMemoryManager {
  return GuestMemoryManager.create({ maxAddress: 16 * MIB, ram: [{ ranges: [range(0, 2 * MIB)] }] });
}

function isDead(bytes: Uint8Array): boolean {
  const copy = bytes as { [index: number]: number | undefined } & Uint8Array;
  copy[0] = 1;
  return bytes.length === 0 && copy[0] === undefined && bytes.buffer.byteLength === 0;
}

Deno.test("a lock is the memory itself, both ways", () => {
  using guest = create();
  using locked = guest.memory.lock(range(0x1000, 0x3000), { write: true });
  assertEquals([`${locked.range}`, locked.bytes.length], ["0x1000-0x3000", 0x2000]);
  guest.memory.writeUint32(0x1ffe, 0x1234_5678);
  assertEquals([...locked.bytes.subarray(0xffe, 0x1002)], [0x78, 0x56, 0x34, 0x12]);
  locked.bytes[0] = 9;
  assertEquals(guest.memory.readUint8(0x1000), 9);
});

Deno.test("a lock reaches over several mappings", () => {
  using guest = create();
  using file = Mappable.memfd("extra", PAGE);
  using _extra = region(guest, 2 * MIB, 2 * MIB + PAGE, file);
  using locked = guest.memory.lock(range(2 * MIB - PAGE, 2 * MIB + PAGE), { write: true });
  locked.bytes.fill(3);
  assertEquals([guest.memory.readUint8(2 * MIB - 1), guest.memory.readUint8(2 * MIB)], [3, 3]);
});

Deno.test("disposing a lock detaches its bytes and every array on them, and only theirs", () => {
  using guest = create();
  const locked = guest.memory.lock(range(0, PAGE), { write: true });
  using other = guest.memory.lock(range(0, PAGE), { write: true });
  const words = new Uint32Array(locked.bytes.buffer);
  const view = new DataView(locked.bytes.buffer);
  locked[Symbol.dispose]();
  locked[Symbol.dispose]();
  assert(isDead(locked.bytes));
  assertEquals(words.length, 0);
  assertThrows(() => view.getUint8(0), TypeError);
  other.bytes[0] = 5;
  assertEquals(guest.memory.readUint8(0), 5);
});

Deno.test("while it is locked, memory cannot be taken away, and nothing has changed when that is refused", () => {
  using guest = create();
  const vm = new RecordingPartition();
  using _attached = guest.attachPartition(vm);
  using file = Mappable.memfd("extra", 4 * PAGE);
  using other = Mappable.memfd("other", 4 * PAGE);
  const extra = region(guest, 8 * MIB, 8 * MIB + 4 * PAGE, file);
  vm.calls.length = 0;
  const locked = guest.memory.lock(range(8 * MIB + PAGE, 8 * MIB + 2 * PAGE));
  const before = JSON.stringify(guest.regions.inspect());
  const refused = [
    () => extra.unmap(),
    () => extra.map({ writable: false }),
    () => extra[Symbol.dispose](),
    () => extra.removeMappings(range(PAGE, 2 * PAGE)),
    () => extra.removeMappings(range(0, 4 * PAGE)),
    () => extra.addMapping({ rangeInRegion: range(0, 2 * PAGE), mappable: other }),
    () => extra.addMapping({ rangeInRegion: range(0, 4 * PAGE), mappable: "private" }),
    () => guest.regions.batch(() => (extra.removeMappings(range(0, PAGE)), extra.unmap())),
  ];
  for (const request of refused) {
    const error = assertThrows(request, MemoryLockedError);
    assertEquals(`${error.range}`, "0x801000-0x802000");
    assertEquals([JSON.stringify(guest.regions.inspect()), vm.calls.length], [before, 0]);
  }
  locked[Symbol.dispose]();
  for (const request of refused.slice(3, 6)) request();
});

Deno.test("what leaves locked memory as it is passes", () => {
  using guest = create();
  const vm = new RecordingPartition();
  using file = Mappable.memfd("extra", 4 * PAGE);
  const extra = region(guest, 8 * MIB, 8 * MIB + 4 * PAGE, file);
  using locked = guest.memory.lock(range(8 * MIB + PAGE, 8 * MIB + 2 * PAGE), { write: true });
  extra.removeMappings(range(2 * PAGE, 4 * PAGE));
  extra.removeMappings(range(0, PAGE));
  extra.map({ executable: false });
  const attached = guest.attachPartition(vm);
  attached[Symbol.dispose]();
  extra.addMapping({ rangeInRegion: range(PAGE, 2 * PAGE), mappable: file, fileOffset: PAGE });
  locked.bytes[0] = 4;
  assertEquals(guest.memory.readUint8(8 * MIB + PAGE), 4);
});

Deno.test("any number of locks may cover the same pages, and the last one frees them", () => {
  using guest = create();
  using file = Mappable.memfd("extra", 4 * PAGE);
  const extra = region(guest, 8 * MIB, 8 * MIB + 4 * PAGE, file);
  const locks = [[0, 4], [1, 2], [1, 2], [3, 4], [0, 1]].map(([from = 0, to = 0]) =>
    guest.memory.lock(range(8 * MIB + from * PAGE, 8 * MIB + to * PAGE))
  );
  assertEquals(guest.inspect().locks, [
    { range: "0x800000-0x801000", count: 1 },
    { range: "0x800000-0x804000", count: 1 },
    { range: "0x801000-0x802000", count: 2 },
    { range: "0x803000-0x804000", count: 1 },
  ]);
  while (locks.length > 0) {
    assertThrows(() => extra.unmap(), MemoryLockedError);
    locks.splice(locks.length >> 1, 1)[0]?.[Symbol.dispose]();
  }
  extra.unmap();
  assertEquals(guest.inspect().locks, []);
});

Deno.test("which requests locks refuse is what a plain list of locks says", () => {
  using guest = create();
  using file = Mappable.memfd("extra", 16 * PAGE);
  const extra = region(guest, 8 * MIB, 8 * MIB + 16 * PAGE, file);
  const span = fc.tuple(fc.nat(15), fc.integer({ min: 1, max: 16 })).map(([from, length]) =>
    [
      from,
      Math.min(16, from + length),
    ] as const
  );
  const command = fc.record({ lock: fc.boolean(), span, release: fc.nat() });
  fc.assert(
    fc.property(fc.array(command, { maxLength: 40 }), (commands) => {
      const held: { from: number; to: number; lock: LockedMemory }[] = [];
      for (const { lock, span: [from, to], release } of commands) {
        if (lock) {
          held.push({ from, to, lock: guest.memory.lock(range(8 * MIB + from * PAGE, 8 * MIB + to * PAGE)) });
        } else if (held.length > 0) {
          held.splice(release % held.length, 1)[0]?.lock[Symbol.dispose]();
        }
        const replace = () => {
          const rangeInRegion = range(from * PAGE, to * PAGE);
          extra.addMapping({ rangeInRegion, mappable: file, fileOffset: (15 - from) % (17 - to + from) * PAGE });
          extra.addMapping({ rangeInRegion, mappable: file, fileOffset: from * PAGE });
        };
        const isSame = (15 - from) % (17 - to + from) === from;
        if (!isSame && held.some((other) => other.from < to && from < other.to)) {
          assertThrows(replace, MemoryLockedError);
        } else {
          replace();
        }
      }
      for (const { lock } of held) lock[Symbol.dispose]();
    }),
    { numRuns: 100 },
  );
});

Deno.test("a lock of read-only memory takes stores and keeps them to itself", () => {
  using guest = create();
  using file = Mappable.memfd("extra", 4 * PAGE);
  using _extra = region(guest, 2 * MIB, 2 * MIB + 4 * PAGE, file);
  const low = range(0, 2 * MIB);
  guest.memory.fill(0, 2 * MIB, 0x11);
  guest.setRamVisibility(low, "read-only");
  assertThrows(() => guest.memory.lock(low, { write: true }), GuestMemoryError);
  {
    using locked = guest.memory.lock(range(2 * MIB - 2 * PAGE, 2 * MIB + PAGE));
    assertEquals([locked.bytes[0], locked.bytes[2 * PAGE]], [0x11, 0]);
    locked.bytes.fill(0x99);
    // The read-only part is a copy now, the writable part is guest memory.
    assertEquals(guest.memory.readUint8(2 * MIB - 1), 0x11);
    assertEquals(guest.memory.readUint8(2 * MIB), 0x99);
    assertThrows(() => guest.setRamVisibility(low, "read-write"), MemoryLockedError);
  }
  guest.setRamVisibility(low, "read-write");
  assertEquals(guest.memory.readUint8(2 * MIB - 1), 0x11);
});

Deno.test("a lock of read-only memory follows what others write to the file", () => {
  using file = Mappable.memfd("ram", 2 * MIB);
  using guest = GuestMemoryManager.create({
    maxAddress: 4 * MIB,
    ram: [{ ranges: [range(0, 2 * MIB)], backing: file }],
  });
  guest.setRamVisibility(range(0, 2 * MIB), "read-only");
  using locked = guest.memory.lock(range(PAGE, 2 * PAGE));
  file.write(PAGE, new Uint8Array([7]));
  assertEquals(locked.bytes[0], 7);
});

Deno.test("read-only private memory can be locked, together with files that are read-only not", () => {
  using guest = GuestMemoryManager.create({
    maxAddress: 4 * MIB,
    ram: [{ ranges: [range(0, MIB)], backing: "private" }, { ranges: [range(MIB, 2 * MIB)] }],
  });
  guest.memory.writeUint8(0, 5);
  for (const ram of guest.ramRanges) guest.setRamVisibility(ram, "read-only");
  {
    using locked = guest.memory.lock(range(0, PAGE));
    assertEquals(locked.bytes[0], 5);
    locked.bytes[0] = 6;
    assertEquals(guest.memory.readUint8(0), 5);
  }
  assertThrows(() => guest.memory.lock(range(0, 2 * MIB)), MappingError, "lock them apart");
  assertEquals(guest.inspect().locks, []);
});

hugePageTest("a part of a read-only huge page can be locked", 2, () => {
  using guest = GuestMemoryManager.create({
    maxAddress: 4 * HUGE_PAGE,
    ram: [{ ranges: [range(0, HUGE_PAGE)], hugepageSize: HUGE_PAGE }, {
      ranges: [range(HUGE_PAGE, 2 * HUGE_PAGE)],
    }],
  });
  guest.memory.fill(0, HUGE_PAGE, 0x11);
  guest.memory.fill(HUGE_PAGE, HUGE_PAGE, 0x22);
  for (const ram of guest.ramRanges) guest.setRamVisibility(ram, "read-only");
  using locked = guest.memory.lock(range(HUGE_PAGE - 3 * PAGE, HUGE_PAGE + 2 * PAGE));
  assertEquals([locked.bytes[0], locked.bytes[3 * PAGE - 1], locked.bytes[3 * PAGE]], [0x11, 0x11, 0x22]);
});

Deno.test("locks of read-only memory leave no mapping and no file behind", () => {
  using guest = create();
  guest.setRamVisibility(range(0, 2 * MIB), "read-only");
  const memfds = () => mappings().filter(({ file }) => file.includes("memfd:ram")).length;
  const before = [openFds(), memfds()];
  for (let i = 0; i < 100; i++) {
    using _locked = guest.memory.lock(range(0, 2 * MIB));
  }
  assertEquals([openFds(), memfds()], before);
});

Deno.test("a buffer that was transferred away cannot be revoked, so its memory stays locked", () => {
  const guest = create();
  const locked = guest.memory.lock(range(0, PAGE), { write: true });
  const moved = structuredClone(locked.bytes, { transfer: [locked.bytes.buffer] });
  moved[0] = 8;
  assertEquals(guest.memory.readUint8(0), 8);
  assertThrows(() => locked[Symbol.dispose](), TypeError, "transferred");
  assertThrows(() => locked[Symbol.dispose](), TypeError, "transferred");
  assertThrows(() => guest.setRamVisibility(range(0, 2 * MIB), "unmapped"), MemoryLockedError);

  // Whoever has it now may go on with it, even when the manager is gone.
  const error = assertThrows(() => guest[Symbol.dispose](), MembackingError);
  assert(error.cause instanceof AggregateError);
  moved[1] = 9;
  assertEquals([...moved.subarray(0, 2)], [8, 9]);
});

Deno.test("disposing the manager revokes all locks, of writable and of read-only memory", () => {
  const guest = create();
  const locks = [guest.memory.lock(range(0, PAGE), { write: true }), guest.memory.lock(range(0, 2 * MIB))];
  using file = Mappable.memfd("extra", PAGE);
  region(guest, 8 * MIB, 8 * MIB + PAGE, file).map({ writable: false });
  locks.push(guest.memory.lock(range(8 * MIB, 8 * MIB + PAGE)));
  guest[Symbol.dispose]();
  for (const locked of locks) {
    assert(isDead(locked.bytes));
    locked[Symbol.dispose]();
  }
});

Deno.test("teardown waits until the last lock is gone, and refuses new ones meanwhile", async () => {
  using guest = create();
  using file = Mappable.memfd("extra", 4 * PAGE);
  const extra = region(guest, 8 * MIB, 8 * MIB + 4 * PAGE, file);
  const locks = [0, 0, 3].map((page) => guest.memory.lock(MemoryRange.of(8 * MIB + page * PAGE, PAGE)));
  using _elsewhere = guest.memory.lock(range(0, PAGE));
  let done = false;
  const torn = extra.teardown().then(() => done = true);
  for (const locked of locks) {
    await turn();
    assertEquals(done, false);
    assertThrows(() => guest.memory.lock(MemoryRange.of(8 * MIB, PAGE)), DisposedError, "torn down");
    guest.memory.writeUint8(8 * MIB, 1);
    using _other = guest.memory.lock(range(0, PAGE));
    locked[Symbol.dispose]();
  }
  await torn;
  assertThrows(() => guest.memory.readUint8(8 * MIB), GuestMemoryError);
  assertThrows(() => extra.map(), DisposedError);
  await extra.teardown();
});

Deno.test("teardown without locks takes effect at once, so does disposing asynchronously", async () => {
  using guest = create();
  using file = Mappable.memfd("extra", PAGE);
  {
    await using _extra = region(guest, 8 * MIB, 8 * MIB + PAGE, file);
  }
  assertThrows(() => guest.memory.readUint8(8 * MIB), GuestMemoryError);
});

Deno.test("aborting a teardown leaves the region as it was, and locks are given out again", async () => {
  using guest = create();
  using file = Mappable.memfd("extra", PAGE);
  const extra = region(guest, 8 * MIB, 8 * MIB + PAGE, file);
  const locked = guest.memory.lock(MemoryRange.of(8 * MIB, PAGE));
  const controller = new AbortController();
  const torn = extra.teardown({ signal: controller.signal });
  await turn();
  const reason = new Error("never mind");
  controller.abort(reason);
  assertStrictEquals(await assertRejects(() => torn, Error), reason);
  guest.memory.lock(MemoryRange.of(8 * MIB, PAGE))[Symbol.dispose]();
  locked[Symbol.dispose]();
  await assertRejects(() => extra.teardown({ signal: controller.signal }), Error, "never mind");
  extra.map({ writable: false });
  await extra.teardown({ signal: AbortSignal.timeout(60_000) });
});

Deno.test("a signal that is none, or whose methods are hidden, is in nobody's way", async () => {
  using guest = create();
  using file = Mappable.memfd("extra", PAGE);
  const extra = region(guest, 8 * MIB, 8 * MIB + PAGE, file);
  const place = MemoryRange.of(8 * MIB, PAGE);
  const locked = guest.memory.lock(place);
  const none = { throwIfAborted() {}, addEventListener() {}, removeEventListener: 5 } as unknown as AbortSignal;
  await assertRejects(() => extra.teardown({ signal: none }), TypeError, "AbortSignal");
  guest.memory.lock(place)[Symbol.dispose]();
  const controller = new AbortController();
  Object.assign(controller.signal, { removeEventListener: 5 });
  const first = extra.teardown({ signal: controller.signal });
  const second = extra.teardown();
  await turn();
  // Whoever releases a lock is not told of it.
  locked[Symbol.dispose]();
  await Promise.all([first, second]);
  assertThrows(() => extra.map(), DisposedError);
});

Deno.test("of two teardowns one can be aborted while the other goes on to wait", async () => {
  using guest = create();
  using file = Mappable.memfd("extra", PAGE);
  const extra = region(guest, 8 * MIB, 8 * MIB + PAGE, file);
  const locked = guest.memory.lock(MemoryRange.of(8 * MIB, PAGE));
  const controller = new AbortController();
  const first = extra.teardown({ signal: controller.signal });
  const second = extra.teardown();
  controller.abort();
  await assertRejects(() => first, DOMException);
  assertThrows(() => guest.memory.lock(MemoryRange.of(8 * MIB, PAGE)), DisposedError);
  locked[Symbol.dispose]();
  await second;
  assertThrows(() => extra.map(), DisposedError);
});

Deno.test("a teardown ends when the manager or the region goes by other means", async () => {
  const guest = create();
  using file = Mappable.memfd("extra", PAGE);
  const extra = region(guest, 8 * MIB, 8 * MIB + PAGE, file);
  const other = region(guest, 9 * MIB, 9 * MIB + PAGE, file);
  const [first, second] = [8 * MIB, 9 * MIB].map((at) => guest.memory.lock(MemoryRange.of(at, PAGE)));
  const torn = [extra.teardown(), other.teardown()];
  await turn();
  first?.[Symbol.dispose]();
  extra[Symbol.dispose]();
  await torn[0];
  guest[Symbol.dispose]();
  await torn[1];
  assert(second !== undefined && isDead(second.bytes));
});

Deno.test("a lock taken inside a batch is respected by it", () => {
  using guest = create();
  let locked: LockedMemory | undefined;
  assertThrows(() =>
    guest.regions.batch(() => {
      guest.setRamVisibility(range(0, 2 * MIB), "unmapped");
      locked = guest.memory.lock(range(0, PAGE));
    }), MemoryLockedError);
  assertEquals(locked?.bytes.length, PAGE);
  locked?.[Symbol.dispose]();
});

Deno.test("a lock that cannot be given out leaves nothing locked", () => {
  using guest = create();
  for (const bad of [range(MIB, 3 * MIB), range(8 * MIB, 9 * MIB), range(15 * MIB, 32 * MIB)]) {
    assertThrows(() => guest.memory.lock(bad), GuestMemoryError);
  }
  assertEquals(guest.inspect().locks, []);
  guest.setRamVisibility(range(0, 2 * MIB), "unmapped");
});

function turn(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 0));
}
