import { assertEquals, assertStrictEquals, assertThrows } from "@std/assert";
import { GuestMemoryManager, Mappable, MappingError, MemoryRange } from "membacking";
import { internalsOf } from "../../src/regions/region_manager.ts";
import { PAGE, range } from "../support/units.ts";

const MIB = 0x10_0000;

Deno.test("what is written to copy-on-write device memory moves with it, and stays while the guest has it not", () => {
  using guest = GuestMemoryManager.create({ maxAddress: 64 * MIB, ram: [{ ranges: [new MemoryRange(0, MIB)] }] });
  using file = Mappable.memfd("rom", 4 * PAGE);
  file.write(0, new Uint8Array([1]));
  using rom = guest.newDeviceMemory("rom", 4 * PAGE);
  rom.map({ offset: 0, mappable: file, copyOnWrite: true });
  rom.mapToGuest(8 * MIB, true);
  guest.memory.writeUint8(8 * MIB, 42);
  rom.mapToGuest(9 * MIB, true);
  assertStrictEquals(guest.memory.readUint8(9 * MIB), 42);
  rom.unmapFromGuest();
  rom.mapToGuest(10 * MIB, true);
  assertStrictEquals(guest.memory.readUint8(10 * MIB), 42);
  assertThrows(() => rom.map({ offset: 0, mappable: file }), MappingError, "unmap it first");
  assertThrows(() =>
    guest.regions.batch(() => {
      rom.mapToGuest(12 * MIB, true);
      throw new Error("changed my mind");
    })
  );
  assertStrictEquals(guest.memory.readUint8(10 * MIB), 42);
  const byte = new Uint8Array(1);
  file.read(0, byte);
  assertStrictEquals(byte[0], 1);
});

Deno.test("copy-on-write device memory is given up when it is unmapped or disposed, in the guest or not", () => {
  using guest = GuestMemoryManager.create({ maxAddress: 64 * MIB, ram: [{ ranges: [new MemoryRange(0, MIB)] }] });
  using file = Mappable.memfd("rom", 4 * PAGE);
  const parked = () => internalsOf(guest.regions).state().parked.size;
  const bar = guest.newDeviceMemory("bar", 4 * PAGE);
  bar.map({ offset: 0, mappable: file, copyOnWrite: true });
  bar.mapToGuest(8 * MIB, true);
  guest.memory.writeUint8(8 * MIB, 7);
  bar.unmapFromGuest();
  assertEquals(parked(), 1);
  bar.unmap(0, 2 * PAGE);
  assertEquals(parked(), 1);
  bar[Symbol.dispose]();
  assertEquals(parked(), 0);
  const other = guest.newDeviceMemory("other", 4 * PAGE);
  other.map({ offset: 0, mappable: file, copyOnWrite: true });
  other.mapToGuest(8 * MIB, true);
  other[Symbol.dispose]();
  assertEquals(parked(), 0);
  assertThrows(() => guest.memory.read(8 * MIB, range(0, PAGE).length));
});
