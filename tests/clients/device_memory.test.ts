import { assertEquals, assertRejects } from "@std/assert";
import {
  DisposedError,
  GuestMemoryManager,
  Mappable,
  MappingError,
  MemoryLockedError,
  MemoryRange,
  RegionManagerClient,
  RegionOverlapError,
} from "membacking";
import { openFds } from "../support/proc.ts";
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

Deno.test("RegionManagerClient.newDeviceMemory moves with its contents, or stays where it was, in the order of the calls", async () => {
  using guest = GuestMemoryManager.create({ maxAddress: 0x100_0000, ram: [{ ranges: [new MemoryRange(0, GPA)] }] });
  const vm = new RecordingPartition();
  using _attached = guest.attachPartition(vm);
  const ranges = () => vm.ranges.slice(1).map(({ range }) => range.toString());
  const { port1, port2 } = new MessageChannel();
  using _served = guest.regions.serve(port1);
  using client = await RegionManagerClient.connect(port2);
  const before = openFds();
  {
    await using bar = client.newDeviceMemory("bar", 0x4000);
    using file = Mappable.memfd("bar", 0x3000);
    await bar.map({ offset: 0x1000, mappable: file });
    assertEquals([bar.gpa, await bar.visible], [null, []]);
    const moves = [bar.mapToGuest(GPA, true), bar.mapToGuest(2 * GPA, true), bar.unmap(0x2000, 0x1000)];
    await Promise.all(moves);
    assertEquals([bar.gpa, (await bar.visible).map(String)], [2 * GPA, ["0x200000-0x204000"]]);
    assertEquals(ranges(), ["0x201000-0x202000", "0x203000-0x204000"]);
    client.memory.writeUint32(2 * GPA + 0x1000, 42);

    await assertRejects(() => bar.mapToGuest(GPA - 0x2000, true), RegionOverlapError);
    assertEquals([bar.gpa, guest.memory.readUint32(2 * GPA + 0x1000)], [2 * GPA, 42]);
    {
      using _lock = guest.memory.lock(MemoryRange.of(2 * GPA + 0x1000, 0x1000));
      await assertRejects(() => bar.mapToGuest(GPA, true), MemoryLockedError);
    }
    await bar.mapToGuest(GPA, false);
    assertEquals([vm.accessAt(GPA + 0x1000)?.writable, guest.memory.readUint32(GPA + 0x1000)], [false, 42]);
    await assertRejects(() => bar.map({ offset: 0, mappable: file, length: 0x4000 }), MappingError);
    await assertRejects(() => bar.map({ offset: 0x4000, mappable: file }), RangeError);
    await bar.unmapFromGuest();
    assertEquals(ranges(), []);
    await bar.mapToGuest(GPA, true);
    assertEquals(guest.memory.readUint32(GPA + 0x1000), 42);
    await bar[Symbol.asyncDispose]();
    await assertRejects(() => bar.mapToGuest(GPA, true), DisposedError);
  }
  assertEquals(ranges(), []);
  await client.inspect();
  assertEquals(openFds(), before);
});
