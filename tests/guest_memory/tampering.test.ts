/** Values that change, lie or shadow: what a JS caller can make without meaning harm. */
import {
  assert,
  assertEquals,
  assertFalse,
  assertNotStrictEquals,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { GuestMemoryManager, Mappable, MemoryRange, RegionManager, RegionOverlapError, VaMapper } from "membacking";
import { RecordingVa } from "membacking/testing";
import { PAGE, range } from "../support/units.ts";

const MIB = 2 ** 20;

function create(): GuestMemoryManager {
  return GuestMemoryManager.create({ maxAddress: 16 * MIB, ram: [{ ranges: [range(0, MIB)] }] });
}

Deno.test("a range that grows after it was checked gives a region and a mapping what was checked", () => {
  using va = VaMapper.reserve(MIB);
  using regions = new RegionManager(va);
  using file = Mappable.memfd("ram", MIB);
  const growing = (start: number, end: number) => {
    let reads = 0;
    const made = Object.create(MemoryRange.prototype);
    return Object.defineProperties(made, {
      start: { get: () => start },
      end: { get: () => reads++ === 0 ? end : 2 ** 40 },
    }) as MemoryRange;
  };
  const region = regions.newRegion({ name: "ram", range: growing(0, 4 * PAGE), priority: 1 });
  assertEquals(region.range.end, 4 * PAGE);
  region.addMapping({ rangeInRegion: growing(0, 2 * PAGE), mappable: file });
  region.map();
  assert(regions.memory.isMapped(0, 2 * PAGE));
  assertFalse(regions.memory.isMapped(0, 2 * PAGE + 1));
  assertThrows(() => Object.assign(region.range, { end: 2 ** 40 }), TypeError);
  for (const end of [NaN, Infinity, -PAGE, 2 ** 53]) {
    const bad = Object.assign(Object.create(MemoryRange.prototype), { start: 0, end });
    assertThrows(() => region.addMapping({ rangeInRegion: bad, mappable: file }), RangeError);
    assertThrows(() => region.removeMappings(bad), RangeError);
    assertThrows(() => regions.memory.lock(bad), RangeError);
    assertThrows(() => regions.newRegion({ name: "bad", range: bad, priority: 0 }), RangeError);
  }
});

Deno.test("an error hands out no object of the memory map", () => {
  using va = VaMapper.reserve(MIB);
  using regions = new RegionManager(va);
  regions.newRegion({ name: "old", range: range(0, 4 * PAGE), priority: 1 });
  const newer = { name: "new", range: range(2 * PAGE, 8 * PAGE), priority: 1 };
  const error = assertThrows(() => regions.newRegion(newer), RegionOverlapError);
  assertEquals(Object.keys(error.existing), ["name", "range", "priority"]);
  assert(Object.isFrozen(error.existing) && Object.isFrozen(error.existing.range) && Object.isFrozen(error.new));
});

Deno.test("the host address of a reservation cannot be changed", () => {
  using va = VaMapper.reserve(MIB);
  const { base } = va;
  assertThrows(() => Object.assign(va, { base: 0x1000 }), TypeError);
  assertThrows(() => Object.defineProperty(va, "base", { value: 0x1000 }), TypeError);
  assertThrows(() => Object.defineProperty(va, "length", { value: 2 ** 46 }), TypeError);
  assertEquals(va.base, base);
});

Deno.test("what a buffer says of itself does not keep a lock from being revoked", () => {
  const attacks: ((buffer: ArrayBuffer) => void)[] = [
    (buffer) => Object.defineProperty(buffer, "transfer", { value: () => {} }),
    (buffer) => Object.defineProperty(buffer, "detached", { value: false }),
    (buffer) => Object.defineProperties(buffer, { transfer: { value: () => {} }, detached: { value: true } }),
    (buffer) => Object.setPrototypeOf(buffer, null),
    (buffer) => Object.freeze(buffer),
  ];
  for (const attack of attacks) {
    using guest = create();
    const lock = guest.memory.lock(range(0, PAGE), { write: true });
    attack(lock.bytes.buffer);
    const view = lock.bytes;
    lock[Symbol.dispose]();
    assertEquals([view.length, view[0]], [0, undefined]);
    guest.setRamVisibility(range(0, MIB), "unmapped");
  }
});

Deno.test("a policy is what it was when it was passed, and equal ones are the same", () => {
  const va = new RecordingVa<Mappable>(MIB);
  using regions = new RegionManager(va);
  using file = Mappable.memfd("ram", MIB);
  const region = regions.newRegion({ name: "ram", range: range(0, MIB), priority: 1 });
  const policy = { transparentHugepages: true };
  region.addMapping({ rangeInRegion: range(0, MIB), mappable: file, policy });
  policy.transparentHugepages = false;
  region.map();
  assertEquals(va.at(0)?.policy, { transparentHugepages: true });
  assertNotStrictEquals(va.at(0)?.policy, policy);
  const { length } = va.calls;
  region.addMapping({ rangeInRegion: range(0, PAGE), mappable: file, policy: { transparentHugepages: true } });
  assertEquals(va.calls.length, length, "the same memory under an equal policy needs no step");
  for (const bad of [{ coreDump: 1 }, { fork: "no" }, { name: 7 }, { hostNumaNode: 1.5 }, null]) {
    assertThrows(() => region.addMapping({ rangeInRegion: range(0, PAGE), mappable: file, policy: bad as never }));
  }
});

Deno.test("the handles of files that a manager hands out are not the user's to dispose", () => {
  using guest = create();
  const handle = guest.memory.find(0)?.mappable;
  assert(handle !== null && handle !== undefined);
  assertThrows(() => handle[Symbol.dispose](), TypeError, "clone it to keep one");
  using own = handle.clone();
  assertEquals(own.size, handle.size);
  assertEquals(guest.memory.readUint8(0), 0);
});

Deno.test("a bigint for an address is named for what it is", () => {
  using guest = create();
  const { memory } = guest;
  const big = 4096n as unknown as number;
  const accesses: (() => unknown)[] = [
    () => memory.readUint8(big),
    () => memory.writeUint32(big, 0),
    () => memory.read(big, 4),
    () => memory.read(0, big),
    () => memory.write(big, new Uint8Array(4)),
    () => memory.fill(big, 1, 1),
    () => memory.fill(0, big, 1),
    () => memory.loadUint32(big),
    () => memory.compareExchangeUint32(big, 0, 0),
    () => memory.hostAddress(big, 1),
    () => memory.hostAddress(0, big),
    () => VaMapper.reserve(MIB, { alignment: big }),
  ];
  for (const access of accesses) {
    const error = assertThrows(access, TypeError);
    assertStringIncludes(error.message, "must be a number, got bigint");
  }
  assertFalse(memory.isMapped(big, 1));
  assertEquals(memory.find(big), null);
});
