import { assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { RegionOverlapError, type RegionSummary } from "membacking";
import { Rig, visible } from "./rig.ts";

Deno.test("OpenVMM's own overlap test passes step by step", () => {
  using rig = new Rig();
  const high = rig.region(0x1000, 0x3000, { name: "high", priority: 1 });
  assertThrows(() => rig.region(0x2000, 0x4000, { priority: 0 }), RegionOverlapError);
  const low = rig.region(0x1000, 0x3000, { name: "low", priority: 0 });
  high[Symbol.dispose]();
  assertThrows(() => rig.region(0x2000, 0x4000, { priority: 1 }), RegionOverlapError);
  assertThrows(() => rig.region(0x2000, 0x3000, { priority: 1 }), RegionOverlapError);
  rig.region(0, 0x10000, { priority: 1 });
  low[Symbol.dispose]();
  assertThrows(() => rig.region(0, 0x20000, { priority: 0 }), RegionOverlapError);
  rig.region(0x1000, 0x8000, { priority: 0 });
});

Deno.test("an overlap error names both regions, with range and priority", () => {
  using rig = new Rig();
  rig.region(0x1000, 0x3000, { name: "ram", priority: 7 });
  const error = assertThrows(() => rig.region(0x2000, 0x4000, { name: "bar", priority: 3 }), RegionOverlapError);
  const summary = ({ name, range, priority }: RegionSummary) => [name, `${range}`, priority];
  assertEquals(summary(error.existing), ["ram", "0x1000-0x3000", 7]);
  assertEquals(summary(error.new), ["bar", "0x2000-0x4000", 3]);
  assertStringIncludes(error.message, "ram");
  assertStringIncludes(error.message, "0x2000-0x4000");
});

Deno.test("regions that only touch do not overlap", () => {
  using rig = new Rig();
  rig.region(0x1000, 0x2000);
  rig.region(0x2000, 0x3000);
  rig.region(0x0, 0x1000);
});

Deno.test("regions of equal priority may share a range exactly, in either overlap mode", () => {
  for (const overlap of ["nested", "any"] as const) {
    using rig = new Rig({ overlap });
    rig.region(0x1000, 0x4000, { priority: 2 });
    rig.region(0x1000, 0x4000, { priority: 2 });
    if (overlap === "any") continue;
    assertThrows(() => rig.region(0x1000, 0x3000, { priority: 2 }), RegionOverlapError);
    assertThrows(() => rig.region(0x2000, 0x5000, { priority: 2 }), RegionOverlapError);
    assertThrows(() => rig.region(0x0, 0x5000, { priority: 2 }), RegionOverlapError);
    assertThrows(() => rig.region(0x2000, 0x3000, { priority: 2 }), RegionOverlapError);
  }
});

Deno.test("nested: the region of higher priority must contain the other, whichever comes first", () => {
  using rig = new Rig();
  rig.region(0x2000, 0x6000, { priority: 5 });
  rig.region(0x3000, 0x4000, { priority: 4 });
  rig.region(0x0, 0x8000, { priority: 6 });
  assertThrows(() => rig.region(0x1000, 0x3000, { priority: 4 }), RegionOverlapError);
  assertThrows(() => rig.region(0x3000, 0x5000, { priority: 9 }), RegionOverlapError);
  assertThrows(() => rig.region(0x0, 0x7000, { priority: 7 }), RegionOverlapError);
});

Deno.test("an unmapped region counts for the overlap rule as a mapped one does", () => {
  using rig = new Rig();
  rig.region(0x2000, 0x6000, { priority: 5 });
  assertThrows(() => rig.region(0x3000, 0x7000, { priority: 4 }), RegionOverlapError);
});

Deno.test("a refused region leaves nothing behind", () => {
  using rig = new Rig();
  const first = rig.region(0x2000, 0x6000, { priority: 5 });
  assertThrows(() => rig.region(0x3000, 0x7000, { priority: 4 }), RegionOverlapError);
  first[Symbol.dispose]();
  rig.region(0x3000, 0x7000, { priority: 4 });
});

Deno.test("any: a small region of higher priority splits what is visible of the large one", () => {
  using rig = new Rig({ overlap: "any" });
  const large = rig.backed(0x0, 0x8000, { priority: 0 });
  const small = rig.backed(0x2000, 0x3000, { priority: 1 });
  assertEquals(visible(large), ["0x0-0x2000", "0x3000-0x8000"]);
  assertEquals(visible(small), ["0x2000-0x3000"]);
  small.unmap();
  assertEquals(visible(large), ["0x0-0x8000"]);
});

Deno.test("any: regions that overlap in part show through in fragments, three levels deep", () => {
  using rig = new Rig({ overlap: "any" });
  const low = rig.backed(0x0, 0xa000, { priority: 0 });
  const middle = rig.backed(0x2000, 0x8000, { priority: 1 });
  const left = rig.backed(0x1000, 0x3000, { priority: 2 });
  const right = rig.backed(0x7000, 0x9000, { priority: 2 });
  const top = rig.backed(0x4000, 0x5000, { priority: 3 });
  assertEquals(visible(low), ["0x0-0x1000", "0x9000-0xa000"]);
  assertEquals(visible(middle), ["0x3000-0x4000", "0x5000-0x7000"]);
  assertEquals(visible(left), ["0x1000-0x3000"]);
  assertEquals(visible(right), ["0x7000-0x9000"]);
  assertEquals(visible(top), ["0x4000-0x5000"]);

  middle.unmap();
  assertEquals(visible(low), ["0x0-0x1000", "0x3000-0x4000", "0x5000-0x7000", "0x9000-0xa000"]);
  top.unmap();
  assertEquals(visible(low), ["0x0-0x1000", "0x3000-0x7000", "0x9000-0xa000"]);
});

Deno.test("any: fragments of a region keep the file offsets of their addresses", () => {
  using rig = new Rig({ overlap: "any" });
  rig.backed(0x0, 0x8000, { priority: 0, fileOffset: 0x10000 });
  rig.backed(0x2000, 0x4000, { priority: 1 });
  assertEquals(rig.memory(), [
    "0x0-0x2000 0@0x10000 rw",
    "0x2000-0x4000 1@0x0 rw",
    "0x4000-0x8000 0@0x14000 rw",
  ]);
});

Deno.test("any: a hole of a higher region hides what is below it", () => {
  using rig = new Rig({ overlap: "any" });
  const { target } = rig.partition();
  rig.backed(0x0, 0x8000, { priority: 0 });
  const hole = rig.region(0x2000, 0x4000, { priority: 1 });
  hole.map();
  assertEquals(target.accessAt(0x2000), null);
  assertEquals(rig.va.at(0x3000), null);
  assertEquals(rig.va.at(0x4000)?.fileOffset, 0x4000);
});
