import { assert, assertEquals, assertThrows } from "@std/assert";
import { Mappable, MemoryRange } from "membacking";
import { ProtocolFeature } from "membacking/vhost-user";
import { readProc } from "../support/proc.ts";
import { ADDED_AT, Rig, RING } from "./rig.ts";
import { EVERYTHING, LOG_ALL, SOME_FEATURE, without } from "./scripted_backend.ts";

function taken(rig: Rig): [number, number][] {
  const runs: [number, number][] = [];
  rig.memory.takeDirty((start, end) => runs.push([start, end]));
  return runs;
}

const RAM: [number, number] = [0, 0x100_0000];
const some = new Uint8Array(3);

Deno.test("what a back end writes is in its log, and reported once", async () => {
  await using rig = await Rig.make(EVERYTHING, { start: true });
  assertEquals(taken(rig), [RAM], "nothing is known of what was before");
  assert(rig.memory.isLogging);
  const { features, vrings } = await rig.backend.state();
  assertEquals(features, SOME_FEATURE | LOG_ALL | 1n << 30n);
  assertEquals([vrings[0]?.flags, (vrings[0]?.descriptor ?? 0) > 0], [1, true]);
  assertEquals(taken(rig), []);
  await rig.backend.write(0x5ffe, some, { log: true });
  await rig.backend.write(0x9000, some, { log: true });
  assertEquals(taken(rig), [[0x5000, 0x7000], [0x9000, 0xa000]]);
  assertEquals(taken(rig), []);
  rig.memory.stopLogging();
  assertEquals([(await rig.backend.state()).features & LOG_ALL, (await rig.backend.state()).vrings[0]?.flags], [0n, 0]);
});

Deno.test("a log covers memory that is added, and what was marked in memory that goes is not lost", async () => {
  await using rig = await Rig.make(EVERYTHING, { start: true });
  taken(rig);
  using far = rig.region({ start: 0xf000_0000 });
  far.map();
  await rig.backend.write(0xf000_1000, some, { log: true });
  assertEquals(taken(rig), [[0xf000_1000, 0xf000_2000]]);
  await rig.backend.write(0xf000_3000, some, { log: true });
  far.unmap();
  assertEquals(taken(rig), [[0xf000_3000, 0xf000_4000]]);
});

Deno.test("what a back end has written is told again where its listener threw", async () => {
  await using rig = await Rig.make(EVERYTHING, { start: true });
  taken(rig);
  using far = rig.region({ start: 0xf000_0000 });
  far.map();
  for (const at of [0x5000, 0x7000, 0x9000, 0xf000_1000]) await rig.backend.write(at, some, { log: true });
  far.unmap();
  // The first time at what memory had that is gone, then at the first and at the third of what the log has.
  const told: number[][] = [];
  for (let count = 0; count < 3; count++) {
    const before: number[] = [];
    const mark = (start: number) => {
      if (before.length === count) throw new Error("not now");
      before.push(start);
    };
    assertThrows(() => rig.memory.takeDirty(mark), Error, "not now");
    told.push(before);
    if (count === 1) await rig.backend.write(0xb000, some, { log: true });
  }
  assertEquals(told, [[], [0xf000_1000], [0x5000, 0x7000]]);
  assertEquals(taken(rig), [[0x9000, 0xa000], [0xb000, 0xc000]]);
  assertEquals(taken(rig), []);
});

Deno.test("a log that is too short is replaced by a longer one before memory beyond it is given away", async () => {
  await using rig = await Rig.make(EVERYTHING, { start: true });
  taken(rig);
  await rig.backend.write(0x5000, some, { log: true });
  using file = Mappable.memfd("far", 0x1000);
  // A DMA target may be told of memory anywhere, wherever the manager that is used here ends.
  const start = 0x40_0000_0000;
  const userBase = rig.memory.table[0]!.userAddress;
  rig.memory.mapDma({
    ...{ range: MemoryRange.of(start, 0x1000), hva: userBase + start, mappable: file, fileOffset: 0 },
    ...{ writable: true, type: "ram" },
  });
  assertEquals((await rig.backend.state()).log.filter((name) => name === "SET_LOG_BASE").length, 2);
  await rig.backend.write(start, some, { log: true });
  assertEquals(taken(rig).sort((a, b) => a[0] - b[0]), [[0x5000, 0x6000], [start, start + 0x1000]]);
  rig.memory.unmapDma(MemoryRange.of(start, 0x1000));
});

Deno.test("a back end without a log makes all its memory dirty", async () => {
  for (
    const script of [without(ProtocolFeature.LOG_SHMFD), { ...EVERYTHING, features: EVERYTHING.features & ~LOG_ALL }]
  ) {
    await using rig = await Rig.make(script, { start: true });
    assertEquals([taken(rig), taken(rig)], [[RAM], [RAM]]);
    using region = rig.region();
    region.map();
    assertEquals(taken(rig), [RAM, [ADDED_AT, ADDED_AT + 0x10_0000]]);
    assertEquals(rig.memory.isLogging, false);
  }
});

Deno.test("a back end that refuses to log makes all its memory dirty, and works on", async () => {
  await using rig = await Rig.make({ ...EVERYTHING, faults: [{ on: "SET_FEATURES", nth: 2, act: "refuse" }] }, {
    start: true,
  });
  assertEquals(taken(rig), [RAM]);
  assertEquals([rig.memory.isLogging, rig.frontend.state], [false, "connected"]);
  assertEquals(taken(rig), [RAM]);
});

Deno.test("what a back end wrote before it died, and had no time to mark, is reported", async () => {
  await using rig = await Rig.make(EVERYTHING, { start: true });
  taken(rig);
  await rig.backend.write(0x5000, some);
  await rig.backend.die();
  assertEquals(taken(rig), [RAM]);
  assertEquals(taken(rig), []);
});

Deno.test("what a back end without a log may have written before it died is reported once", async () => {
  await using rig = await Rig.make(without(ProtocolFeature.LOG_SHMFD), { start: true });
  taken(rig);
  await rig.backend.die();
  assertEquals(taken(rig), [RAM]);
  assertEquals(taken(rig), []);
});

Deno.test("vrings that start while the back end logs have their writes logged", async () => {
  await using rig = await Rig.make();
  await rig.frontend.setFeatures(SOME_FEATURE);
  taken(rig);
  await rig.frontend.startVring(1, RING);
  assertEquals((await rig.backend.state()).vrings[1]?.flags, 1);
});

Deno.test("a tracker has what a back end has written, and no more", async () => {
  await using rig = await Rig.make(EVERYTHING, { start: true });
  using tracker = rig.guest.regions.trackDirty();
  assert(rig.memory.isLogging);
  assertEquals([...tracker.take()], []);
  await rig.backend.write(0x5ffe, some, { log: true });
  assertEquals([...tracker.take()].map(String), ["0x5000-0x7000"]);
  using region = rig.region();
  region.map();
  tracker.take();
  await rig.backend.write(ADDED_AT + 0x3000, some, { log: true });
  // What it wrote into memory that is taken away is not forgotten.
  region.unmap();
  assert(tracker.take().has(ADDED_AT + 0x3000));
});

Deno.test("a tracker takes everything of a back end that has no log, each time", async () => {
  await using rig = await Rig.make(without(ProtocolFeature.LOG_SHMFD), { start: true });
  using tracker = rig.guest.regions.trackDirty();
  assertEquals([...tracker.take()].map(String), ["0x0-0x1000000"]);
  assertEquals([...tracker.take()].map(String), ["0x0-0x1000000"]);
});

Deno.test("logs are gone with those who had them, and their mappings too", async () => {
  const logs = () => readProc("/proc/self/maps").split("\n").filter((line) => line.includes("vhost-user log")).length;
  const before = logs();
  {
    await using rig = await Rig.make(EVERYTHING, { start: true });
    taken(rig);
    assertEquals(logs(), before + 1);
    rig.memory.stopLogging();
    assertEquals(logs(), before);
    taken(rig);
  }
  assertEquals(logs(), before);
});
