import { assertEquals, assertStrictEquals, assertThrows } from "@std/assert";
import { Mappable, MappingError } from "membacking";
import { Rig, slots } from "./rig.ts";
import { openFds } from "../support/proc.ts";
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

Deno.test("private memory of a region that is unmapped is parked, and is there again when it is mapped", () => {
  using rig = new Rig();
  const { target } = rig.partition();
  const region = rig.backed(0x1000, 0x3000, { file: "private" });
  rig.take();
  region.unmap();
  assertEquals(rig.take(), [
    "partition.unmapRange 0x1000-0x3000",
    "va.park 0x1000-0x3000",
    "va.remove 0x1000-0x3000",
  ]);
  assertEquals([rig.memory(), slots(target), rig.va.parkedBytes], [[], [], 0x2000]);
  region.map({ writable: false });
  assertEquals(rig.take(), [
    "va.restore 0x1000-0x3000 ro",
    "partition.mapRange 0x1000-0x3000 ro",
    "va.discard 0x1000-0x3000",
  ]);
  assertEquals([rig.memory(), rig.va.at(0x1000)?.generation], [["0x1000-0x3000 private@0x0 ro"], 1]);
});

Deno.test("private memory that a file or a hole of higher priority hides is parked, and comes back beneath it", () => {
  using rig = new Rig({ overlap: "any" });
  rig.backed(0x1000, 0x5000, { file: "private", priority: 0 });
  const above = rig.region(0x2000, 0x4000, { priority: 1 });
  above.addMapping({ rangeInRegion: range(0, 0x1000), mappable: rig.file() });
  above.map();
  assertEquals(rig.memory(), [
    "0x1000-0x2000 private@0x0 rw",
    "0x2000-0x3000 0@0x0 rw",
    "0x4000-0x5000 private@0x0 rw",
  ]);
  assertEquals(rig.va.parkedBytes, 0x2000);
  above[Symbol.dispose]();
  assertEquals([rig.va.at(0x2000)?.generation, rig.va.at(0x3000)?.generation, rig.va.parkedBytes], [1, 1, 0]);
});

Deno.test("two private memories change places over the same addresses and stay what they are", () => {
  using rig = new Rig();
  const low = rig.backed(0x1000, 0x3000, { file: "private", priority: 0 });
  const high = rig.backed(0x1000, 0x3000, { file: "private", priority: 1 });
  const above = rig.va.at(0x1000)?.generation;
  high.unmap();
  assertEquals(rig.va.at(0x1000)?.generation, 1);
  high.map();
  assertEquals(rig.va.at(0x1000)?.generation, above);
  low[Symbol.dispose]();
  assertEquals(rig.va.parkedBytes, 0);
});

Deno.test("a region that holds private memory and hides another can be removed, and what is beneath shows again", () => {
  using rig = new Rig();
  rig.backed(0x1000, 0x3000, { priority: 0 });
  const above = rig.backed(0x1000, 0x3000, { file: "private", priority: 1 });
  above[Symbol.dispose]();
  assertEquals([rig.memory(), rig.va.parkedBytes], [["0x1000-0x3000 0@0x0 rw"], 0]);
});

Deno.test("private memory that is removed while it is parked is given up", () => {
  using rig = new Rig();
  const region = rig.backed(0x1000, 0x5000, { file: "private" });
  region.unmap();
  rig.take();
  region.removeMappings(range(0x0, 0x1000));
  assertEquals([rig.take(), rig.va.parkedBytes], [["va.discard 0x1000-0x2000"], 0x3000]);
  region.map();
  assertEquals([rig.memory(), rig.va.parkedBytes], [["0x2000-0x5000 private@0x0 rw"], 0]);
});

Deno.test("private memory that goes and is undone is the memory it was", () => {
  for (let call = 0; call < 4; call++) {
    for (const mode of ["nothing-done", "done-then-failed", "old-state-destroyed"] as const) {
      using rig = new Rig();
      const { target } = rig.partition();
      const region = rig.backed(0x1000, 0x5000, { file: "private" });
      rig.faults.failAfter(call, { mode });
      // The slot goes, the memory is parked, its mapping goes, and what is left of the slot comes back.
      assertThrows(() => region.removeMappings(range(0x1000, 0x2000)), MappingError);
      assertEquals([slots(target), rig.va.parkedBytes], [["0x1000-0x5000 rw"], 0], `${mode} in call ${call}`);
      for (const gpa of [0x1000, 0x2000, 0x3000]) {
        assertEquals(rig.va.at(gpa)?.generation, 1, `${mode} in call ${call}`);
      }
    }
  }
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

Deno.test("private memory that is removed is given up as the very last step", () => {
  using rig = new Rig();
  rig.partition();
  const { target: iommu } = rig.dmaTarget();
  const region = rig.backed(0x1000, 0x4000, { file: "private" });
  rig.take();
  region.removeMappings(range(0x1000, 0x2000));
  assertEquals(rig.take().at(-1), "va.discard 0x1000-0x4000");
  assertEquals(rig.memory(), ["0x1000-0x2000 private@0x0 rw", "0x3000-0x4000 private@0x0 rw"]);
  assertStrictEquals(rig.va.at(0x1000)?.generation, rig.va.at(0x3000)?.generation);
  assertEquals(iommu.mappings.length, 2);
});

Deno.test("a region with private memory is removed by disposing it", () => {
  using rig = new Rig();
  rig.partition();
  rig.dmaTarget();
  const region = rig.region(0x1000, 0x4000);
  region.addMapping({ rangeInRegion: range(0x0, 0x1000), mappable: "private" });
  region.addMapping({ rangeInRegion: range(0x1000, 0x3000), mappable: rig.file() });
  region.map();
  rig.take();
  region[Symbol.dispose]();
  assertEquals(rig.take().at(-1), "va.discard 0x1000-0x2000");
  assertEquals([rig.memory(), rig.va.parkedBytes], [[], 0]);
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

Deno.test("a mapping over private memory that is refused leaves no file open", () => {
  using rig = new Rig();
  const region = rig.backed(0x1000, 0x3000, { file: "private" });
  using file = Mappable.memfd("refused", 0x2000);
  const before = openFds();
  assertThrows(
    () => region.addMapping({ rangeInRegion: range(0, 0x1000), mappable: file }),
    MappingError,
    "is in no file",
  );
  file[Symbol.dispose]();
  assertEquals(openFds(), before - 1);
});
