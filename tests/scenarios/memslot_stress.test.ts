/**
 * What the kernel's memslot_modification_stress_test and memslot_perf_test assert, asserted of requests of this package.
 *
 * @module
 */

import { assert, assertEquals } from "@std/assert";
import { Mappable, MemoryRange } from "membacking";
import type { VcpuReport } from "../support/guest.ts";
import { kvmTest } from "../support/require.ts";
import { PAGE } from "../support/units.ts";
import { ARGUMENT, FREE, rounds, Scenario, STOP, UNDISTURBED } from "./rig.ts";

const MIB = 0x10_0000;
const RAM = 12 * MIB;

/** Adds 1 to a word of each page of a range. */
function touch(vcpu: number, start: number, end: number): Uint8Array<ArrayBuffer> {
  return rounds(vcpu, (code) =>
    code.set("rbx", start).set("rcx", 1).set("rdx", end)
      .label("page").atomicAdd("rbx", "rcx").add("rbx", PAGE).compareRegister("rbx", "rdx").jumpIf("below", "page"));
}

for (const zapAllOnSlotDelete of [true, false]) {
  for (const [how, split] of [["parts of their own", true], ["the same memory", false]] as const) {
    kvmTest(
      `vCPUs that use ${how} notice nothing of memory that comes and goes beside it (zapAllOnSlotDelete ${zapAllOnSlotDelete})`,
      async () => {
        const vcpus = 2;
        await using scenario = new Scenario({ ram: RAM, vcpus, zapAllOnSlotDelete, quiesce: false });
        const share = (RAM - FREE) / vcpus;
        const part = (i: number) => split ? [FREE + i * share, FREE + (i + 1) * share] as const : [FREE, RAM] as const;
        await scenario.start(Array.from({ length: vcpus }, (_, i) => touch(i, ...part(i))));
        using page = Mappable.memfd("page", PAGE);
        // Right behind what they use.
        const region = scenario.memory.regions.newRegion({
          name: "dummy",
          range: MemoryRange.of(RAM, PAGE),
          priority: 1,
        });
        region.addMapping({ rangeInRegion: MemoryRange.of(0, PAGE), mappable: page });
        await scenario.aRound();
        for (let i = 0; i < 1000; i++) {
          region.map();
          region.unmap();
          if (i % 100 === 0) await scenario.aRound();
        }
        const reports = await scenario.stop();
        assertEquals(reports.map(({ end, exits }) => [end, exits]), [["stop-port", UNDISTURBED], [
          "stop-port",
          UNDISTURBED,
        ]]);
        // Every touch is there: each vCPU added its rounds to each page of its part.
        const total = (gpa: number) =>
          reports.reduce((sum, _, i) => sum + (gpa >= part(i)[0] && gpa < part(i)[1] ? scenario.rounds(i) : 0n), 0n);
        for (let gpa = FREE; gpa < RAM; gpa += PAGE) {
          assertEquals(scenario.memory.memory.readBigUint64(gpa), total(gpa), `page ${gpa.toString(16)}`);
        }
      },
    );
  }
}

/** Where the area is that a guest fills. */
const AREA = 0x4000_0000;
const HALF = 2 * MIB;

/** Fills the first half with 1, says so, waits; fills the second half with 2, says so, waits. */
const fillHalves = rounds(0, (code) => {
  for (const half of [0, 1]) {
    code.set("rbx", AREA + half * HALF).set("rcx", half + 1).set("rdx", AREA + (half + 1) * HALF)
      .label(`fill ${half}`).store("rbx", "rcx", 8).add("rbx", PAGE)
      .compareRegister("rbx", "rdx").jumpIf("below", `fill ${half}`)
      .store("rsi", "rcx", 8, ARGUMENT)
      // The host answers with 0, or wants an end.
      .label(`wait ${half}`).load("rax", "rsi", 8, STOP).compare("rax", 1).jumpIf("equal", "end of round")
      .load("rax", "rsi", 8, ARGUMENT).compare("rax", 0).jumpIf("notEqual", `wait ${half}`);
  }
  return code;
});

kvmTest(
  "memory that is replaced behind a guest's back is empty afterwards, and what was filled was there",
  async () => {
    await using scenario = new Scenario({ ram: 4 * MIB, ranges: [{ start: AREA, end: AREA + 2 * HALF }] });
    using first = Mappable.memfd("first", 2 * HALF);
    const region = scenario.memory.regions.newRegion({
      name: "area",
      range: MemoryRange.of(AREA, 2 * HALF),
      priority: 1,
    });
    region.addMapping({ rangeInRegion: MemoryRange.of(0, 2 * HALF), mappable: first });
    region.map();
    const { memory } = scenario.memory;
    await scenario.start([fillHalves]);
    for (let i = 0; i < 20; i++) {
      for (const half of [0, 1]) {
        await scenario.until(() => scenario.argument === BigInt(half + 1));
        const at = AREA + half * HALF;
        assertEquals([memory.readBigUint64(at), memory.readBigUint64(at + HALF - PAGE)], [
          BigInt(half + 1),
          BigInt(half + 1),
        ]);
        using fresh = Mappable.memfd("fresh", HALF);
        region.addMapping({ rangeInRegion: MemoryRange.of(half * HALF, HALF), mappable: fresh });
        assertEquals([memory.readBigUint64(at), memory.readBigUint64(at + HALF - PAGE)], [0n, 0n]);
        scenario.argument = 0n;
      }
    }
    await scenario.until(() => scenario.argument !== 0n);
    const [report] = await scenario.stop() as [VcpuReport];
    assertEquals(report.exits, UNDISTURBED);
    assertEquals(scenario.held, 0);
  },
);

/** Writes to 50 pages, half of them before and half of them after an address. */
function writeAround(address: number): Uint8Array<ArrayBuffer> {
  return touch(0, address - 25 * PAGE, address + 25 * PAGE);
}

for (const quiesce of [true, false]) {
  kvmTest(
    `a guest that writes across the start of memory that is moved leaves there and nowhere else (${
      quiesce ? "held" : "not held"
    })`,
    async () => {
      const place = AREA + 2 * MIB;
      await using scenario = new Scenario({ ram: 4 * MIB, quiesce, ranges: [{ start: AREA, end: AREA + 8 * MIB }] });
      using below = Mappable.memfd("below", 2 * MIB);
      using moved = Mappable.memfd("moved", 2 * MIB);
      const { regions } = scenario.memory;
      const region = regions.newRegion({ name: "below", range: MemoryRange.of(AREA, 2 * MIB), priority: 1 });
      region.addMapping({ rangeInRegion: MemoryRange.of(0, 2 * MIB), mappable: below });
      region.map();
      const device = scenario.memory.newDeviceMemory("moved", 2 * MIB);
      device.map({ offset: 0, mappable: moved });
      device.mapToGuest(place, true);
      await scenario.start([writeAround(place)]);
      for (let i = 0; i < 100; i++) {
        await scenario.aRound();
        device.mapToGuest(place + 2 * MIB, true);
        device.mapToGuest(place, true);
      }
      const [report] = await scenario.stop() as [VcpuReport];
      // While it was away, and only where it was, accesses left the guest.
      assert(report.mmio.every(({ gpa }) => gpa >= place && gpa < place + 25 * PAGE));
      assertEquals(report.end, "stop-port");
      // What does not move was never disturbed.
      assertEquals(scenario.memory.memory.readBigUint64(place - PAGE), scenario.rounds());
    },
  );

  kvmTest(
    `memory that is moved beside what a guest uses is not noticed (${quiesce ? "held" : "not held"})`,
    async () => {
      await using scenario = new Scenario({ ram: 4 * MIB, quiesce, ranges: [{ start: AREA, end: AREA + 4 * MIB }] });
      using below = Mappable.memfd("below", 2 * MIB);
      using moved = Mappable.memfd("moved", 2 * MIB);
      const region = scenario.memory.regions.newRegion({
        name: "b",
        range: MemoryRange.of(AREA, 2 * MIB),
        priority: 1,
      });
      region.addMapping({ rangeInRegion: MemoryRange.of(0, 2 * MIB), mappable: below });
      region.map();
      const device = scenario.memory.newDeviceMemory("moved", 2 * MIB);
      device.map({ offset: 0, mappable: moved });
      device.mapToGuest(AREA + 2 * MIB, true);
      await scenario.start([touch(0, AREA, AREA + 2 * MIB)]);
      for (let i = 0; i < 100; i++) {
        device.mapToGuest(AREA + 4 * MIB, true);
        device.mapToGuest(AREA + 2 * MIB, true);
        if (i % 10 === 0) await scenario.aRound();
      }
      const [report] = await scenario.stop() as [VcpuReport];
      assertEquals(report.exits, UNDISTURBED);
    },
  );
}

kvmTest("host and guest take turns at every page, and each finds what the other has written", async () => {
  const area = { start: FREE, end: FREE + 8 * MIB };
  await using scenario = new Scenario({ ram: 12 * MIB });
  // The guest writes 1 at the start of each page, and checks that the host has written 2 in the middle; takes it away.
  const turns = rounds(
    0,
    (code) =>
      code.label("wait").load("rax", "rsi", 8, STOP).compare("rax", 1).jumpIf("equal", "end of round")
        .load("rax", "rsi", 8, ARGUMENT).compare("rax", 1).jumpIf("notEqual", "wait")
        .set("rbx", area.start).set("rdx", area.end).set("rcx", 1).set("r8", 0)
        .label("page").load("rax", "rbx", 8, PAGE / 2).compare("rax", 2).jumpIf("notEqual", "wrong")
        .store("rbx", "r8", 8, PAGE / 2).store("rbx", "rcx", 8).add("rbx", PAGE)
        .compareRegister("rbx", "rdx").jumpIf("below", "page")
        .store("rsi", "r8", 8, ARGUMENT).jump("end of round")
        .label("wrong").out(0x10),
  );
  const { memory } = scenario.memory;
  await scenario.start([turns]);
  for (let turn = 0; turn < 5; turn++) {
    for (let gpa = area.start; gpa < area.end; gpa += PAGE) memory.writeBigUint64(gpa + PAGE / 2, 2n);
    scenario.argument = 1n;
    await scenario.until(() => scenario.argument === 0n);
    for (let gpa = area.start; gpa < area.end; gpa += PAGE) {
      assertEquals([memory.readBigUint64(gpa), memory.readBigUint64(gpa + PAGE / 2)], [1n, 0n]);
      memory.writeBigUint64(gpa, 0n);
    }
  }
  const [report] = await scenario.stop() as [VcpuReport];
  assertEquals([report.exits, report.portWrites], [UNDISTURBED, []]);
});
