import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import fc from "fast-check";
import { LimitError, Mappable, MappingError, MembackingError, MemoryRange } from "membacking";
import { ProtocolFeature, VhostUserError, VhostUserMemory } from "membacking/vhost-user";
import { ADDED_AT, RAM_LENGTH, rangesOf, Rig, RING } from "./rig.ts";
import { EVERYTHING, ScriptedBackend, without } from "./scripted_backend.ts";

const RAM = "0x0-0x1000000";
const WHOLE = without(ProtocolFeature.CONFIGURE_MEM_SLOTS);
const BOTH = [["memory slots", EVERYTHING], ["a whole table", WHOLE]] as const;

for (const [kind, script] of BOTH) {
  Deno.test(`the table follows regions as they come, go, are switched and removed (${kind})`, async () => {
    await using rig = await Rig.make(script, { start: true });
    assertEquals(await rig.held(), [RAM]);
    using a = rig.region();
    assertEquals(await rig.held(), [RAM]);
    a.map();
    assertEquals(await rig.held(), [RAM, "0x10000000-0x10100000"]);
    a.map({ writable: false });
    assertEquals(await rig.held(), [RAM, "0x10000000-0x10100000"]);
    a.removeMappings(new MemoryRange(0x1000, 0x3000));
    assertEquals(await rig.held(), [RAM, "0x10000000-0x10001000", "0x10003000-0x10100000"]);
    using other = Mappable.memfd("other", 0x2000);
    a.addMapping({ rangeInRegion: new MemoryRange(0x1000, 0x3000), mappable: other });
    other.write(0x10, new Uint8Array([42]));
    assertEquals([...await rig.backend.read(ADDED_AT + 0x1010, 1)], [42]);
    assertEquals(await rig.held(), rig.told);
    a.unmap();
    assertEquals(await rig.held(), [RAM]);
    a.map();
    a[Symbol.dispose]();
    assertEquals(await rig.held(), [RAM]);
    assertEquals(rig.frontend.vrings, [{ index: 0, state: "running" }]);
  });

  Deno.test(`the back end reads what the guest has and the guest what the back end writes (${kind})`, async () => {
    await using rig = await Rig.make(script);
    rig.guest.memory.write(0x5000, new Uint8Array([1, 2, 3]));
    assertEquals([...await rig.backend.read(0x5000, 3)], [1, 2, 3]);
    using a = rig.region();
    a.map();
    await rig.backend.write(ADDED_AT + 0xf_fff0, new Uint8Array([9]));
    assertEquals(rig.guest.memory.readUint8(ADDED_AT + 0xf_fff0), 9);
    await assertRejects(() => rig.backend.read(ADDED_AT + 0x10_0000, 1));
  });

  Deno.test(`random requests leave the back end with exactly the RAM that is visible (${kind})`, async () => {
    await using rig = await Rig.make(script, { start: true });
    using file = Mappable.memfd("shared by all", 0x80_0000);
    const regions = Array.from(
      { length: 6 },
      (_, i) => rig.region({ start: ADDED_AT + i * 0x10_0000, file, fileOffset: i % 3 * 0x10_0000 }),
    );
    const request = fc.record({
      region: fc.nat({ max: 5 }),
      what: fc.constantFrom("map", "unmap", "cut", "fill", "read-only"),
      at: fc.nat({ max: 0xff }),
      pages: fc.integer({ min: 1, max: 16 }),
    });
    await fc.assert(
      fc.asyncProperty(fc.array(request, { minLength: 1, maxLength: 8 }), async (requests) => {
        for (const { region: index, what, at, pages } of requests) {
          const region = regions[index]!;
          const range = MemoryRange.of(at * 0x1000, Math.min(pages, 0x100 - at) * 0x1000);
          try {
            if (what === "map") region.map();
            if (what === "read-only") region.map({ writable: false });
            if (what === "unmap") region.unmap();
            if (what === "cut") region.removeMappings(range);
            if (what === "fill") {
              region.addMapping({
                rangeInRegion: range,
                mappable: file,
                fileOffset: index % 3 * 0x10_0000 + range.start,
              });
            }
          } catch (error) {
            // Eight regions are few.
            assert(error instanceof MappingError || error instanceof LimitError, String(error));
          }
        }
        assertEquals(await rig.held(), rangesOf(backed(rig)));
        assertEquals(await rig.held(), rig.told);
      }),
      { numRuns: 40 },
    );
    for (const region of regions) region[Symbol.dispose]();
  });
}

/** The RAM that the manager's own accessors find. */
function backed(rig: Rig): { gpa: number; length: number }[] {
  const found: { gpa: number; length: number }[] = [{ gpa: 0, length: RAM_LENGTH }];
  for (let gpa = ADDED_AT; gpa < ADDED_AT + 6 * 0x10_0000; gpa += 0x1000) {
    try {
      rig.guest.memory.readUint8(gpa);
      found.push({ gpa, length: 0x1000 });
    } catch {
      // Nothing is there.
    }
  }
  return found;
}

Deno.test("device memory, private memory and read-only files are no part of a table", async () => {
  await using rig = await Rig.make();
  using bar = rig.guest.newDeviceMemory("bar", 0x1000);
  using pixels = Mappable.memfd("pixels", 0x1000);
  bar.map({ offset: 0, mappable: pixels, length: 0x1000 });
  bar.mapToGuest(0x2000_0000, true);
  using region = rig.guest.regions.newRegion({
    name: "private",
    range: new MemoryRange(0x3000_0000, 0x3000_1000),
    priority: 1,
  });
  region.addMapping({ rangeInRegion: new MemoryRange(0, 0x1000), mappable: "private" });
  region.map();
  const path = Deno.makeTempFileSync();
  Deno.writeFileSync(path, new Uint8Array(0x1000));
  using rom = Mappable.open(path);
  using third = rig.guest.regions.newRegion({
    name: "rom",
    range: new MemoryRange(0x4000_0000, 0x4000_1000),
    priority: 1,
  });
  third.addMapping({ rangeInRegion: new MemoryRange(0, 0x1000), mappable: rom, writable: false });
  third.map();
  assertEquals(await rig.held(), [RAM]);
  bar.unmapFromGuest();
});

Deno.test("a back end that refuses a region fails the request, and everything is as it was", async () => {
  for (const [kind, script] of BOTH) {
    const on = kind === "memory slots" ? "ADD_MEM_REG" : "SET_MEM_TABLE";
    await using rig = await Rig.make({ ...script, faults: [{ on, nth: 2, act: "refuse" }] }, { start: true });
    using region = rig.region();
    const error = assertThrows(() => region.map(), MappingError);
    assert(error.cause instanceof VhostUserError);
    assertEquals([error.cause.kind, error.cause.request], ["refused", on]);
    assertEquals([region.mapParams, error.outOfStep.length], [null, 0]);
    assertEquals(await rig.held(), [RAM]);
    assertEquals(rig.frontend.state, "connected");
    assertEquals(rig.frontend.vrings, [{ index: 0, state: "running" }]);
    region.map();
    assertEquals(await rig.held(), rig.told);
  }
});

Deno.test("a back end that refuses to let memory go keeps it, and the region stays", async () => {
  await using rig = await Rig.make({ ...EVERYTHING, faults: [{ on: "REM_MEM_REG", nth: 1, act: "refuse" }] });
  const region = rig.region();
  region.map();
  assertThrows(() => region.unmap(), MappingError);
  assertEquals(rig.guest.memory.readUint8(ADDED_AT), 0);
  assertEquals(await rig.held(), [RAM, "0x10000000-0x10100000"]);
  region.unmap();
  assertEquals(await rig.held(), [RAM]);
});

Deno.test("limits are known before anything is sent", async () => {
  await using rig = await Rig.make(WHOLE);
  const regions = Array.from({ length: 8 }, (_, i) => rig.region({ start: ADDED_AT + i * 0x20_0000 }));
  regions.slice(0, 7).forEach((region) => region.map());
  const before = (await rig.backend.state()).log.length;
  const error = assertThrows(() => regions[7]!.map());
  const limit = error instanceof LimitError ? error : (error as Error).cause;
  assert(limit instanceof LimitError);
  assertEquals([limit.have, limit.want], [8, 9]);
  assertEquals((await rig.backend.state()).log.length, before);
  regions[0]!.unmap();
  regions[7]!.map();
  assertEquals(await rig.held(), rig.told);
});

Deno.test("what one back end refuses is taken back from the others", async () => {
  await using rig = await Rig.make();
  await using refusing = await ScriptedBackend.start();
  using frontend = await refusing.connect({ ...EVERYTHING, faults: [{ on: "ADD_MEM_REG", nth: 2, act: "refuse" }] });
  using memory = new VhostUserMemory(frontend);
  using _attached = rig.guest.regions.addDmaTarget(memory);
  using region = rig.region();
  assertThrows(() => region.map(), MappingError);
  assertEquals([await rig.held(), rangesOf((await refusing.state()).regions)], [[RAM], [RAM]]);
  region.map();
  assertEquals(await rig.held(), rangesOf((await refusing.state()).regions));
});

Deno.test("a vring whose memory goes is left alone, and taken up where it was when memory is back", async () => {
  for (const [, script] of BOTH) {
    await using rig = await Rig.make(script, { start: true });
    const region = rig.region();
    region.map();
    await rig.frontend.stopVring(0);
    rig.kick.take();
    const ring = { size: 8, descriptor: ADDED_AT, available: ADDED_AT + 0x1000, used: ADDED_AT + 0x2000 };
    await rig.frontend.startVring(0, { ...ring, kick: rig.kick, base: 5 });
    rig.kick.take();
    region.unmap();
    assertEquals(rig.frontend.vrings, [{ index: 0, state: "suspended" }]);
    assertEquals((await rig.backend.state()).vrings[0]?.running, 0);
    region.map();
    assertEquals(rig.frontend.vrings, [{ index: 0, state: "running" }]);
    const { vrings } = await rig.backend.state();
    assertEquals([vrings[0]?.running, vrings[0]?.SET_VRING_BASE], [1, 8]);
    assertEquals(rig.kick.take(), 1, "what was kicked meanwhile is not lost");
    region.unmap();
    assertEquals(await rig.frontend.stopVring(0), 11);
    region[Symbol.dispose]();
  }
});

Deno.test("a region that comes or goes whole disturbs no vring", async () => {
  await using rig = await Rig.make(EVERYTHING, { start: true });
  const before = (await rig.backend.state()).log.length;
  using region = rig.region();
  region.map();
  region.unmap();
  assertEquals((await rig.backend.state()).log.slice(before), ["ADD_MEM_REG", "REM_MEM_REG"]);
});

Deno.test("the range of a vring is in its region's memory as the back end knows it, by user address", async () => {
  await using rig = await Rig.make(EVERYTHING, { start: true });
  const { regions, vrings } = await rig.backend.state();
  const [ram] = regions;
  assertEquals(vrings[0]?.descriptor, ram!.userAddress - ram!.gpa + RING.descriptor);
});

Deno.test("RAM that is added is in the table at once, given back to the host without a message, and removed", async () => {
  await using rig = await Rig.make(EVERYTHING, { start: true });
  const dimm = rig.guest.addRam({ name: "dimm", ranges: [MemoryRange.of(ADDED_AT, 0x100_0000)] });
  assertEquals(await rig.held(), [RAM, "0x10000000-0x11000000"]);
  await rig.backend.write(ADDED_AT + 0x5000, new Uint8Array([5]));
  assertEquals(rig.guest.memory.readUint8(ADDED_AT + 0x5000), 5);
  const before = (await rig.backend.state()).log.length;
  rig.guest.discard(MemoryRange.of(ADDED_AT, 0x20_0000));
  assertEquals((await rig.backend.state()).log.slice(before), []);
  assertEquals((await rig.backend.read(ADDED_AT + 0x5000, 1))[0], 0);
  await dimm.remove();
  assertEquals(await rig.held(), [RAM]);
});

Deno.test("RAM that a back end has cannot be frozen: its file is with others", async () => {
  await using rig = await Rig.make();
  assertThrows(() => rig.guest.freeze(), MembackingError);
});
