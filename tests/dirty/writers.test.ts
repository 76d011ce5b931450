// What this package writes itself: each way to write guest memory counts as written, and nothing else does.

import { assertEquals, assertThrows } from "@std/assert";
import { DisposedError, GuestMemoryError, Mappable, MemoryRange, PageSet } from "membacking";
import { RecordingVa } from "membacking/testing";
import { State } from "../../src/core/map/state.ts";
import { MemoryLocks } from "../../src/memory/memory_locks.ts";
import { DirtyRig, pages, taken } from "./rig.ts";
import { PAGE } from "../support/units.ts";

/** Ways to write; the second number is how many bytes from `at` on. */
const WRITES: readonly [name: string, length: number, write: (rig: DirtyRig, at: number) => void][] = [
  ["write", 10, ({ manager: { memory } }, at) => memory.write(at, new Uint8Array(10))],
  ["write of three pages", 3 * PAGE, ({ manager: { memory } }, at) => memory.write(at, new Uint8Array(3 * PAGE))],
  ["fill", 100, ({ manager: { memory } }, at) => memory.fill(at, 100, 1)],
  ["writeUint8", 1, ({ manager: { memory } }, at) => memory.writeUint8(at, 1)],
  ["writeUint16", 2, ({ manager: { memory } }, at) => memory.writeUint16(at, 1)],
  ["writeUint32", 4, ({ manager: { memory } }, at) => memory.writeUint32(at, 1)],
  ["writeBigUint64", 8, ({ manager: { memory } }, at) => memory.writeBigUint64(at, 1n)],
  ["storeUint16", 2, ({ manager: { memory } }, at) => memory.storeUint16(at - at % 2, 1)],
  ["storeUint32", 4, ({ manager: { memory } }, at) => memory.storeUint32(at - at % 4, 1)],
  ["storeBigUint64", 8, ({ manager: { memory } }, at) => memory.storeBigUint64(at - at % 8, 1n)],
  ["compareExchangeUint16", 2, ({ manager: { memory } }, at) => memory.compareExchangeUint16(at - at % 2, 0, 1)],
  ["compareExchangeUint32", 4, ({ manager: { memory } }, at) => memory.compareExchangeUint32(at - at % 4, 0, 1)],
  [
    "compareExchangeBigUint64",
    8,
    ({ manager: { memory } }, at) => memory.compareExchangeBigUint64(at - at % 8, 0n, 1n),
  ],
  ["readFrom", 5000, (rig, at) => rig.manager.memory.readFrom(rig.file(), 0, at, 5000)],
];

const ALIGNED = /^(store|compare)/;

for (const [name, length, write] of WRITES) {
  Deno.test(`DirtyTracker: GuestMemory.${name} counts as written, just the pages it touches`, () => {
    using rig = new DirtyRig();
    rig.region(0, 256, { parts: 2 });
    write(rig, 0); // as if nobody looked
    using tracker = rig.manager.trackDirty();
    assertEquals(taken(tracker), "");
    const isAligned = ALIGNED.test(name);
    // At the start, across two pages, across two mappings.
    for (const at of [0, 7 * PAGE - (isAligned ? length : 1), 128 * PAGE - (isAligned ? length : 1), 200 * PAGE + 16]) {
      for (let again = 0; again < 2; again++) {
        write(rig, at);
        const expected = PageSet.of([MemoryRange.bounding(at, at + length)]);
        assertEquals([...tracker.take()].map(String), [...expected].map(String), `at ${at / PAGE}`);
        assertEquals(taken(tracker), "");
      }
    }
  });
}

Deno.test("DirtyTracker: beside the page that was written last, nothing is written unseen or where nothing is", () => {
  using rig = new DirtyRig();
  const { memory } = rig.manager;
  rig.region(4, 8);
  using tracker = rig.manager.trackDirty();
  for (const last of [4, 6, 7]) {
    memory.writeUint32(last * PAGE + 8, 1);
    assertEquals(taken(tracker), `${last}`);
    // Just after a take, and once more with the page remembered.
    for (let again = 0; again < 2; again++) {
      memory.writeUint32(last * PAGE, 1);
      for (const at of [4 * PAGE - 4, 4 * PAGE - 1, 3 * PAGE, 4, 8 * PAGE - 3, 8 * PAGE, 12 * PAGE]) {
        assertThrows(() => memory.writeUint32(at, 1), GuestMemoryError, undefined, `${at} beside page ${last}`);
      }
    }
    assertEquals(taken(tracker), `${last}`);
  }
  memory.writeUint32(5 * PAGE, 1);
  memory.writeUint32(6 * PAGE - 2, 1);
  memory.writeUint32(5 * PAGE - 1, 1);
  memory.writeUint32(8 * PAGE - 4, 1);
  assertEquals(taken(tracker), "4-7");
});

Deno.test("DirtyTracker: a write of whatever length is seen where it begins and where it ends", () => {
  using rig = new DirtyRig();
  const { memory } = rig.manager;
  rig.region(4, 16);
  rig.region(20, 24).map({ writable: false });
  using tracker = rig.manager.trackDirty();
  for (let at = 0; at < 8; at++) {
    for (let length = 1; length <= 8; length++) {
      memory.write(4 * PAGE + at, new Uint8Array(length));
      assertEquals(taken(tracker), "4");
      for (let again = 0; again < 2; again++) {
        assertThrows(() => memory.write(20 * PAGE + at, new Uint8Array(length)), GuestMemoryError);
      }
    }
  }
  const end = 8 * PAGE;
  for (const length of [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 17, 100, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, 9000]) {
    for (const back of [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, length - 1, length, length + 1, PAGE, 2 * PAGE, 3 * PAGE]) {
      const at = end - Math.min(Math.max(back, 1), 3 * PAGE);
      const remembered = at - at % PAGE;
      // The first one after a take finds the memory, the second one remembers the page.
      for (let again = 0; again < 2; again++) memory.writeUint8(remembered, 1);
      memory.write(at, new Uint8Array(length));
      const expected = PageSet.of([MemoryRange.bounding(remembered, Math.max(remembered + 1, at + length))]);
      assertEquals([...tracker.take()].map(String), [...expected].map(String), `${length} bytes, ${end - at} before`);
    }
  }
});

Deno.test("DirtyTracker: looking and writes that fail count as nothing", () => {
  using rig = new DirtyRig();
  const { memory } = rig.manager;
  rig.region(0, 16);
  rig.region(32, 48).map({ writable: false });
  using tracker = rig.manager.trackDirty();
  memory.read(0, 4 * PAGE);
  memory.readUint32(5);
  memory.readBigUint64(PAGE);
  memory.loadUint32(8);
  memory.writeTo(rig.file(), 0, 0, PAGE);
  memory.write(PAGE, new Uint8Array(0));
  memory.fill(PAGE, 0, 1);
  [...memory.pieces()];
  memory.lock(pages(2))[Symbol.dispose]();
  assertThrows(() => memory.writeUint32(16 * PAGE - 2, 1), GuestMemoryError);
  assertThrows(() => memory.write(15 * PAGE, new Uint8Array(2 * PAGE)), GuestMemoryError);
  assertThrows(() => memory.writeUint8(32 * PAGE, 1), GuestMemoryError);
  assertThrows(() => memory.fill(31 * PAGE, 1, 1), GuestMemoryError);
  assertEquals(taken(tracker), "");
});

Deno.test("DirtyTracker: memory of a file that may be truncated counts as written too", () => {
  using rig = new DirtyRig();
  using file = Mappable.memfd("unsealed", 16 * PAGE, { seal: false });
  const region = rig.region(0, 16, { backed: false });
  region.addMapping({ rangeInRegion: pages(0, 16), mappable: file });
  using tracker = rig.manager.trackDirty();
  rig.manager.memory.writeUint32(3 * PAGE - 2, 1);
  assertEquals(taken(tracker), "2-3");
});

Deno.test("DirtyTracker: a lock with write counts as written while it is held, and once when it is released", () => {
  using rig = new DirtyRig();
  const { memory } = rig.manager;
  rig.region(0, 64);
  const early = memory.lock(pages(1, 3), { write: true });
  using tracker = rig.manager.trackDirty();
  assertEquals(taken(tracker), "1-2");
  const late = memory.lockAll([pages(10), pages(12, 14)], { write: true });
  const reading = memory.lock(pages(20, 30));
  for (let i = 0; i < 3; i++) assertEquals(taken(tracker), "1-2 10 12-13");
  early[Symbol.dispose]();
  assertEquals(taken(tracker), "1-2 10 12-13");
  assertEquals(taken(tracker), "10 12-13");
  late[Symbol.dispose]();
  reading[Symbol.dispose]();
  assertEquals(taken(tracker), "10 12-13");
  assertEquals(taken(tracker), "");
});

Deno.test("DirtyTracker: several see everything since they began, each for itself", () => {
  using rig = new DirtyRig();
  const { memory } = rig.manager;
  const vm = rig.partition();
  rig.region(0, 64);
  const first = rig.manager.trackDirty();
  memory.writeUint8(PAGE, 1);
  vm.write(pages(2));
  using second = rig.manager.trackDirty();
  assertEquals(taken(second), "");
  memory.writeUint8(3 * PAGE, 1);
  vm.write(pages(4));
  assertEquals([taken(second), taken(first)], ["3-4", "1-4"]);
  first.giveBack(PageSet.of([pages(2), pages(9, 12)]));
  assertEquals([taken(second), taken(first), taken(first)], ["", "2 9-11", ""]);
  vm.write(pages(5));
  memory.writeUint8(6 * PAGE, 1);
  first[Symbol.dispose]();
  first[Symbol.dispose]();
  assertThrows(() => first.take(), DisposedError);
  assertThrows(() => first.giveBack(PageSet.EMPTY), DisposedError);
  assertEquals(taken(second), "5-6");
  assertEquals(vm.logging.map(String), [pages(0, 64)].map(String));
  second[Symbol.dispose]();
  assertEquals(vm.logging, []);
  memory.writeUint8(0, 1);
  using third = rig.manager.trackDirty();
  assertEquals(taken(third), "");
});

Deno.test("DirtyTracker ends with its region manager", () => {
  const rig = new DirtyRig();
  rig.region(0, 4);
  const tracker = rig.manager.trackDirty();
  rig[Symbol.dispose]();
  assertThrows(() => tracker.take(), DisposedError);
  tracker[Symbol.dispose]();
});

Deno.test("MemoryLocks: a client that was cut off in an access may write anywhere until it is out, and once more", () => {
  const locks = new MemoryLocks(new RecordingVa<Mappable>(16 * PAGE), () => State.empty(), () => {}, () => {});
  let isAtIt = true;
  locks.addStray(() => isAtIt);
  const all = [{ start: 0, end: 16 * PAGE }];
  assertEquals(locks.writers(), all);
  assertEquals(locks.writers(), all);
  isAtIt = false;
  assertEquals(locks.writers(), all);
  assertEquals(locks.writers(), []);
});
