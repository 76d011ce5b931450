import { assert, assertEquals } from "@std/assert";
import { GuestMemoryManager, Mappable } from "membacking";
import { RecordingPartition } from "membacking/testing";
import { range } from "../support/units.ts";

const MIB = 2 ** 20;

Deno.test("inspect() says what guest memory is made of, and survives JSON", () => {
  using saved = Mappable.memfd("saved", 2 * MIB);
  using guest = GuestMemoryManager.create({
    maxAddress: 64 * MIB,
    ram: [
      { ranges: [range(0, MIB)], name: "low", prefetch: true, hostNumaNode: 0 },
      { ranges: [range(2 * MIB, 4 * MIB)], backing: "private", transparentHugepages: false },
      { ranges: [range(4 * MIB, 5 * MIB), range(6 * MIB, 7 * MIB)], backing: saved, name: "high" },
    ],
  });
  const vm = new RecordingPartition({ name: "vm" });
  using _attached = guest.attachPartition(vm);
  using locked = guest.memory.lock(range(0x1000, 0x3000));
  const bar = guest.newDeviceMemory("bar", 0x4000);
  bar.map({ offset: 0x1000, mappable: saved, fileOffset: 0x2000, length: 0x1000, writable: false });
  bar.mapToGuest(16 * MIB, true);
  const hidden = guest.newDeviceMemory("hidden", 0x1000);

  const inspected = guest.inspect();
  assertEquals(JSON.parse(JSON.stringify(inspected)), inspected);
  assertEquals(inspected.ram.map(({ name, ranges, backing }) => [name, backing, ...ranges]), [
    ["low", "shared", "0x0-0x100000"],
    ["ram", "private", "0x200000-0x400000"],
    ["high", "existing", "0x400000-0x500000", "0x600000-0x700000"],
  ]);
  assertEquals(inspected.ram.map(({ prefetch }) => prefetch), [true, false, false]);
  assertEquals(inspected.ram.map(({ hostNumaNode }) => hostNumaNode), [0, null, null]);
  assertEquals(inspected.ram.map(({ transparentHugepages }) => transparentHugepages), [null, false, null]);
  assertEquals(inspected.devices.map(({ name, gpa, mappings }) => [name, gpa, mappings.length]), [
    ["bar", 16 * MIB, 1],
    ["hidden", null, 0],
  ]);
  assertEquals(inspected.devices[0]?.mappings[0], {
    range: "0x1000-0x2000",
    fileOffset: 0x2000,
    writable: false,
    backing: 'memfd "saved"',
  });
  assertEquals(inspected.locks, [{ range: `${locked.range}`, count: 1 }]);
  assertEquals(inspected.regions.length, 5);
  assertEquals(inspected.partitions[0]?.ranges.length, 5);
  hidden[Symbol.dispose]();
  bar[Symbol.dispose]();
  assertEquals(guest.inspect().devices, []);
});

Deno.test("inspect() says how much private and shared memory is really in use", () => {
  using guest = GuestMemoryManager.create({
    maxAddress: 64 * MIB,
    ram: [
      { ranges: [range(0, 16 * MIB)] },
      { ranges: [range(16 * MIB, 32 * MIB)], backing: "private", transparentHugepages: false },
    ],
  });
  const usage = () => {
    const { usage } = guest.inspect();
    assert(usage !== null);
    return usage;
  };
  assertEquals(usage().resident, 0);
  guest.memory.fill(0, 3 * MIB, 1);
  guest.memory.fill(16 * MIB, 2 * MIB, 1);
  assertEquals([usage().shared, usage().private, usage().resident], [3 * MIB, 2 * MIB, 5 * MIB]);
  assertEquals([usage().hugetlb, usage().locked, usage().transparentHuge], [0, 0, 0]);
});
