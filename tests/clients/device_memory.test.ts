import { assertEquals } from "@std/assert";
import { GuestMemoryManager, MemoryRange } from "membacking";
import { RecordingPartition } from "membacking/testing";
import { Remote } from "./remote.ts";

const GPA = 0x10_0000;

Deno.test("SyncRegionManagerClient.newDeviceMemory moves with its contents, or stays where it was", async () => {
  using guest = GuestMemoryManager.create({ maxAddress: 0x100_0000, ram: [{ ranges: [new MemoryRange(0, GPA)] }] });
  const vm = new RecordingPartition();
  using _attached = guest.attachPartition(vm);
  const ranges = () => vm.ranges.slice(1).map(({ range }) => range.toString());
  await using remote = await Remote.start(guest.regions, { sync: true });

  const placed = await remote.run(`
    kept.bar = client.newDeviceMemory("bar", 0x4000);
    using file = client.memfd("bar", 0x2000);
    kept.bar.map({ offset: 0x1000, mappable: file, length: 0x2000 });
    kept.bar.mapToGuest(${GPA}, true);
    client.memory.writeUint32(${GPA} + 0x1000, 42);
    return [kept.bar.gpa, kept.bar.visible.map(String)];
  `);
  assertEquals(placed, [GPA, ["0x100000-0x104000"]]);
  assertEquals(ranges(), ["0x101000-0x103000"]);
  assertEquals(guest.memory.readUint32(GPA + 0x1000), 42);

  const refused = await remote.run(`
    try {
      kept.bar.mapToGuest(${GPA} - 0x2000, true); // half of it over RAM
    } catch (error) {
      return [error instanceof RegionOverlapError, error.existing.range.toString(), kept.bar.gpa];
    }
  `);
  assertEquals(refused, [true, "0x0-0x100000", GPA]);
  assertEquals(ranges(), ["0x101000-0x103000"]);

  assertEquals(await remote.run(`kept.bar.mapToGuest(${2 * GPA}, false); return kept.bar.gpa;`), 2 * GPA);
  assertEquals(ranges(), ["0x201000-0x203000"]);
  assertEquals(vm.accessAt(2 * GPA + 0x1000)?.writable, false);
  assertEquals(guest.memory.readUint32(2 * GPA + 0x1000), 42);

  assertEquals(await remote.run(`kept.bar.unmapFromGuest(); return kept.bar.gpa;`), null);
  assertEquals(ranges(), []);
  await remote.run(`kept.bar.mapToGuest(${GPA}, true); kept.bar[Symbol.dispose]();`);
  assertEquals(ranges(), []);
});
