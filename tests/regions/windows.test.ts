import { assertEquals, assertStrictEquals } from "@std/assert";
import { Rig, slots } from "./rig.ts";
import { range } from "../support/units.ts";

Deno.test(`holes "exit": slots cover exactly the backed parts`, () => {
  using rig = new Rig();
  const { target } = rig.partition();
  const region = rig.region(0x0, 0x8000, { holes: "exit" });
  region.map();
  assertEquals(slots(target), []);
  region.addMapping({ rangeInRegion: range(0x2000, 0x3000), mappable: rig.file() });
  assertEquals(slots(target), ["0x2000-0x3000 rw"]);
});

Deno.test(`holes "exit" is the default`, () => {
  using rig = new Rig();
  const { target } = rig.partition();
  rig.region(0x0, 0x8000).map();
  assertEquals(slots(target), []);
});

Deno.test(`holes "fault": one slot covers the whole region, with nothing mapped in it`, () => {
  using rig = new Rig();
  const { target } = rig.partition();
  const region = rig.region(0x1000, 0x9000, { holes: "fault" });
  region.map();
  assertEquals(slots(target), ["0x1000-0x9000 rw"]);
  assertStrictEquals(target.hvaAt(0x1000), rig.va.base + 0x1000);
});

Deno.test(`holes "fault": adding, replacing and removing mappings changes host memory only`, () => {
  using rig = new Rig();
  rig.partition();
  const region = rig.region(0x0, 0x8000, { holes: "fault" });
  region.map();
  rig.take();
  region.addMapping({ rangeInRegion: range(0x0, 0x4000), mappable: rig.file() });
  region.addMapping({ rangeInRegion: range(0x1000, 0x2000), mappable: rig.file(), writable: false });
  region.removeMappings(range(0x3000, 0x4000));
  assertEquals(rig.take(), ["va.map 0x0-0x4000 rw", "va.map 0x1000-0x2000 ro", "va.remove 0x3000-0x4000"]);
});

Deno.test(`holes "fault": the slot follows the region's own writability`, () => {
  using rig = new Rig();
  const { target } = rig.partition();
  const region = rig.region(0x0, 0x4000, { holes: "fault" });
  region.addMapping({ rangeInRegion: range(0x0, 0x1000), mappable: rig.file() });
  region.map({ writable: false });
  assertEquals([slots(target), rig.va.at(0)?.writable], [["0x0-0x4000 ro"], false]);
  region.map({ writable: true });
  assertEquals([slots(target), rig.va.at(0)?.writable], [["0x0-0x4000 rw"], true]);
});

Deno.test(`holes "fault": devices are told the mappings, not the window`, () => {
  using rig = new Rig();
  const { target } = rig.dmaTarget();
  const region = rig.region(0x0, 0x8000, { holes: "fault" });
  region.addMapping({ rangeInRegion: range(0x2000, 0x3000), mappable: rig.file() });
  region.map();
  assertEquals(target.mappings.map(({ range }) => `${range}`), ["0x2000-0x3000"]);
});

Deno.test(`holes "fault": a window that a region of higher priority splits has a slot for each fragment`, () => {
  using rig = new Rig({ overlap: "any" });
  const { target } = rig.partition();
  rig.region(0x0, 0x8000, { holes: "fault", priority: 0 }).map();
  const small = rig.region(0x2000, 0x3000, { priority: 1 });
  small.map();
  assertEquals(slots(target), ["0x0-0x2000 rw", "0x3000-0x8000 rw"]);
  small.unmap();
  assertEquals(target.accessAt(0x2000)?.writable, true);
});
