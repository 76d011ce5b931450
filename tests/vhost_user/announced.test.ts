import { assert, assertEquals, assertThrows } from "@std/assert";
import { type DmaTarget, Mappable, MappingError, MemoryRange, RegionManager } from "membacking";
import { Faults, RecordingVa } from "membacking/testing";
import { ProtocolFeature, VhostUserMemory } from "membacking/vhost-user";
import { ADDED_AT, rangesOf, Rig } from "./rig.ts";
import { EVERYTHING, ScriptedBackend, without } from "./scripted_backend.ts";

const WHOLE = without(ProtocolFeature.CONFIGURE_MEM_SLOTS);

Deno.test("an entry that is cut while vrings run is cut while they are stopped, in one go", async () => {
  await using rig = await Rig.make(EVERYTHING, { start: true });
  const region = rig.region();
  region.map();
  const before = (await rig.backend.state()).log.length;
  region.removeMappings(new MemoryRange(0x4000, 0x8000));
  const log = (await rig.backend.state()).log.slice(before);
  assertEquals([...new Set(log)].slice(0, 3), ["GET_VRING_BASE", "REM_MEM_REG", "ADD_MEM_REG"]);
  assertEquals(log.filter((name) => name === "REM_MEM_REG").length, 1);
  assert(log.lastIndexOf("ADD_MEM_REG") < log.indexOf("SET_VRING_KICK"), log.join());
  assertEquals(rig.frontend.vrings, [{ index: 0, state: "running" }]);
  assertEquals((await rig.backend.state()).vrings[0]?.SET_VRING_BASE, 3);
  region[Symbol.dispose]();
});

Deno.test("what a request takes and gives back at once sends nothing, and a switch is one change", async () => {
  await using rig = await Rig.make(WHOLE, { start: true, x86Legacy: true });
  const before = (await rig.backend.state()).log.length;
  for (const range of rig.guest.ramRanges.filter(({ start, end }) => start >= 0xa0000 && end <= 0x10_0000)) {
    rig.guest.setRamVisibility(range, "read-only");
    rig.guest.setRamVisibility(range, "read-write");
  }
  assertEquals((await rig.backend.state()).log.slice(before), []);
  assertEquals((await rig.backend.state()).regions.length, 1);
  const [one, other] = [rig.region(), rig.region()];
  one.map();
  const log = (await rig.backend.state()).log.length;
  rig.guest.regions.batch(() => {
    other.map();
    one.unmap();
  });
  assertEquals((await rig.backend.state()).log.slice(log), ["SET_MEM_TABLE"]);
});

Deno.test("a switch that is refused half done is taken back", async () => {
  await using rig = await Rig.make({ ...EVERYTHING, faults: [{ on: "ADD_MEM_REG", nth: 3, act: "refuse" }] });
  using first = Mappable.memfd("first", 0x10_0000);
  first.write(0, new Uint8Array([1]));
  const [one, other] = [rig.region({ file: first }), rig.region()];
  one.map();
  const before = (await rig.backend.state()).log.length;
  const switching = () =>
    rig.guest.regions.batch(() => {
      other.map();
      one.unmap();
    });
  assertThrows(switching, MappingError);
  const { log } = await rig.backend.state();
  assertEquals(log.slice(before, before + 3), ["REM_MEM_REG", "ADD_MEM_REG", "ADD_MEM_REG"]);
  assertEquals([...await rig.backend.read(0x1000_0000, 1)], [1]);
  assertEquals(await rig.held(), rig.told);
  switching();
  assertEquals([...await rig.backend.read(0x1000_0000, 1)], [0]);
  one[Symbol.dispose]();
  other[Symbol.dispose]();
});

Deno.test("all back ends are told before the first is waited for, and what it refuses is taken back from those", async () => {
  await using rig = await Rig.make({ ...EVERYTHING, faults: [{ on: "ADD_MEM_REG", nth: 2, act: "refuse" }] });
  await using other = await ScriptedBackend.start();
  using frontend = await other.connect(EVERYTHING);
  using memory = new VhostUserMemory(frontend);
  using _attached = rig.guest.regions.addDmaTarget(memory);
  using region = rig.region();
  const before = (await other.state()).log.length;
  assertThrows(() => region.map(), MappingError);
  const { log, regions } = await other.state();
  assertEquals(log.slice(before), ["ADD_MEM_REG", "REM_MEM_REG"]);
  assertEquals([await rig.held(), rangesOf(regions)], [rig.told, rig.told]);
  region.map();
  assertEquals([await rig.held(), rangesOf((await other.state()).regions)], [rig.told, rig.told]);
});

/** A target that refuses whatever is announced, in the end. */
class Refusing implements DmaTarget {
  refuses = false;
  mapDma(): undefined {}
  unmapDma(): undefined {}
  prepareDma(): undefined {
    if (this.refuses) throw new Error("no room");
  }
}

Deno.test("what a back end was told is taken back where another target refuses the request", async () => {
  await using rig = await Rig.make();
  const target = new Refusing();
  using _attached = rig.guest.regions.addDmaTarget(target);
  const region = rig.region();
  for (const [ask, messages] of [[() => region.map(), "ADD REM"], [() => region.unmap(), "REM ADD"]] as const) {
    target.refuses = true;
    const before = (await rig.backend.state()).log.length;
    const held = rig.told;
    assertThrows(ask, MappingError, "no room");
    const { log } = await rig.backend.state();
    assertEquals(log.slice(before), messages.split(" ").map((name) => `${name}_MEM_REG`));
    assertEquals([await rig.held(), rig.told], [held, held]);
    target.refuses = false;
    ask();
    assertEquals(await rig.held(), rig.told);
  }
  region[Symbol.dispose]();
});

Deno.test("a back end that does not take back what it was told is cut off, and keeps it until it is gone", async () => {
  await using rig = await Rig.make({ ...EVERYTHING, faults: [{ on: "REM_MEM_REG", nth: 1, act: "refuse" }] });
  const target = new Refusing();
  using _attached = rig.guest.regions.addDmaTarget(target);
  const region = rig.region();
  const held = rig.told;
  target.refuses = true;
  assertThrows(() => region.map(), MappingError, "no room");
  assertEquals(rig.frontend.state, "cut off");
  assertEquals(rig.told, [...held, String(region.range)], "it may have it");
  target.refuses = false;
});

Deno.test("what a back end was told is taken back where host memory cannot be mapped", async () => {
  await using backend = await ScriptedBackend.start();
  using frontend = await backend.connect(EVERYTHING);
  const faults = new Faults();
  using regions = new RegionManager(new RecordingVa<Mappable>(0x1_0000_0000, { faults }));
  using memory = new VhostUserMemory(frontend);
  using _attached = regions.addDmaTarget(memory);
  using file = Mappable.memfd("added", 0x1000);
  const region = regions.newRegion({ name: "added", range: MemoryRange.of(ADDED_AT, 0x1000), priority: 1 });
  region.addMapping({ rangeInRegion: MemoryRange.of(0, 0x1000), mappable: file });
  const before = (await backend.state()).log.length;
  faults.failAfter(0, { on: ({ method }) => method === "map" });
  assertThrows(() => region.map(), MappingError);
  assertEquals((await backend.state()).log.slice(before), ["ADD_MEM_REG", "REM_MEM_REG"]);
  assertEquals(memory.table, []);
  region.map();
  assertEquals((await backend.state()).regions.map(({ gpa }) => gpa), [ADDED_AT]);
});

for (const others of [0, 9]) {
  Deno.test(`an entry with a vring is cut, with ${others} entries beside it`, async () => {
    await using rig = await Rig.make(EVERYTHING, { start: true, x86Legacy: true });
    const regions = Array.from({ length: others }, (_, i) => rig.region({ start: 0x1000_0000 * (i + 1) }));
    for (const region of regions) region.map();
    const before = (await rig.backend.state()).log.length;
    rig.guest.setRamVisibility(new MemoryRange(0xa0000, 0xc0000), "unmapped");
    const { log, vrings } = await rig.backend.state();
    assertEquals(await rig.held(), rig.told);
    assertEquals([rig.frontend.vrings[0]?.state, vrings[0]?.running], ["running", 1]);
    const sent = log.slice(before).filter((name) => name.endsWith("MEM_REG") || name === "SET_MEM_TABLE");
    if (others === 0) assertEquals(sent, ["SET_MEM_TABLE"]);
    else {
      // First the parts, which this back end refuses while the whole is there; so that is taken back, and done in turn.
      assertEquals(sent[0], "ADD_MEM_REG");
      assertEquals(sent.slice(-3), ["REM_MEM_REG", "ADD_MEM_REG", "ADD_MEM_REG"]);
    }
    for (const region of regions) region[Symbol.dispose]();
  });
}
