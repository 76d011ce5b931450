import { assertEquals, assertInstanceOf, assertStrictEquals, assertThrows } from "@std/assert";
import { LimitError, MappingError } from "membacking";
import { RecordingPartition } from "membacking/testing";
import { Rig, slots } from "./rig.ts";
import { range } from "../support/units.ts";

Deno.test("a slot's host address is the reservation's base plus its guest address", () => {
  using rig = new Rig();
  const { target } = rig.partition();
  rig.backed(0x3000, 0x5000, { fileOffset: 0x8000 });
  assertStrictEquals(target.hvaAt(0x4000), rig.va.base + 0x4000);
});

Deno.test("addPartition replays what is visible", () => {
  using rig = new Rig();
  const region = rig.region(0x0, 0x8000);
  region.addMapping({ rangeInRegion: range(0x1000, 0x2000), mappable: rig.file() });
  region.addMapping({ rangeInRegion: range(0x4000, 0x6000), mappable: rig.file(), writable: false });
  region.map();
  rig.backed(0x0, 0x8000, { priority: 0 });
  rig.take();
  const { target } = rig.partition({ name: "late" });
  assertEquals(slots(target), ["0x1000-0x2000 rw", "0x4000-0x6000 ro"]);
  assertEquals(rig.take(), ["late.mapRange 0x1000-0x2000 rw", "late.mapRange 0x4000-0x6000 ro"]);
});

Deno.test("disposing what addPartition returned unmaps everything, and later changes pass it by", () => {
  using rig = new Rig();
  const { target, handle } = rig.partition();
  const region = rig.backed(0x1000, 0x3000);
  handle[Symbol.dispose]();
  assertEquals(slots(target), []);
  rig.take();
  region.map({ writable: false });
  assertEquals(rig.take(), ["va.protect 0x1000-0x3000 ro"]);
  handle[Symbol.dispose]();
});

Deno.test("several partitions are told the same", () => {
  using rig = new Rig();
  const a = rig.partition({ name: "a" }).target;
  const region = rig.backed(0x1000, 0x3000);
  const b = rig.partition({ name: "b" }).target;
  region.addMapping({ rangeInRegion: range(0x1000, 0x2000), mappable: rig.file(), writable: false });
  assertEquals(slots(a), ["0x1000-0x2000 rw", "0x2000-0x3000 ro"]);
  assertEquals(slots(b), slots(a));
});

Deno.test("a partition attached twice is refused", () => {
  using rig = new Rig();
  const { target } = rig.partition();
  assertThrows(() => rig.manager.addPartition(target), TypeError);
});

Deno.test("a detached partition can be attached again", () => {
  using rig = new Rig();
  const { target, handle } = rig.partition();
  rig.backed(0x1000, 0x3000);
  handle[Symbol.dispose]();
  rig.manager.addPartition(target, { offset: 0x10000 });
  assertEquals(slots(target), ["0x11000-0x13000 rw"]);
});

Deno.test("an offset makes an alias: same memory, other guest addresses", () => {
  using rig = new Rig();
  const { target } = rig.partition({ name: "low" });
  const { target: alias } = rig.partition({ name: "high", offset: 0x40_0000_0000 });
  const region = rig.backed(0x1000, 0x3000);
  assertEquals(slots(alias), ["0x4000001000-0x4000003000 rw"]);
  assertStrictEquals(alias.hvaAt(0x40_0000_1000), target.hvaAt(0x1000));
  region.unmap();
  assertEquals(slots(alias), []);
});

Deno.test("replacing a writable region by another over the same range is no partition call at all", () => {
  using rig = new Rig();
  rig.partition();
  const low = rig.backed(0x1000, 0x5000, { priority: 0 });
  const high = rig.backed(0x1000, 0x5000, { priority: 1 });
  rig.take();
  high.unmap();
  high.map();
  low.addMapping({ rangeInRegion: range(0, 0x4000), mappable: rig.file() });
  high.addMapping({ rangeInRegion: range(0, 0x4000), mappable: rig.file() });
  assertEquals(rig.take().filter((call) => call.startsWith("partition.")), []);
});

Deno.test("a slot that keeps its access is left alone when its neighbours change", () => {
  using rig = new Rig();
  rig.partition();
  const region = rig.region(0x0, 0x3000);
  for (const start of [0x0, 0x1000, 0x2000]) {
    region.addMapping({ rangeInRegion: range(start, start + 0x1000), mappable: rig.file() });
  }
  region.map();
  rig.take();
  region.removeMappings(range(0x1000, 0x2000));
  assertEquals(rig.take().filter((call) => call.startsWith("partition.")), ["partition.unmapRange 0x1000-0x2000"]);
});

Deno.test("a slot that is cut comes back in parts around the change", () => {
  using rig = new Rig();
  rig.partition();
  const region = rig.backed(0x0, 0x8000);
  rig.take();
  region.addMapping({ rangeInRegion: range(0x2000, 0x3000), mappable: rig.file(), writable: false });
  assertEquals(rig.take().filter((call) => call.startsWith("partition.")), [
    "partition.unmapRange 0x0-0x8000",
    "partition.mapRange 0x0-0x2000 rw",
    "partition.mapRange 0x2000-0x3000 ro",
    "partition.mapRange 0x3000-0x8000 rw",
  ]);
});

Deno.test("slots start and end at mapping edges, so that removing one mapping disturbs no other", () => {
  using rig = new Rig();
  const { target } = rig.partition();
  const region = rig.region(0x0, 0x3000);
  const file = rig.file();
  region.addMapping({ rangeInRegion: range(0x0, 0x1000), mappable: file });
  region.addMapping({ rangeInRegion: range(0x1000, 0x3000), mappable: file, fileOffset: 0x8000 });
  region.map();
  assertEquals(slots(target), ["0x0-0x1000 rw", "0x1000-0x3000 rw"]);
});

Deno.test("ranges that one request makes are joined when the partition would be full otherwise", () => {
  using rig = new Rig();
  const { target } = rig.partition({ capacity: 2 });
  const region = rig.region(0x0, 0x8000);
  for (let start = 0; start < 0x4000; start += 0x1000) {
    region.addMapping({ rangeInRegion: range(start, start + 0x1000), mappable: rig.file() });
  }
  region.map();
  assertEquals(target.ranges.length <= 2, true);
  for (let gpa = 0; gpa < 0x4000; gpa += 0x1000) assertEquals(target.accessAt(gpa)?.writable, true);
  assertEquals(target.accessAt(0x4000), null);
});

Deno.test("ranges are joined only as far as the capacity asks for", () => {
  using rig = new Rig();
  const { target } = rig.partition({ capacity: 3 });
  const region = rig.region(0x0, 0x8000);
  for (let start = 0; start < 0x4000; start += 0x1000) {
    region.addMapping({ rangeInRegion: range(start, start + 0x1000), mappable: rig.file() });
  }
  region.map();
  assertStrictEquals(target.ranges.length, 3);
});

Deno.test("a partition that is full and cannot be helped by joining refuses with the numbers, and nothing changes", () => {
  using rig = new Rig();
  const { target } = rig.partition({ capacity: 2 });
  rig.backed(0x0, 0x1000);
  rig.backed(0x2000, 0x3000);
  rig.take();
  const third = rig.region(0x4000, 0x5000);
  third.addMapping({ rangeInRegion: range(0, 0x1000), mappable: rig.file() });
  const error = assertThrows(() => third.map(), LimitError);
  assertEquals([error.have, error.want], [2, 3]);
  assertEquals([third.mapParams, rig.take(), slots(target).length], [null, [], 2]);
});

Deno.test("a partition that is too small for what is visible cannot be attached", () => {
  using rig = new Rig();
  rig.backed(0x0, 0x1000);
  rig.backed(0x2000, 0x3000);
  rig.take();
  const small = new RecordingPartition({ capacity: 1, calls: rig.calls });
  assertThrows(() => rig.manager.addPartition(small), LimitError);
  assertEquals(rig.take(), []);
  rig.manager.addPartition(new RecordingPartition({ capacity: 2 }));
});

Deno.test("host mappings that would run out are refused with the numbers, and nothing changes", () => {
  using rig = new Rig({ limit: 4 });
  const region = rig.region(0x0, 0x10000);
  region.map();
  let refused: unknown;
  for (let start = 0; start < 0x10000 && refused === undefined; start += 0x2000) {
    const before = rig.memory();
    try {
      region.addMapping({ rangeInRegion: range(start, start + 0x1000), mappable: rig.file() });
    } catch (error) {
      refused = error;
      assertEquals(rig.memory(), before);
    }
  }
  assertInstanceOf(refused, LimitError);
  assertEquals(rig.take().filter((call) => call.endsWith("failed")), []);
});

Deno.test("a partition that is disposed is left alone, whatever happens after", () => {
  using rig = new Rig();
  const { target, handle } = rig.partition();
  const other = rig.partition({ name: "other" }).target;
  const region = rig.backed(0x1000, 0x3000);
  target.dispose();
  rig.take();
  region.map({ writable: false });
  region.unmap();
  region.map();
  region[Symbol.dispose]();
  handle[Symbol.dispose]();
  assertEquals(rig.take().filter((call) => call.startsWith("partition.")), []);
  assertEquals(slots(other), []);
});

Deno.test("a partition may be disposed before or after its handle, the region and the manager", () => {
  const orders = [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1], [1, 3, 0, 2], [2, 3, 1, 0]];
  for (const order of orders) {
    using rig = new Rig();
    const { target, handle } = rig.partition();
    const region = rig.backed(0x1000, 0x3000);
    const things: Disposable[] = [target, handle, region, rig.manager];
    for (const i of order) things[i]![Symbol.dispose]();
    assertEquals([slots(target), rig.memory()], [[], []], `disposed in the order ${order}`);
  }
});

Deno.test("pinned: memory is pinned after it is mapped and unpinned before it goes", () => {
  using rig = new Rig();
  const { target } = rig.partition({ pin: true });
  const region = rig.backed(0x1000, 0x3000);
  assertEquals(target.pinned.map(String), ["0x1000-0x3000"]);
  rig.take();
  region.unmap();
  assertEquals(rig.take(), [
    "partition.unpinRange 0x1000-0x3000",
    "partition.unmapRange 0x1000-0x3000",
    "va.remove 0x1000-0x3000",
  ]);
  assertEquals(target.pinned, []);
});

Deno.test("pinned: memory that replaces pinned memory is pinned anew, though its slot stays", () => {
  using rig = new Rig();
  const { target } = rig.partition({ pin: true });
  const region = rig.backed(0x1000, 0x5000);
  rig.take();
  region.addMapping({ rangeInRegion: range(0x1000, 0x2000), mappable: rig.file() });
  assertEquals(rig.take(), [
    "partition.unpinRange 0x2000-0x3000",
    "va.map 0x2000-0x3000 rw",
    "partition.pinRange 0x2000-0x3000",
  ]);
  assertEquals(target.pinned.map(String), ["0x1000-0x5000"]);
});

Deno.test("pinned: addPartition pins what is there, its handle unpins it", () => {
  using rig = new Rig();
  rig.backed(0x1000, 0x3000);
  const { target, handle } = rig.partition({ pin: true, offset: 0x10000 });
  assertEquals(target.pinned.map(String), ["0x11000-0x13000"]);
  handle[Symbol.dispose]();
  assertEquals(target.pinned, []);
});

Deno.test("pinned: a pin that fails fails the request", () => {
  using rig = new Rig();
  const { target } = rig.partition({ pin: true });
  const region = rig.region(0x1000, 0x3000);
  region.addMapping({ rangeInRegion: range(0, 0x2000), mappable: rig.file() });
  rig.faults.failAfter(0, { on: ({ method }) => method === "pinRange" });
  const error = assertThrows(() => region.map(), MappingError);
  assertStrictEquals(error.cause, rig.faults.fired[0]);
  assertEquals([slots(target), target.pinned, rig.memory(), region.mapParams], [[], [], [], null]);
});

Deno.test("not pinned: nothing is pinned without the option", () => {
  using rig = new Rig();
  const { target } = rig.partition();
  rig.backed(0x1000, 0x3000);
  assertEquals(target.pinned, []);
});

Deno.test("prefetch: memory is brought in after it is mapped", () => {
  using rig = new Rig();
  rig.partition();
  const region = rig.region(0x1000, 0x3000);
  region.addMapping({ rangeInRegion: range(0, 0x2000), mappable: rig.file() });
  region.map({ prefetch: true });
  assertEquals(rig.take(), [
    "va.map 0x1000-0x3000 rw",
    "partition.mapRange 0x1000-0x3000 rw",
    "partition.prefetchRange 0x1000-0x3000",
  ]);
});

Deno.test("prefetch: what replaces memory of a prefetched region is brought in too, and only that", () => {
  using rig = new Rig();
  rig.partition();
  const region = rig.backed(0x1000, 0x5000);
  region.map({ prefetch: true });
  rig.take();
  region.addMapping({ rangeInRegion: range(0x1000, 0x2000), mappable: rig.file() });
  assertEquals(rig.take(), ["va.map 0x2000-0x3000 rw", "partition.prefetchRange 0x2000-0x3000"]);
});

Deno.test("prefetch: turning it on for a mapped region brings its memory in without a gap", () => {
  using rig = new Rig();
  rig.partition();
  const region = rig.backed(0x1000, 0x5000);
  rig.take();
  region.map({ prefetch: true });
  assertEquals(rig.take(), ["partition.prefetchRange 0x1000-0x5000"]);
});

Deno.test("prefetch: a failure is logged and fails nothing", () => {
  const warnings: string[] = [];
  const logger = { debug() {}, info() {}, warn: (message: string) => void warnings.push(message), error() {} };
  using rig = new Rig({ logger });
  const { target } = rig.partition();
  const region = rig.region(0x1000, 0x3000);
  region.addMapping({ rangeInRegion: range(0, 0x2000), mappable: rig.file() });
  rig.faults.failAfter(0, { on: ({ method }) => method === "prefetchRange" });
  region.map({ prefetch: true });
  assertEquals(slots(target), ["0x1000-0x3000 rw"]);
  assertEquals(warnings.length, 1);
});

Deno.test("a partition needs neither pinRange nor prefetchRange", () => {
  using rig = new Rig();
  const ranges: string[] = [];
  rig.manager.addPartition({
    mapRange: (_hva, range) => void ranges.push(`${range}`),
    unmapRange: (range) => void ranges.splice(ranges.indexOf(`${range}`), 1),
  }, { pin: true });
  const region = rig.backed(0x1000, 0x3000);
  region.map({ prefetch: true });
  assertEquals(ranges, ["0x1000-0x3000"]);
});
