// Requests that are one system call: nothing of what holds for others may be missing for them.

import { assertEquals, assertStrictEquals, assertThrows } from "@std/assert";
import {
  LimitError,
  Mappable,
  MappingError,
  MemoryLockedError,
  ReentrancyError,
  RegionManager,
  VaMapper,
} from "membacking";
import { fdFlags } from "../support/proc.ts";
import { Rig, type RigOptions, slots } from "./rig.ts";
import { range } from "../support/units.ts";

/** A window with one mapping in the middle, between holes. */
function newWindow(options?: RigOptions) {
  const rig = new Rig(options);
  const { target, handle } = rig.partition();
  const region = rig.region(0x10000, 0x20000, { holes: "fault" });
  region.map();
  const first = rig.file();
  region.addMapping({ rangeInRegion: range(0x4000, 0x8000), mappable: first });
  rig.take();
  return { rig, target, handle, region, first };
}

const MIDDLE = range(0x4000, 0x8000);

Deno.test("a mapping that is put in place, replaced and taken away is one call each, and the slot stays", () => {
  const { rig, target, region } = newWindow();
  using _rig = rig;
  region.addMapping({ rangeInRegion: MIDDLE, mappable: rig.file(), fileOffset: 0x1000 });
  assertEquals(rig.memory(), ["0x14000-0x18000 1@0x1000 rw"]);
  region.addMapping({ rangeInRegion: range(0xa000, 0xb000), mappable: rig.file(), writable: false });
  region.removeMappings(MIDDLE);
  assertEquals(rig.take(), ["va.map 0x14000-0x18000 rw", "va.map 0x1a000-0x1b000 ro", "va.remove 0x14000-0x18000"]);
  assertEquals(rig.memory(), ["0x1a000-0x1b000 2@0x0 ro"]);
  assertEquals(slots(target), ["0x10000-0x20000 rw"]);
});

Deno.test("the very same mapping again is no call", () => {
  const { rig, region, first } = newWindow();
  using _rig = rig;
  region.addMapping({ rangeInRegion: MIDDLE, mappable: first });
  assertEquals(rig.take(), []);
});

Deno.test("private memory is not replaced in place", () => {
  const { rig, region } = newWindow();
  using _rig = rig;
  const rangeInRegion = range(0xa000, 0xb000);
  region.addMapping({ rangeInRegion, mappable: "private" });
  rig.take();
  assertThrows(() => region.addMapping({ rangeInRegion, mappable: rig.file() }), MappingError, "would be lost");
  assertEquals(rig.take(), []);
});

Deno.test("a call that fails is undone, keeps no file open and may be tried again", () => {
  const { rig, region } = newWindow();
  using _rig = rig;
  const file = Mappable.memfd("refused", 0x4000);
  const { fd } = file;
  const add = () => region.addMapping({ rangeInRegion: MIDDLE, mappable: file });
  for (const mode of ["nothing-done", "done-then-failed", "old-state-destroyed"] as const) {
    rig.faults.failAfter(0, { mode });
    const error = assertThrows(add, MappingError, "the request was undone");
    assertEquals([`${error.range}`, error.outOfStep], ["0x14000-0x18000", []]);
    assertEquals(rig.memory(), ["0x14000-0x18000 0@0x0 rw"]);
  }
  rig.faults.failAfter(0, { mode: "done-then-failed" });
  assertThrows(() => region.removeMappings(MIDDLE), MappingError);
  assertEquals(rig.memory(), ["0x14000-0x18000 0@0x0 rw"]);
  add();
  region.removeMappings(MIDDLE);
  file[Symbol.dispose]();
  assertStrictEquals(fdFlags(fd), undefined);
});

Deno.test("a request over a slot of its own names the target that failed, and puts the slot back", () => {
  using rig = new Rig();
  const { target } = rig.partition();
  const region = rig.region(0x10000, 0x20000);
  region.map();
  const mapping = { rangeInRegion: MIDDLE, mappable: rig.file() };
  // Coming, host memory is first; going, the slot is.
  const failing = (calls: number, request: () => void) => {
    rig.faults.failAfter(calls);
    return assertThrows(request, MappingError, "the request was undone").message.split(",")[0];
  };
  assertEquals(failing(0, () => region.addMapping(mapping)), "Cannot map 0x14000-0x18000 on host memory");
  assertEquals(failing(1, () => region.addMapping(mapping)), "Cannot map 0x14000-0x18000 on partition");
  assertEquals([rig.memory(), slots(target)], [[], []]);
  region.addMapping(mapping);
  assertEquals(failing(0, () => region.removeMappings(MIDDLE)), "Cannot unmap 0x14000-0x18000 on partition");
  assertEquals(failing(1, () => region.removeMappings(MIDDLE)), "Cannot remove 0x14000-0x18000 on host memory");
  assertEquals([rig.memory(), slots(target)], [["0x14000-0x18000 0@0x0 rw"], ["0x14000-0x18000 rw"]]);
});

Deno.test("what undo could not put back is mended by the next request over the region, elsewhere in it too", () => {
  const { rig, region } = newWindow();
  using _rig = rig;
  rig.faults.failAfter(0, { mode: "old-state-destroyed", times: 2 });
  const error = assertThrows(() => region.addMapping({ rangeInRegion: MIDDLE, mappable: rig.file() }), MappingError);
  assertEquals(error.outOfStep.map(({ range }) => `${range}`), ["0x14000-0x18000"]);
  assertEquals(rig.memory(), []);
  region.addMapping({ rangeInRegion: range(0xa000, 0xb000), mappable: rig.file() });
  assertEquals(rig.memory(), ["0x14000-0x18000 0@0x0 rw", "0x1a000-0x1b000 2@0x0 rw"]);
});

Deno.test("a partition that was disposed leaves the map with the next request", () => {
  const { rig, target, region } = newWindow();
  using _rig = rig;
  target[Symbol.dispose]();
  region.removeMappings(MIDDLE);
  assertEquals(rig.manager.inspect().partitions, []);
});

Deno.test("a mapping beyond the limit of the host is refused before anything is done", () => {
  const { rig, region } = newWindow({ limit: 4 });
  using _rig = rig;
  const add = (start: number) =>
    region.addMapping({ rangeInRegion: range(start, start + 0x1000), mappable: rig.file() });
  const error = assertThrows(() => {
    for (let start = 0x9000; start < 0xf000; start += 0x2000) add(start);
  }, LimitError);
  assertStrictEquals(error.limit, "host mappings");
  assertEquals(rig.take().filter((call) => call.endsWith("failed")), []);
});

Deno.test("locked memory is neither replaced nor taken away", () => {
  using va = VaMapper.reserve(0x10_0000);
  using regions = new RegionManager(va);
  using file = Mappable.memfd("locked", 0x1000);
  using region = regions.newRegion({ name: "window", range: range(0, 0x8000), priority: 0, holes: "fault" });
  const mapping = { rangeInRegion: range(0x2000, 0x3000), mappable: file };
  region.addMapping(mapping);
  region.map();
  {
    using lock = regions.memory.lock(range(0x2000, 0x3000), { write: true });
    using other = Mappable.memfd("other", 0x1000);
    assertThrows(() => region.addMapping({ ...mapping, mappable: other }), MemoryLockedError);
    assertThrows(() => region.removeMappings(mapping.rangeInRegion), MemoryLockedError);
    lock.bytes[0] = 7;
    assertStrictEquals(regions.memory.readUint8(0x2000), 7);
  }
  region.removeMappings(mapping.rangeInRegion);
});

Deno.test("a logger is told of each request all the same", () => {
  const told: string[] = [];
  const quiet = () => {};
  const { rig, region } = newWindow({
    logger: { debug: (message) => void told.push(String(message)), info: quiet, warn: quiet, error: quiet },
  });
  using _rig = rig;
  told.length = 0;
  region.removeMappings(MIDDLE);
  region.unmap();
  assertEquals(told.map((message) => message.split(":")[0]), ["remove mappings", "unmap"]);
});

Deno.test("a partition that makes a request while it is asked how it is gets an error, and nothing changes", () => {
  using rig = new Rig();
  const region = rig.region(0x0, 0x8000, { holes: "fault" });
  let meddle = false;
  rig.manager.addPartition({
    get disposed() {
      if (meddle) {
        meddle = false;
        region.unmap();
      }
      return false;
    },
    mapRange: () => {},
    unmapRange: () => {},
  });
  region.map();
  const file = Mappable.memfd("refused", 0x1000);
  const { fd } = file;
  const before = rig.manager.inspect();
  meddle = true;
  assertThrows(() => region.addMapping({ rangeInRegion: range(0x1000, 0x2000), mappable: file }), ReentrancyError);
  assertEquals(rig.manager.inspect(), before);
  file[Symbol.dispose]();
  assertStrictEquals(fdFlags(fd), undefined);
});
