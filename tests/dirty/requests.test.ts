// What requests do to written pages: what changes hands counts as written, and what a slot had is kept when it goes.

import { assert, assertEquals, assertInstanceOf, assertStrictEquals, assertThrows } from "@std/assert";
import { GuestMemoryManager, MappingError, MembackingError, MemoryRange as Range, ReentrancyError } from "membacking";
import { FAILURE_MODES, InjectedFault, RecordingPartition } from "membacking/testing";
import { DirtyRig, pages, taken } from "./rig.ts";
import { PAGE } from "../support/units.ts";

const HOLD = { [Symbol.dispose]() {} };
const quiesce = () => HOLD;

Deno.test("DirtyTracker: memory that appears, changes hands, or goes is written in its changed range", () => {
  using rig = new DirtyRig({ overlap: "any", quiesce });
  rig.partition();
  const ram = rig.region(0, 32);
  const top = rig.region(8, 16, { priority: 1 });
  using tracker = rig.manager.trackDirty();
  const after = (request: () => void) => {
    request();
    return taken(tracker);
  };
  assertEquals(after(() => top.unmap()), "8-15");
  assertEquals(after(() => top.map()), "8-15");
  assertEquals(after(() => top.map()), "");
  assertEquals(after(() => ram.removeMappings(pages(4, 10))), "4-7");
  const file = rig.file();
  assertEquals(after(() => ram.addMapping({ rangeInRegion: pages(6, 8), mappable: file, fileOffset: 0 })), "6-7");
  assertEquals(after(() => ram.addMapping({ rangeInRegion: pages(6, 8), mappable: file, fileOffset: 0 })), "");
  // The chipset's switch: off, read-only, on.
  assertEquals(after(() => top.map({ writable: false })), "8-15");
  assertEquals(after(() => top.map({ writable: true })), "8-15");
  assertEquals(after(() => top.map({ executable: false })), "");
  const moved = () =>
    rig.manager.batch(() => {
      top[Symbol.dispose]();
      rig.region(20, 28, { priority: 2 });
    });
  assertEquals(after(moved), "8-15 20-27");
});

Deno.test("DirtyTracker: a log is begun in place for all that can be written, and ended with the last tracker", () => {
  using rig = new DirtyRig();
  const vm = rig.partition();
  rig.region(0, 8);
  rig.region(16, 24).map({ writable: false });
  rig.region(32, 40);
  vm.write(pages(3));
  rig.calls.length = 0;
  {
    using tracker = rig.manager.trackDirty();
    assertEquals(
      rig.calls.map(({ method, range }) => `${method} ${range}`).filter((call) => !call.startsWith("take")),
      [`setDirtyLog ${pages(0, 8)}`, `setDirtyLog ${pages(32, 40)}`],
    );
    vm.write(pages(33, 35));
    assertEquals(taken(tracker), "33-34");
    // Born logging: no gap between the slot and its log.
    rig.calls.length = 0;
    rig.region(48, 56);
    assertEquals(rig.calls.map(({ method }) => method), ["mapRange"]);
    assertEquals(taken(tracker), "48-55");
    vm.write(pages(50));
    assertEquals(taken(tracker), "50");
  }
  assertEquals(vm.logging, []);
});

Deno.test("DirtyTracker: a partition that comes logs from the start, and one that goes hands over what it has", () => {
  using rig = new DirtyRig({ quiesce });
  rig.region(0, 8);
  rig.region(8, 16);
  using tracker = rig.manager.trackDirty();
  const vm = new RecordingPartition({ dirtyLog: true });
  const handle = rig.manager.addPartition(vm, { offset: 100 * PAGE });
  assertEquals(taken(tracker), "");
  vm.write(pages(103));
  assertEquals(taken(tracker), "3");
  vm.write(pages(109));
  handle[Symbol.dispose]();
  assertEquals(taken(tracker), "9");
});

for (const mode of FAILURE_MODES) {
  Deno.test(`RegionManager.trackDirty() leaves nothing logged if a slot refuses: ${mode}`, () => {
    using rig = new DirtyRig();
    const vm = rig.partition();
    for (let i = 0; i < 4; i++) rig.region(8 * i, 8 * i + 8);
    for (let fails = 0; fails < 4; fails++) {
      rig.faults.reset();
      rig.faults.failAfter(fails, { mode, on: ({ method }) => method === "setDirtyLog" });
      const error = assertThrows(() => rig.manager.trackDirty(), MappingError, "log written pages of");
      assertInstanceOf(error.cause, InjectedFault);
      assertEquals(vm.logging, []);
      assertEquals(vm.ranges.length, 4);
    }
    rig.faults.reset();
    using tracker = rig.manager.trackDirty();
    assertStrictEquals(vm.logging.length, 4);
    vm.write(pages(9));
    assertEquals(taken(tracker), "9");
  });

  Deno.test(`DirtyTracker that cannot be ended goes on, and loses nothing: ${mode}`, () => {
    using rig = new DirtyRig();
    const vm = rig.partition();
    for (let i = 0; i < 3; i++) rig.region(8 * i, 8 * i + 8);
    const tracker = rig.manager.trackDirty();
    vm.write(pages(1));
    vm.write(pages(20));
    rig.faults.failAfter(1, { mode, on: ({ method }) => method === "setDirtyLog" });
    assertThrows(() => tracker[Symbol.dispose](), MappingError);
    rig.faults.reset();
    assertStrictEquals(vm.logging.length, 3);
    // What did not log for a moment counts as written throughout.
    assertEquals(taken(tracker), "0-15 20");
    vm.write(pages(10));
    assertEquals(taken(tracker), "10");
    tracker[Symbol.dispose]();
    assertEquals(vm.logging, []);
  });
}

Deno.test("DirtyTracker: what a slot has is harvested before it goes; its rest is written only where nobody holds vCPUs", () => {
  for (const held of [true, false]) {
    using rig = new DirtyRig(held ? { quiesce } : {});
    const vm = rig.partition();
    const ram = rig.region(0, 32);
    using tracker = rig.manager.trackDirty();
    vm.write(pages(1));
    vm.write(pages(30));
    ram.removeMappings(pages(10, 12));
    assertEquals(taken(tracker), held ? "1 10-11 30" : "0-31");
    assertStrictEquals(vm.logging.length, 2);
    vm.write(pages(31));
    assertEquals(taken(tracker), "31");
  }
});

Deno.test("DirtyTracker: a take that fails keeps what it has found for the next one", () => {
  for (const mode of FAILURE_MODES) {
    using rig = new DirtyRig();
    const [a, b] = [rig.partition({ name: "a" }), rig.partition({ name: "b", offset: 8192 })];
    rig.region(0, 32);
    using tracker = rig.manager.trackDirty();
    using other = rig.manager.trackDirty();
    a.write(pages(1, 5));
    b.write(pages(8192 + 7, 8192 + 11));
    rig.manager.memory.writeUint8(20 * PAGE, 1);
    for (const target of ["a", "b"]) {
      rig.faults.failAfter(0, { mode, on: (call) => call.target === target && call.method === "takeDirty" });
      const error = assertThrows(() => tracker.take(), MembackingError, "take again");
      assertInstanceOf(error.cause, InjectedFault);
    }
    assertEquals([taken(tracker), taken(other)], ["1-4 7-10 20", "1-4 7-10 20"]);
  }
});

Deno.test("DirtyTracker: if a slot cannot be harvested before it goes, all of it counts as written", () => {
  using rig = new DirtyRig({ quiesce });
  const vm = rig.partition();
  const ram = rig.region(0, 32);
  rig.region(32, 64);
  using tracker = rig.manager.trackDirty();
  vm.write(pages(1));
  rig.faults.failAfter(0, { on: ({ method }) => method === "takeDirty" });
  ram.removeMappings(pages(10, 12));
  assertEquals(taken(tracker), "0-31");
});

Deno.test("DirtyTracker: pages of a partition are told without its offset, those of an alias too", () => {
  using guest = GuestMemoryManager.create({ maxAddress: 64 * PAGE, ram: [{ ranges: [pages(0, 64)] }], quiesce });
  const vm = new RecordingPartition({ dirtyLog: true });
  using _attached = guest.attachPartition(vm, { aliasOffset: 2 ** 30 });
  using tracker = guest.trackDirty();
  vm.write(pages(3));
  vm.write(pages(9).offsetBy(2 ** 30));
  assertEquals(taken(tracker), "3 9");
  vm.write(pages(5).offsetBy(2 ** 30));
  guest.setRamVisibility(guest.ramRanges[0]!, "read-only");
  assertEquals(taken(tracker), "0-63");
  guest.setRamVisibility(guest.ramRanges[0]!, "read-write");
  tracker.take();
  vm.write(pages(1).offsetBy(2 ** 30));
  assertEquals(taken(tracker), "1");
});

Deno.test("DirtyTracker: what shows at two addresses is written at both", () => {
  using rig = new DirtyRig({ overlap: "any", quiesce });
  const vm = rig.partition();
  const file = rig.file();
  const show = (start: number, end: number, fileOffset: number, options: object = {}) => {
    const region = rig.region(start, end, { backed: false });
    const rangeInRegion = pages(0, end - start);
    region.addMapping({ rangeInRegion, mappable: file, fileOffset: fileOffset * PAGE, ...options });
    return region;
  };
  const bar = show(0, 32, 0);
  const window = show(64, 72, 16);
  show(80, 84, 18, { writable: false });
  rig.region(100, 132);
  using tracker = rig.manager.trackDirty();
  vm.write(pages(19));
  assertEquals(taken(tracker), "19 67 81");
  rig.manager.memory.writeUint8(66 * PAGE, 1);
  assertEquals(taken(tracker), "18 66 80");
  vm.write(pages(15, 17));
  vm.write(pages(101));
  assertEquals(taken(tracker), "15-16 64 101");
  // Written before one of the two gives way to something else, looked at afterwards.
  vm.write(pages(20));
  bar.removeMappings(pages(20));
  assertEquals(taken(tracker), "20 68 82");
  vm.write(pages(69));
  window.unmap();
  assertEquals(taken(tracker), "16-19 21-23 64-71 80-83");
  vm.write(pages(21));
  assertEquals(taken(tracker), "21 83");
  // Private copies show what the file becomes, until they are written; what is written there is their own.
  show(200, 204, 0, { copyOnWrite: true });
  assertEquals(taken(tracker), "200-203");
  vm.write(pages(1));
  vm.write(pages(202));
  assertEquals(taken(tracker), "1 201-202");
});

Deno.test("RegionManager.trackDirty() in a batch begins when the batch comes true, or never", () => {
  using rig = new DirtyRig();
  const vm = rig.partition();
  const [tracker, region] = rig.manager.batch(() => [rig.manager.trackDirty(), rig.region(0, 8)] as const);
  assertStrictEquals(vm.logging.length, 1);
  assertEquals(taken(tracker), "");
  vm.write(pages(2));
  rig.faults.failAfter(0, { on: ({ method }) => method === "unmapRange" });
  assertThrows(() =>
    rig.manager.batch(() => {
      tracker[Symbol.dispose]();
      region.unmap();
    }), MappingError);
  rig.faults.reset();
  assertStrictEquals(vm.logging.length, 1);
  const found = tracker.take();
  assert(found.has(2 * PAGE));
  let dead: ReturnType<typeof rig.manager.trackDirty> | undefined;
  assertThrows(() =>
    rig.manager.batch(() => {
      dead = rig.manager.trackDirty();
      throw new RangeError("no");
    }), RangeError);
  assertThrows(() => dead?.take(), MembackingError);
  dead?.[Symbol.dispose]();
  tracker[Symbol.dispose]();
  assertEquals(vm.logging, []);
});

Deno.test("DirtyTracker.take() inside a callback is refused", () => {
  let seen: unknown;
  let take = () => {};
  using rig = new DirtyRig({
    quiesce: () => {
      try {
        take();
      } catch (error) {
        seen = error;
      }
      return HOLD;
    },
  });
  rig.partition();
  const ram = rig.region(0, 8);
  using tracker = rig.manager.trackDirty();
  take = () => void tracker.take();
  ram.removeMappings(pages(2));
  assertInstanceOf(seen, ReentrancyError);
  assertEquals(taken(tracker), "2");
});

Deno.test("DirtyTracker: whatever step of a request fails while a guest writes, nothing is lost", () => {
  for (const mode of FAILURE_MODES) {
    for (let passes = 0;; passes++) {
      // The guest writes to every page it can reach at every call of a target.
      const written = new Set<number>();
      let hit = 0;
      using rig = new DirtyRig({ overlap: "any" });
      const vm = rig.partition();
      const write = () => {
        for (let page = 0; page < 40; page++) {
          const gpa = page * PAGE;
          if (vm.accessAt(gpa)?.writable !== true) continue;
          vm.write(Range.of(gpa, PAGE));
          written.add(page);
        }
      };
      const ram = rig.region(0, 32, { parts: 4 });
      const top = rig.region(4, 12, { priority: 3, parts: 2 });
      top.unmap();
      using tracker = rig.manager.trackDirty();
      vm.write(pages(31));
      written.add(31);
      rig.faults.failAfter(passes, {
        mode,
        on: ({ method }) => {
          write();
          if (method !== "takeDirty") hit++;
          return method !== "takeDirty";
        },
      });
      let failed = false;
      try {
        rig.manager.batch(() => {
          top.map({ writable: false });
          ram.removeMappings(pages(18, 20));
          rig.region(32, 40);
        });
      } catch {
        failed = true;
      }
      rig.faults.reset();
      const found = tracker.take();
      for (const page of written) assert(found.has(page * PAGE), `${mode} ${passes}: page ${page}`);
      if (!failed) {
        assert(hit > 6 && passes >= hit, "every step has failed once");
        break;
      }
    }
  }
});
