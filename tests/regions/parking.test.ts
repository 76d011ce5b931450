import { spareMappings } from "../../ffi/host/mapping_budget.ts";
import { assertEquals, assertLess, assertStrictEquals, assertThrows } from "@std/assert";
import { GuestMemoryManager, Mappable, RegionManager, VaMapper } from "membacking";
import { RecordingPartition } from "membacking/testing";
import { mappings, status } from "../support/proc.ts";
import { PAGE, range } from "../support/units.ts";

const MIB = 0x10_0000;

/** Real host memory. */
function newManager(overlap: "nested" | "any" = "nested") {
  const stack = new DisposableStack();
  const va = stack.use(VaMapper.reserve(64 * MIB));
  return { stack, va, regions: stack.use(new RegionManager(va, { overlap })) };
}

/** The first byte of each of `pages` from `gpa` on. */
function firstBytes({ memory }: RegionManager, gpa: number, pages: number): number[] {
  return Array.from({ length: pages }, (_, page) => memory.readUint8(gpa + page * PAGE));
}

for (const kind of ["private", "copy-on-write"] as const) {
  Deno.test(`${kind} memory keeps its bytes while its region is unmapped, hidden and mapped read-only`, () => {
    const { stack, regions } = newManager();
    using _stack = stack;
    using base = Mappable.memfd("base", 16 * PAGE);
    using other = Mappable.memfd("other", 16 * PAGE);
    base.write(5 * PAGE, new Uint8Array([55]));
    const region = regions.newRegion({ name: kind, range: range(0, 16 * PAGE), priority: 0 });
    const whole = range(0, 16 * PAGE);
    if (kind === "private") region.addMapping({ rangeInRegion: whole, mappable: "private" });
    else region.addMapping({ rangeInRegion: whole, mappable: base, copyOnWrite: true });
    region.map();
    regions.memory.writeUint8(2 * PAGE, 22);
    const before = firstBytes(regions, 0, 16);

    region.unmap();
    assertThrows(() => regions.memory.readUint8(2 * PAGE));
    region.map({ writable: false });
    assertEquals(firstBytes(regions, 0, 16), before);
    region.map({ writable: true });

    const above = regions.newRegion({ name: "above", range: whole, priority: 1 });
    above.addMapping({ rangeInRegion: whole, mappable: other });
    above.map();
    assertEquals(firstBytes(regions, 0, 16), new Array(16).fill(0));
    above[Symbol.dispose]();
    assertEquals(firstBytes(regions, 0, 16), before);
    regions.memory.writeUint8(2 * PAGE, 23);
    assertStrictEquals(regions.memory.readUint8(2 * PAGE), 23);
    const byte = new Uint8Array(1);
    base.read(2 * PAGE, byte);
    assertEquals(byte[0], 0);
  });
}

Deno.test("private memory that is several kernel mappings is parked and brought back as one", () => {
  const { stack, regions } = newManager("any");
  using _stack = stack;
  using file = Mappable.memfd("file", 4 * PAGE);
  const region = regions.newRegion({ name: "private", range: range(0, 16 * PAGE), priority: 0 });
  region.addMapping({ rangeInRegion: range(0, 16 * PAGE), mappable: "private" });
  region.map();
  for (let page = 0; page < 16; page++) regions.memory.writeUint8(page * PAGE, page + 1);
  const before = firstBytes(regions, 0, 16);
  // Parts of it go and come back, each for itself.
  for (const at of [3, 8, 9]) {
    using hole = regions.newRegion({ name: "above", range: range(at * PAGE, (at + 2) * PAGE), priority: 1 });
    hole.addMapping({ rangeInRegion: range(0, PAGE), mappable: file });
    hole.map();
  }
  region.unmap();
  region.map();
  assertEquals(firstBytes(regions, 0, 16), before);
});

Deno.test("parked memory leaves no mapping behind once it is back, given up, or the manager gone", () => {
  const before = mappings().length;
  const size = status("VmSize");
  for (let i = 0; i < 100; i++) {
    const { stack, regions } = newManager();
    using _stack = stack;
    const add = (start: number) => {
      const region = regions.newRegion({ name: "private", range: range(start, start + MIB), priority: 0 });
      region.addMapping({ rangeInRegion: range(0, MIB), mappable: "private" });
      region.map();
      regions.memory.fill(start, PAGE, 1);
      return region;
    };
    const back = add(0);
    const spare = spareMappings();
    back.unmap();
    back.map();
    assertStrictEquals(spareMappings(), spare);
    const gone = add(4 * MIB);
    gone.unmap();
    gone[Symbol.dispose]();
    assertStrictEquals(spareMappings(), spare);
    add(8 * MIB).unmap();
  }
  // The runtime makes and gives up mappings of its own.
  assertLess(mappings().length, before + 50);
  // Addresses with nothing at them show in no count of mappings, since neighbours are one.
  assertLess(status("VmSize"), size + 50 * 1024);
});

Deno.test("locked private memory is not parked", () => {
  const { stack, regions } = newManager();
  using _stack = stack;
  const region = regions.newRegion({ name: "private", range: range(0, MIB), priority: 0 });
  region.addMapping({ rangeInRegion: range(0, MIB), mappable: "private" });
  region.map();
  {
    using lock = regions.memory.lock(range(0, PAGE), { write: true });
    lock.bytes[0] = 5;
    assertThrows(() => region.unmap(), Error, "locked");
  }
  region.unmap();
  region.map();
  assertStrictEquals(regions.memory.readUint8(0), 5);
});

Deno.test("private RAM of a guest memory manager can be switched off and on", () => {
  const ram = range(0, 16 * MIB);
  using guest = GuestMemoryManager.create({
    maxAddress: 32 * MIB,
    ram: [{ ranges: [ram], backing: "private", name: "anonymous" }],
  });
  const vm = new RecordingPartition();
  using _attached = guest.attachPartition(vm);
  guest.memory.writeUint32(8 * MIB, 0x1234_5678);
  guest.setRamVisibility(ram, "unmapped");
  assertEquals(vm.ranges, []);
  guest.setRamVisibility(ram, "read-write");
  assertStrictEquals(guest.memory.readUint32(8 * MIB), 0x1234_5678);
});
