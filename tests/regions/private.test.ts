import { assertEquals, assertStrictEquals, assertThrows } from "@std/assert";
import { MappingError } from "membacking";
import { Rig, slots } from "./rig.ts";
import { range } from "../support/units.ts";

Deno.test("private memory is mapped without a file and reaches the guest and devices", () => {
  using rig = new Rig();
  const { target } = rig.partition();
  const { target: iommu } = rig.dmaTarget();
  rig.backed(0x1000, 0x3000, { file: "private" });
  assertEquals(rig.memory(), ["0x1000-0x3000 private@0x0 rw"]);
  assertEquals(slots(target), ["0x1000-0x3000 rw"]);
  assertStrictEquals(iommu.at(0x1000)?.mappable, null);
  assertStrictEquals(iommu.at(0x2000)?.hva, rig.va.base + 0x1000);
});

Deno.test("a region with private memory cannot be unmapped", () => {
  using rig = new Rig();
  const region = rig.backed(0x1000, 0x3000, { file: "private" });
  rig.take();
  const error = assertThrows(() => region.unmap(), MappingError);
  assertEquals(`${error.range}`, "0x1000-0x3000");
  assertEquals(rig.take(), []);
  assertEquals(region.mapParams?.writable, true);
});

Deno.test("private memory cannot be shadowed by a region of higher priority", () => {
  using rig = new Rig({ overlap: "any" });
  rig.backed(0x1000, 0x4000, { file: "private", priority: 0 });
  const above = rig.region(0x2000, 0x3000, { priority: 1 });
  above.addMapping({ rangeInRegion: range(0, 0x1000), mappable: rig.file() });
  rig.take();
  assertThrows(() => above.map(), MappingError);
  assertEquals([above.mapParams, rig.take()], [null, []]);
});

Deno.test("private memory cannot be shadowed by a hole either", () => {
  using rig = new Rig({ overlap: "any" });
  rig.backed(0x1000, 0x4000, { file: "private", priority: 0 });
  const above = rig.region(0x2000, 0x3000, { priority: 1 });
  assertThrows(() => above.map(), MappingError);
});

Deno.test("private memory cannot be replaced by a mapping", () => {
  using rig = new Rig();
  const region = rig.backed(0x1000, 0x4000, { file: "private" });
  const generation = rig.va.at(0x1000)?.generation;
  for (const mappable of [rig.file(), "private" as const]) {
    assertThrows(() => region.addMapping({ rangeInRegion: range(0, 0x1000), mappable }), MappingError);
  }
  assertStrictEquals(rig.va.at(0x1000)?.generation, generation);
});

Deno.test("private memory beside other mappings does not hinder them", () => {
  using rig = new Rig();
  const region = rig.region(0x0, 0x4000);
  region.addMapping({ rangeInRegion: range(0x0, 0x2000), mappable: "private" });
  region.map();
  const generation = rig.va.at(0)?.generation;
  region.addMapping({ rangeInRegion: range(0x2000, 0x4000), mappable: rig.file() });
  region.addMapping({ rangeInRegion: range(0x3000, 0x4000), mappable: rig.file() });
  region.removeMappings(range(0x2000, 0x3000));
  assertStrictEquals(rig.va.at(0)?.generation, generation);
});

Deno.test("private memory is made read-only by protection, never by a new mapping", () => {
  using rig = new Rig();
  const { target } = rig.partition();
  const region = rig.backed(0x1000, 0x3000, { file: "private" });
  rig.take();
  region.map({ writable: false });
  assertEquals(rig.take(), [
    "partition.unmapRange 0x1000-0x3000",
    "va.protect 0x1000-0x3000 ro",
    "partition.mapRange 0x1000-0x3000 ro",
  ]);
  region.map({ writable: true });
  assertEquals(slots(target), ["0x1000-0x3000 rw"]);
  assertStrictEquals(rig.va.at(0x1000)?.generation, 1);
});

Deno.test("private memory is removed with its mapping, as the very last step", () => {
  using rig = new Rig();
  rig.partition();
  const { target: iommu } = rig.dmaTarget();
  const region = rig.backed(0x1000, 0x4000, { file: "private" });
  rig.take();
  region.removeMappings(range(0x1000, 0x2000));
  assertEquals(rig.take().at(-1), "va.remove 0x2000-0x3000");
  assertEquals(rig.memory(), ["0x1000-0x2000 private@0x0 rw", "0x3000-0x4000 private@0x0 rw"]);
  assertStrictEquals(rig.va.at(0x1000)?.generation, rig.va.at(0x3000)?.generation);
  assertEquals(iommu.mappings.length, 2);
});

Deno.test("a region with private memory is removed by disposing it, its memory last of all", () => {
  using rig = new Rig();
  rig.partition();
  rig.dmaTarget();
  const region = rig.region(0x1000, 0x4000);
  region.addMapping({ rangeInRegion: range(0x0, 0x1000), mappable: "private" });
  region.addMapping({ rangeInRegion: range(0x1000, 0x3000), mappable: rig.file() });
  region.map();
  rig.take();
  region[Symbol.dispose]();
  assertEquals(rig.take().at(-1), "va.remove 0x1000-0x2000");
  assertEquals(rig.memory(), []);
});

Deno.test("two neighbouring private mappings stay two memories", () => {
  using rig = new Rig();
  const region = rig.region(0x0, 0x2000);
  region.map();
  region.addMapping({ rangeInRegion: range(0x0, 0x1000), mappable: "private" });
  region.addMapping({ rangeInRegion: range(0x1000, 0x2000), mappable: "private" });
  region.removeMappings(range(0x0, 0x1000));
  assertEquals(rig.memory(), ["0x1000-0x2000 private@0x0 rw"]);
});
