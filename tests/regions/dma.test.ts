import { assertEquals, assertStrictEquals, assertThrows } from "@std/assert";
import { type Mappable, MappingError, type MemoryRange } from "membacking";
import { RecordingDmaTarget } from "membacking/testing";
import { dma, Rig } from "./rig.ts";
import { range } from "../support/units.ts";

Deno.test("a DMA target is told range, host address, file, offset, access and type of each mapping", () => {
  using rig = new Rig();
  const { target } = rig.dmaTarget();
  const file = rig.file();
  rig.backed(0x3000, 0x5000, { file, fileOffset: 0x8000, type: "device" });
  const [mapping] = target.mappings;
  assertEquals(
    [`${mapping?.range}`, mapping?.hva, mapping?.mappable?.fd, mapping?.fileOffset, mapping?.writable, mapping?.type],
    ["0x3000-0x5000", rig.va.base + 0x3000, file.fd, 0x8000, true, "device"],
  );
});

Deno.test("regions are ram to a DMA target unless they say otherwise", () => {
  using rig = new Rig();
  const { target } = rig.dmaTarget();
  rig.backed(0x0, 0x1000);
  assertStrictEquals(target.at(0)?.type, "ram");
});

Deno.test("addDmaTarget replays what is visible, and its handle takes all of it away", () => {
  using rig = new Rig({ overlap: "any" });
  rig.backed(0x0, 0x4000, { priority: 0, fileOffset: 0x10000 });
  rig.backed(0x1000, 0x2000, { priority: 1 });
  const { target, handle } = rig.dmaTarget();
  assertEquals(dma(target), ["0x0-0x1000 rw", "0x1000-0x2000 rw", "0x2000-0x4000 rw"]);
  assertStrictEquals(target.at(0x2000)?.fileOffset, 0x12000);
  handle[Symbol.dispose]();
  assertEquals(dma(target), []);
  handle[Symbol.dispose]();
});

Deno.test("a DMA mapping is never bisected: it goes whole, and what remains is mapped anew", () => {
  using rig = new Rig();
  const { target } = rig.dmaTarget();
  const region = rig.backed(0x0, 0x8000, { fileOffset: 0x10000 });
  rig.take();
  region.removeMappings(range(0x2000, 0x3000));
  assertEquals(rig.take(), [
    "dma.unmapDma 0x0-0x8000",
    "va.remove 0x2000-0x3000",
    "dma.mapDma 0x0-0x2000 rw",
    "dma.mapDma 0x3000-0x8000 rw",
  ]);
  assertStrictEquals(target.at(0x3000)?.fileOffset, 0x13000);
});

Deno.test("a DMA mapping that does not change is left alone", () => {
  using rig = new Rig();
  rig.dmaTarget();
  const region = rig.region(0x0, 0x4000);
  region.addMapping({ rangeInRegion: range(0x0, 0x2000), mappable: rig.file() });
  region.addMapping({ rangeInRegion: range(0x2000, 0x4000), mappable: rig.file() });
  region.map();
  rig.take();
  region.addMapping({ rangeInRegion: range(0x2000, 0x4000), mappable: rig.file() });
  assertEquals(rig.take().filter((call) => call.startsWith("dma.")), [
    "dma.unmapDma 0x2000-0x4000",
    "dma.mapDma 0x2000-0x4000 rw",
  ]);
});

Deno.test("a mapping that turns read-only is mapped anew for devices", () => {
  using rig = new Rig();
  const { target } = rig.dmaTarget();
  const region = rig.backed(0x0, 0x2000);
  rig.take();
  region.map({ writable: false });
  assertEquals(rig.take(), ["dma.unmapDma 0x0-0x2000", "va.protect 0x0-0x2000 ro", "dma.mapDma 0x0-0x2000 ro"]);
  assertEquals(dma(target), ["0x0-0x2000 ro"]);
});

Deno.test("the same memory shown by a region of another type is mapped anew for devices", () => {
  using rig = new Rig();
  const { target } = rig.dmaTarget();
  const file = rig.file();
  rig.backed(0x0, 0x2000, { file, type: "ram", priority: 0 });
  rig.take();
  rig.backed(0x0, 0x2000, { file, type: "device", priority: 1 });
  assertStrictEquals(target.at(0)?.type, "device");
  assertEquals(rig.take().filter((call) => !call.startsWith("dma.")), []);
});

Deno.test("the same memory shown by another region of the same type touches nothing", () => {
  using rig = new Rig();
  rig.dmaTarget();
  rig.partition();
  const file = rig.file();
  rig.backed(0x0, 0x2000, { file, priority: 0 });
  rig.take();
  rig.backed(0x0, 0x2000, { file, priority: 1 });
  assertEquals(rig.take(), []);
});

Deno.test("a region that is hidden is unknown to devices", () => {
  using rig = new Rig();
  const { target } = rig.dmaTarget();
  rig.backed(0x0, 0x2000, { priority: 0 });
  const high = rig.region(0x0, 0x4000, { priority: 1 });
  high.map();
  assertEquals(dma(target), []);
  high[Symbol.dispose]();
  assertEquals(dma(target), ["0x0-0x2000 rw"]);
});

Deno.test("a target that needs files refuses private memory, at attachment and later", () => {
  using rig = new Rig();
  const { target } = rig.dmaTarget({ needsFd: true });
  const region = rig.region(0x1000, 0x3000);
  region.addMapping({ rangeInRegion: range(0, 0x1000), mappable: "private" });
  rig.take();
  const error = assertThrows(() => region.map(), MappingError);
  assertEquals(`${error.range}`, "0x1000-0x2000");
  assertEquals([rig.take(), dma(target), region.mapParams], [[], [], null]);

  using other = new Rig();
  other.backed(0x0, 0x1000, { file: "private" });
  other.take();
  assertThrows(() => other.dmaTarget({ needsFd: true }), MappingError);
  assertEquals(other.take(), []);
  other.dmaTarget({ needsFd: false });
});

Deno.test("a DMA target that fails fails the request, for ram and device regions alike", () => {
  for (const type of ["ram", "device"] as const) {
    using rig = new Rig();
    const { target } = rig.dmaTarget({ name: "iommu" });
    const region = rig.region(0x0, 0x1000, { type });
    region.addMapping({ rangeInRegion: range(0, 0x1000), mappable: rig.file() });
    rig.faults.failAfter(0, { on: ({ method }) => method === "mapDma" });
    const error = assertThrows(() => region.map(), MappingError, "iommu");
    assertStrictEquals(error.cause, rig.faults.fired[0]);
    assertEquals([dma(target), rig.memory()], [[], []]);
  }
});

Deno.test("a DMA target attached twice is refused", () => {
  using rig = new Rig();
  const { target } = rig.dmaTarget();
  assertThrows(() => rig.manager.addDmaTarget(target), TypeError);
});

Deno.test("the same file and offset again, and then another over a part, leaves a target with files that are open", () => {
  using rig = new Rig();
  const { target } = rig.dmaTarget();
  const file = rig.file();
  const region = rig.region(0x0, 0x4000);
  const whole = { rangeInRegion: range(0, 0x4000), mappable: file };
  region.addMapping(whole);
  region.map();
  rig.take();
  region.addMapping(whole);
  assertEquals(rig.take(), []);
  region.addMapping({ rangeInRegion: range(0x1000, 0x2000), mappable: rig.file() });
  assertEquals(dma(target), ["0x0-0x1000 rw", "0x1000-0x2000 rw", "0x2000-0x4000 rw"]);
  for (const { mappable } of target.mappings) assertStrictEquals(mappable?.size, 0x10_0000);
});

Deno.test("the same file and offset again over a part, which then goes, leaves a target with files that are open", () => {
  using rig = new Rig();
  const { target } = rig.dmaTarget();
  const file = rig.file();
  const region = rig.region(0x0, 0x4000);
  region.addMapping({ rangeInRegion: range(0, 0x4000), mappable: file });
  region.map();
  region.addMapping({ rangeInRegion: range(0, 0x1000), mappable: file });
  region.addMapping({ rangeInRegion: range(0x1000, 0x4000), mappable: file, fileOffset: 0x1000 });
  region.removeMappings(range(0, 0x1000));
  assertEquals(dma(target), ["0x1000-0x4000 rw"]);
  // Undoing needs the file as well.
  rig.faults.failAfter(1, { on: ({ method }) => method === "mapDma" });
  assertThrows(() => region.removeMappings(range(0x2000, 0x3000)), MappingError, "was undone");
  assertEquals(dma(target), ["0x1000-0x4000 rw"]);
  for (const { mappable } of target.mappings) assertStrictEquals(mappable?.size, 0x10_0000);
});

Deno.test("regions over each other that show the same file leave a target with files that are open", () => {
  using rig = new Rig();
  const { target } = rig.dmaTarget();
  const file = rig.file();
  rig.backed(0x0, 0x4000, { file, priority: 0 });
  const above = rig.backed(0x0, 0x4000, { file, priority: 1 });
  above[Symbol.dispose]();
  rig.faults.failAfter(0, { on: ({ method }) => method === "mapDma" });
  assertThrows(() => rig.backed(0x0, 0x4000, { priority: 2, writable: false }), MappingError, "was undone");
  assertEquals(dma(target), ["0x0-0x4000 rw"]);
  for (const { mappable } of target.mappings) assertStrictEquals(mappable?.size, 0x10_0000);
});

/** A target that notes announcements between the calls, and refuses them when told to. */
class Prepared extends RecordingDmaTarget<Mappable> {
  refuses = false;
  readonly announced: string[] = [];
  prepareDma(change: { unmaps: readonly MemoryRange[]; maps: readonly { range: MemoryRange }[] }): undefined {
    if (this.refuses) throw new Error("no room");
    this.announced.push(`-${change.unmaps.join(" -")} +${change.maps.map(({ range }) => range).join(" +")}`);
  }
}

Deno.test("a target is told beforehand what a request will do to it, and what its undo will", () => {
  using rig = new Rig();
  const target = new Prepared({ name: "table", calls: rig.calls, faults: rig.faults });
  using _attached = rig.manager.addDmaTarget(target, { pins: true });
  const region = rig.backed(0x0, 0x4000);
  assertEquals(target.announced.splice(0), ["- +0x0-0x4000"]);
  region.removeMappings(range(0x1000, 0x2000));
  assertEquals(target.announced.splice(0), ["-0x0-0x4000 +0x0-0x1000 +0x2000-0x4000"]);
  rig.faults.failAfter(1, { on: ({ method }) => method === "mapDma" });
  assertThrows(() => region.map({ writable: false }), MappingError);
  assertEquals(target.announced.splice(0), [
    "-0x0-0x1000 -0x2000-0x4000 +0x0-0x1000 +0x2000-0x4000",
    "-0x0-0x1000 -0x2000-0x4000 +0x0-0x1000 +0x2000-0x4000",
  ]);
});

Deno.test("a target that refuses what is announced fails the request before anything has been done", () => {
  using rig = new Rig();
  rig.partition();
  const target = new Prepared({ name: "table", calls: rig.calls, faults: rig.faults });
  using _attached = rig.manager.addDmaTarget(target);
  const region = rig.backed(0x0, 0x4000);
  rig.take();
  target.refuses = true;
  const error = assertThrows(() => region.unmap(), MappingError, "table refuses");
  assertStrictEquals((error.cause as Error).message, "no room");
  assertEquals([rig.take(), region.mapParams?.writable], [[], true]);
  target.refuses = false;
  region.unmap();
  assertEquals(target.mappings, []);
});
