import { assertEquals, assertThrows } from "@std/assert";
import { GuestMemoryManager, Mappable, MemoryRange, RegionOverlapError } from "membacking";
import { range } from "../support/units.ts";
import { Rig } from "./rig.ts";

Deno.test("regions of equal priority may overlap in any way, and the one made first wins", () => {
  using rig = new Rig({ overlap: "any" });
  const first = rig.backed(0x0, 0x3000, { priority: 1 });
  const second = rig.backed(0x2000, 0x5000, { priority: 1 });
  const third = rig.backed(0x1000, 0x6000, { priority: 1 });
  const seen = () => [first, second, third].map(({ visible }) => visible.map(String));
  assertEquals(seen(), [["0x0-0x3000"], ["0x3000-0x5000"], ["0x5000-0x6000"]]);
  first.unmap();
  assertEquals(seen(), [[], ["0x2000-0x5000"], ["0x1000-0x2000", "0x5000-0x6000"]]);
  second.unmap();
  assertEquals(seen(), [[], [], ["0x1000-0x6000"]]);
  first.map();
  second[Symbol.dispose]();
  assertEquals(seen(), [["0x0-0x3000"], [], ["0x3000-0x6000"]]);
});

Deno.test("under the nested rule regions of equal priority are disjoint or on one range", () => {
  using rig = new Rig();
  rig.backed(0x0, 0x3000, { priority: 1 });
  assertThrows(() => rig.backed(0x2000, 0x5000, { priority: 1 }), RegionOverlapError);
});

const MIB = 0x10_0000;

function newGuest(ramPriority?: number) {
  return GuestMemoryManager.create({
    maxAddress: 64 * MIB,
    ram: [{ ranges: [new MemoryRange(0, 16 * MIB)] }],
    overlap: "any",
    ...(ramPriority !== undefined && { ramPriority }),
  });
}

Deno.test("BARs that a guest moves over each other show in the order in which they were made, wherever they move", () => {
  using guest = newGuest();
  using file = Mappable.memfd("bars", 4 * MIB);
  const [a, b] = ["a", "b"].map((name, i) => {
    const bar = guest.newDeviceMemory(name, 2 * MIB);
    bar.map({ offset: 0, mappable: file, fileOffset: i * 2 * MIB, length: 2 * MIB });
    return bar;
  });
  b?.mapToGuest(32 * MIB, true);
  a?.mapToGuest(40 * MIB, true);
  a?.mapToGuest(33 * MIB, true);
  assertEquals(a?.visible.map(String), [`${MemoryRange.of(33 * MIB, 2 * MIB)}`]);
  assertEquals(b?.visible.map(String), [`${MemoryRange.of(32 * MIB, MIB)}`]);
  b?.mapToGuest(34 * MIB, true);
  assertEquals(b?.visible.map(String), [`${MemoryRange.of(35 * MIB, MIB)}`]);
});

Deno.test("device memory with a priority above that of RAM shows over it", () => {
  using guest = newGuest(10);
  using file = Mappable.memfd("rom", MIB);
  file.write(0, new Uint8Array([7]));
  using rom = guest.newDeviceMemory("rom", MIB, { priority: 11 });
  rom.map({ offset: 0, mappable: file });
  rom.mapToGuest(4 * MIB, false);
  assertEquals(guest.memory.readUint8(4 * MIB), 7);
  assertThrows(() => newGuest(256), RangeError, "ramPriority");
  assertThrows(() => guest.newDeviceMemory("odd", MIB, { priority: -1 }), RangeError, "odd");
  assertThrows(() => guest.addRam({ ranges: [range(8 * MIB, 24 * MIB)] }), RegionOverlapError);
});
