import { assert, assertEquals, assertThrows } from "@std/assert";
import { Mappable, MappingError, MemoryRange } from "membacking";
import { ProtocolFeature } from "membacking/vhost-user";
import { Rig } from "./rig.ts";
import { EVERYTHING, without } from "./scripted_backend.ts";

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
