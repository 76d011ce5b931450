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

Deno.test("device memory of clients is as old as it is, wherever it moves, and ages are nobody else's", async () => {
  using guest = GuestMemoryManager.create({
    maxAddress: 0x100_0000,
    ram: [{ ranges: [new MemoryRange(0, GPA)] }],
    overlap: "any",
  });
  const { port1, port2 } = new MessageChannel();
  using _served = guest.regions.serve(port1);
  using client = await RegionManagerClient.connect(port2);
  await using remote = await Remote.start(guest.regions, { sync: true });
  const filled = (stamp: number) => {
    const file = Mappable.memfd(`bar ${stamp}`, 0x1000);
    file.write(0, new Uint8Array([stamp]));
    return file;
  };
  // Made in this order, mapped in the other one.
  await using first = client.newDeviceMemory("first", 0x1000);
  await client.inspect(); // It is made by then.
  await remote.run(`kept.second = client.newDeviceMemory("second", 0x1000);`);
  await using third = client.newDeviceMemory("third", 0x1000);
  await client.inspect();
  using fourth = guest.newDeviceMemory("fourth", 0x1000);
  fourth.map({ offset: 0, mappable: filled(4) });
  fourth.mapToGuest(GPA, true);
  await third.map({ offset: 0, mappable: filled(3) });
  await third.mapToGuest(GPA, true);
  assertEquals(guest.memory.readUint8(GPA), 3);
  await remote.run(`
    const file = client.memfd("bar 2", 0x1000);
    file.write(0, new Uint8Array([2]));
    kept.second.map({ offset: 0, mappable: file });
    kept.second.mapToGuest(${GPA}, true);
  `);
  assertEquals(guest.memory.readUint8(GPA), 2);
  await first.map({ offset: 0, mappable: filled(1) });
  for (const gpa of [GPA, 2 * GPA, GPA]) await first.mapToGuest(gpa, true);
  assertEquals(guest.memory.readUint8(GPA), 1);
  await first.mapToGuest(2 * GPA, true);
  await remote.run(`kept.second.mapToGuest(${2 * GPA}, true); kept.second.mapToGuest(${GPA}, true);`);
  assertEquals([guest.memory.readUint8(GPA), guest.memory.readUint8(2 * GPA)], [2, 1]);

  // An age that was not given to the client, or that another region has, is refused.
  const { port1: ownersPort, port2: raw } = new MessageChannel();
  using _raw = guest.regions.serve(ownersPort);
  const answers: { id?: number; answer?: { value?: number; error?: { message: string } } }[] = [];
  raw.onmessage = ({ data }) => void answers.push(data);
  raw.postMessage({ kind: "hello", thread: { tid: Deno.pid, started: null } });
  const ask = async (id: number, request: unknown) => {
    raw.postMessage({ kind: "request", id, request });
    while (!answers.some((answer) => answer.id === id)) await new Promise((resolve) => setTimeout(resolve, 2));
    return answers.find((answer) => answer.id === id)?.answer;
  };
  const region = (age: number) => ({
    kind: "new-region",
    options: { name: "raw", range: [0x40_0000, 0x40_1000], priority: 0, age },
  });
  const age = (await ask(1, { kind: "next-age" }))?.value ?? -1;
  assertEquals((await ask(2, region(age + 1)))?.error?.message, `Age ${age + 1} is not free`);
  assertEquals((await ask(3, region(1)))?.error?.message, "Age 1 is not free");
  const id = (await ask(4, region(age)))?.value ?? -1;
  assertEquals((await ask(5, region(age)))?.error?.message, `Age ${age} is not free`);
  const move = { kind: "batch", changes: [{ kind: "remove", region: id }, region(age), region(age)] };
  assertEquals((await ask(6, move))?.error?.message, `Age ${age} is not free`);
  assertEquals((await ask(7, { ...move, changes: move.changes.slice(0, 2) }))?.error, undefined);
  raw.close();
});
