import { assertEquals } from "@std/assert";
import { Rig, slots, visible } from "./rig.ts";
import { range } from "../support/units.ts";

Deno.test("a region is visible only while it is mapped", () => {
  using rig = new Rig();
  const region = rig.region(0x1000, 0x3000);
  assertEquals(visible(region), []);
  region.map();
  assertEquals(visible(region), ["0x1000-0x3000"]);
  region.unmap();
  assertEquals(visible(region), []);
});

Deno.test("the mapped region of the highest priority wins, in whatever order they are mapped", () => {
  for (const order of [[0, 1, 2], [2, 1, 0], [1, 2, 0]]) {
    using rig = new Rig();
    const regions = [0, 1, 2].map((priority) => rig.region(0x1000, 0x3000, { priority }));
    for (const i of order) regions[i]!.map();
    assertEquals(regions.map(visible), [[], [], ["0x1000-0x3000"]], `mapped in the order ${order}`);
  }
});

Deno.test("of two regions of equal priority the one created first wins, even if it is mapped last", () => {
  using rig = new Rig();
  const first = rig.region(0x1000, 0x3000, { priority: 3 });
  const second = rig.region(0x1000, 0x3000, { priority: 3 });
  second.map();
  assertEquals(visible(second), ["0x1000-0x3000"]);
  first.map();
  assertEquals([visible(first), visible(second)], [["0x1000-0x3000"], []]);
  first.unmap();
  assertEquals([visible(first), visible(second)], [[], ["0x1000-0x3000"]]);
});

Deno.test("a region that loses stays mapped and shows again when the winner is unmapped", () => {
  using rig = new Rig();
  const low = rig.backed(0x1000, 0x3000, { priority: 0 });
  const high = rig.backed(0x1000, 0x3000, { priority: 1 });
  assertEquals(low.mapParams?.writable, true);
  assertEquals(visible(low), []);
  assertEquals(rig.memory(), ["0x1000-0x3000 1@0x0 rw"]);
  high.unmap();
  assertEquals(visible(low), ["0x1000-0x3000"]);
  assertEquals(rig.memory(), ["0x1000-0x3000 0@0x0 rw"]);
});

Deno.test("several regions beneath show again when the one above is removed", () => {
  using rig = new Rig();
  const left = rig.backed(0x0, 0x2000, { priority: 0 });
  const right = rig.backed(0x4000, 0x6000, { priority: 0 });
  const above = rig.backed(0x0, 0x8000, { priority: 1 });
  assertEquals([visible(left), visible(right)], [[], []]);
  above[Symbol.dispose]();
  assertEquals([visible(left), visible(right)], [["0x0-0x2000"], ["0x4000-0x6000"]]);
  assertEquals(rig.memory(), ["0x0-0x2000 0@0x0 rw", "0x4000-0x6000 1@0x0 rw"]);
});

Deno.test("the best beneath shows, not just any", () => {
  using rig = new Rig();
  const top = rig.region(0x0, 0x4000, { priority: 9 });
  const middle = rig.region(0x0, 0x4000, { priority: 5 });
  const bottom = rig.region(0x1000, 0x2000, { priority: 1 });
  for (const region of [bottom, middle, top]) region.map();
  top.unmap();
  assertEquals([visible(middle), visible(bottom)], [["0x0-0x4000"], []]);
  middle.unmap();
  assertEquals(visible(bottom), ["0x1000-0x2000"]);
});

Deno.test("an unmapped region beneath does not show", () => {
  using rig = new Rig();
  const { target } = rig.partition();
  const low = rig.backed(0x0, 0x2000, { priority: 0 });
  const high = rig.backed(0x0, 0x2000, { priority: 1 });
  low.unmap();
  high.unmap();
  assertEquals([visible(low), visible(high), slots(target)], [[], [], []]);
});

Deno.test("a mapped region hides what is below it even where it has no mapping", () => {
  using rig = new Rig();
  const { target } = rig.partition();
  rig.backed(0x0, 0x4000, { priority: 0 });
  const high = rig.region(0x0, 0x4000, { priority: 1 });
  high.addMapping({ rangeInRegion: range(0x1000, 0x2000), mappable: rig.file() });
  high.map();
  assertEquals(slots(target), ["0x1000-0x2000 rw"]);
  assertEquals(rig.memory(), ["0x1000-0x2000 1@0x0 rw"]);
});

Deno.test("a region keeps its mappings while it is unmapped", () => {
  using rig = new Rig();
  const { target } = rig.partition();
  const region = rig.backed(0x1000, 0x3000);
  region.unmap();
  assertEquals([rig.memory(), slots(target)], [[], []]);
  region.map();
  assertEquals(rig.memory(), ["0x1000-0x3000 0@0x0 rw"]);
  assertEquals(slots(target), ["0x1000-0x3000 rw"]);
});

Deno.test("mappings are added to and removed from an unmapped region without touching a target", () => {
  using rig = new Rig();
  rig.partition();
  rig.dmaTarget();
  const region = rig.region(0x1000, 0x5000);
  region.addMapping({ rangeInRegion: range(0, 0x4000), mappable: rig.file() });
  region.removeMappings(range(0x1000, 0x2000));
  assertEquals(rig.take(), []);
  region.map();
  assertEquals(rig.memory(), ["0x1000-0x2000 0@0x0 rw", "0x3000-0x5000 0@0x2000 rw"]);
});

Deno.test("mappings are added to and removed from a mapped region at once", () => {
  using rig = new Rig();
  const { target } = rig.partition();
  const region = rig.region(0x1000, 0x5000);
  region.map();
  assertEquals(slots(target), []);
  region.addMapping({ rangeInRegion: range(0x1000, 0x3000), mappable: rig.file() });
  assertEquals(slots(target), ["0x2000-0x4000 rw"]);
  region.removeMappings(range(0, 0x4000));
  assertEquals([slots(target), rig.memory()], [[], []]);
});

Deno.test("map without params means writable, executable and no prefetch", () => {
  using rig = new Rig();
  const region = rig.region(0x1000, 0x3000);
  assertEquals(region.mapParams, null);
  region.map();
  assertEquals({ ...region.mapParams }, { writable: true, executable: true, prefetch: false });
  region.map({ writable: false });
  assertEquals({ ...region.mapParams }, { writable: false, executable: true, prefetch: false });
  region.unmap();
  assertEquals(region.mapParams, null);
});

Deno.test("mapping again with the same params touches nothing", () => {
  using rig = new Rig();
  rig.partition();
  rig.dmaTarget();
  const region = rig.backed(0x1000, 0x3000);
  region.map({ writable: false, prefetch: true });
  rig.take();
  region.map({ writable: false, executable: true, prefetch: true });
  assertEquals(rig.take(), []);
});

Deno.test("unmapping an unmapped region touches nothing", () => {
  using rig = new Rig();
  rig.partition();
  const region = rig.region(0x1000, 0x3000);
  region.unmap();
  assertEquals(rig.take(), []);
});

Deno.test("remapping read-only changes slot, protection and DMA mapping, and back", () => {
  using rig = new Rig();
  const { target } = rig.partition();
  const region = rig.backed(0x1000, 0x3000);
  rig.take();
  region.map({ writable: false });
  assertEquals(rig.take(), [
    "partition.unmapRange 0x1000-0x3000",
    "va.protect 0x1000-0x3000 ro",
    "partition.mapRange 0x1000-0x3000 ro",
  ]);
  region.map({ writable: true });
  assertEquals(rig.take(), [
    "partition.unmapRange 0x1000-0x3000",
    "va.protect 0x1000-0x3000 rw",
    "partition.mapRange 0x1000-0x3000 rw",
  ]);
  assertEquals(target.accessAt(0x1000), { writable: true, executable: true });
});

Deno.test("remapping without the right to execute tells the partition and leaves host memory alone", () => {
  using rig = new Rig();
  const { target } = rig.partition();
  const region = rig.backed(0x1000, 0x3000);
  rig.take();
  region.map({ executable: false });
  assertEquals(target.accessAt(0x1000), { writable: true, executable: false });
  assertEquals(rig.take().filter((call) => call.startsWith("va.")), []);
});

Deno.test("remapping a hidden region touches nothing until it shows", () => {
  using rig = new Rig();
  const { target } = rig.partition();
  const low = rig.backed(0x1000, 0x3000, { priority: 0 });
  const high = rig.backed(0x1000, 0x3000, { priority: 1 });
  rig.take();
  low.map({ writable: false });
  assertEquals(rig.take(), []);
  high.unmap();
  assertEquals(slots(target), ["0x1000-0x3000 ro"]);
});

Deno.test("memory is writable where both region and mapping are", () => {
  using rig = new Rig();
  const { target } = rig.partition();
  const region = rig.region(0x0, 0x4000);
  const file = rig.file();
  region.addMapping({ rangeInRegion: range(0x0, 0x2000), mappable: file, writable: true });
  region.addMapping({ rangeInRegion: range(0x2000, 0x4000), mappable: file, fileOffset: 0x8000, writable: false });
  region.map({ writable: true });
  assertEquals(slots(target), ["0x0-0x2000 rw", "0x2000-0x4000 ro"]);
  assertEquals(rig.memory(), ["0x0-0x2000 0@0x0 rw", "0x2000-0x4000 0@0x8000 ro"]);
  region.map({ writable: false });
  assertEquals(slots(target), ["0x0-0x2000 ro", "0x2000-0x4000 ro"]);
  assertEquals(rig.memory(), ["0x0-0x2000 0@0x0 ro", "0x2000-0x4000 0@0x8000 ro"]);
});

Deno.test("neighbouring parts of one file keep their own writability", () => {
  using rig = new Rig();
  const { target } = rig.partition();
  const region = rig.region(0x0, 0x4000);
  const file = rig.file();
  region.addMapping({ rangeInRegion: range(0x0, 0x2000), mappable: file, writable: true });
  region.addMapping({ rangeInRegion: range(0x2000, 0x4000), mappable: file, fileOffset: 0x2000, writable: false });
  region.map();
  assertEquals([rig.va.at(0x1000)?.writable, rig.va.at(0x2000)?.writable], [true, false]);
  assertEquals(slots(target), ["0x0-0x2000 rw", "0x2000-0x4000 ro"]);
});

Deno.test("ids ascend and stay, names need not be unique", () => {
  using rig = new Rig();
  const a = rig.region(0x0, 0x1000, { name: "twin" });
  const b = rig.region(0x1000, 0x2000, { name: "twin" });
  assertEquals([a.name, b.name, b.id > a.id], ["twin", "twin", true]);
  assertEquals([`${a.range}`, a.priority], ["0x0-0x1000", 0]);
});
