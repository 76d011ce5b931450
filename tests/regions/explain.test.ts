import { assert, assertEquals, assertInstanceOf, assertStrictEquals, assertThrows } from "@std/assert";
import {
  DisposedError,
  drawExplanation,
  Mappable,
  MemoryLockedError,
  type RegionHandle,
  RegionManager,
  VaMapper,
} from "membacking";
import { openFds } from "../support/proc.ts";
import { range } from "../support/units.ts";
import { Rig } from "./rig.ts";

Deno.test("explain says what a request would do, and does nothing", () => {
  using rig = new Rig();
  rig.partition();
  const region = rig.backed(0x1000, 0x5000);
  rig.take();
  const before = rig.manager.inspect();
  const explained = rig.manager.explain(() => region.map({ writable: false }));
  assertEquals([rig.take(), rig.manager.inspect(), region.mapParams?.writable], [[], before, true]);
  assertEquals({ ...explained, noticed: explained.noticed.map(String) }, {
    steps: 3,
    systemCalls: 3,
    slotChanges: 2,
    noticed: ["0x1000-0x5000"],
    effects: [
      "unmap 0x1000-0x5000 on partition",
      "protect 0x1000-0x5000 read-only on host memory",
      "map 0x1000-0x5000 read-only on partition",
    ],
    error: null,
  });
  region.map({ writable: false });
  assertEquals(rig.take().length, explained.steps);
  assert(Object.isFrozen(explained) && Object.isFrozen(explained.effects));
});

Deno.test("explain says what a request would fail for", () => {
  using va = VaMapper.reserve(0x10_0000);
  using regions = new RegionManager(va);
  using file = Mappable.memfd("file", 0x4000);
  const region = regions.newRegion({ name: "r", range: range(0, 0x4000), priority: 0 });
  region.addMapping({ rangeInRegion: range(0, 0x4000), mappable: file });
  region.map();
  using _lock = regions.memory.lock(range(0, 0x1000));
  assertInstanceOf(regions.explain(() => region.unmap()).error, MemoryLockedError);
  assertInstanceOf(regions.explain(() => region.removeMappings(range(0, 0x8000))).error, RangeError);
  const reason = new Error("changed my mind");
  const explained = regions.explain(() => {
    throw reason;
  });
  assertStrictEquals(explained.error, reason);
  assertEquals([explained.steps, explained.effects.length], [0, 0]);
  assertInstanceOf(regions.explain((async () => {}) as () => void).error, TypeError);
  assertStrictEquals(region.mapParams?.writable, true);
});

Deno.test("handles made while explaining are dead afterwards, and files they brought along are closed", () => {
  using rig = new Rig();
  const fds = openFds();
  let stillborn: RegionHandle | undefined;
  const explained = rig.manager.explain(() => {
    stillborn = rig.region(0x1000, 0x3000);
    using file = Mappable.memfd("brought along", 0x2000);
    stillborn.addMapping({ rangeInRegion: range(0, 0x2000), mappable: file });
    stillborn.map();
  });
  assertEquals([explained.steps, explained.error], [1, null]);
  assertThrows(() => stillborn?.map(), DisposedError);
  assertEquals(openFds(), fds);
});

Deno.test("explain inside a batch tells of the batch as it would be, and leaves it as it is", () => {
  using rig = new Rig();
  const region = rig.backed(0x1000, 0x3000);
  rig.take();
  rig.manager.batch(() => {
    region.removeMappings(range(0, 0x1000));
    assertEquals(rig.manager.explain(() => region.unmap()).effects, ["remove 0x1000-0x3000 on host memory"]);
  });
  assertEquals(rig.take(), ["va.remove 0x1000-0x2000"]);
});

Deno.test("an explanation can be read", () => {
  using rig = new Rig();
  rig.partition();
  const region = rig.backed(0x1000, 0x3000, { file: "private" });
  assertEquals(drawExplanation(rig.manager.explain(() => region[Symbol.dispose]())).split("\n"), [
    "  1  unmap 0x1000-0x3000 on partition",
    "  2  park 0x1000-0x3000 on host memory",
    "  3  remove 0x1000-0x3000 on host memory",
    "  4  give up 0x1000-0x3000 of parked memory",
    "  4 steps, 4 system calls, 1 slot change; a guest notices nothing",
  ]);
  assertEquals(drawExplanation(rig.manager.explain(() => {})), "  nothing to do");
  assertEquals(
    drawExplanation(rig.manager.explain(() => region.removeMappings(range(0, 0x9000)))).split("\n")[0],
    "  would fail, and nothing would have changed",
  );
});
