import { assert, assertEquals, assertFalse, assertStrictEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import {
  DisposedError,
  GuestMemoryError,
  GuestMemoryManager,
  Mappable,
  MappingError,
  RegionManager,
  VaMapper,
} from "membacking";
import { PAGE, range } from "../support/units.ts";

const MIB = 2 ** 20;

/** 1 MiB of RAM, a hole, a read-only MiB, private memory, a device of one page; 16 MiB in all. */
function create(): GuestMemoryManager {
  const guest = GuestMemoryManager.create({
    maxAddress: 16 * MIB,
    ram: [
      { name: "low", ranges: [range(0, MIB), range(2 * MIB, 3 * MIB)] },
      { name: "own", ranges: [range(3 * MIB, 4 * MIB)], backing: "private" },
    ],
  });
  guest.setRamVisibility(range(2 * MIB, 3 * MIB), "read-only");
  return guest;
}

Deno.test("find says what shows at an address: region, file, offset, host address", () => {
  using guest = create();
  using file = Mappable.memfd("bar", 4 * PAGE);
  using bar = guest.newDeviceMemory("bar", 2 * PAGE);
  bar.map({ offset: PAGE, mappable: file, fileOffset: 2 * PAGE, length: PAGE });
  bar.mapToGuest(8 * MIB, true);
  const { memory } = guest;

  const piece = memory.find(8 * MIB + PAGE + 7);
  assert(piece !== null);
  assertEquals(piece.range, range(8 * MIB + PAGE, 8 * MIB + 2 * PAGE));
  assertEquals([piece.region.name, piece.region.type, piece.region.priority], ["bar", "device", 0]);
  assertEquals([piece.writable, piece.kind, piece.fileOffset], [true, "shared", 2 * PAGE]);
  assertEquals(piece.hva, memory.hostAddress(8 * MIB + PAGE, PAGE));
  piece.mappable?.write(2 * PAGE, new Uint8Array([9]));
  assertEquals(memory.readUint8(8 * MIB + PAGE), 9);
  assert(Object.isFrozen(piece) && Object.isFrozen(piece.region) && Object.isFrozen(piece.range));

  assertEquals(memory.find(8 * MIB), null);
  assertEquals(memory.find(2 * MIB)?.writable, false);
  const own = memory.find(3 * MIB);
  assertEquals([own?.kind, own?.mappable, own?.fileOffset], ["private", null, 0]);
  for (const gpa of [MIB, -1, 0.5, NaN, Infinity, 16 * MIB, 2 ** 60, "0" as never]) {
    assertEquals(memory.find(gpa), null);
  }
});

Deno.test("pieces are what is backed, in order, cut to the range, and as they were at the call", () => {
  using guest = create();
  const { memory } = guest;
  const all = [...memory.pieces()];
  assertEquals(all.map((piece) => `${piece.range}`), ["0x0-0x100000", "0x200000-0x300000", "0x300000-0x400000"]);
  const some = memory.pieces(range(MIB - PAGE, 3 * MIB + PAGE));
  guest.setRamVisibility(range(0, MIB), "unmapped");
  assertEquals([...some].map((piece) => `${piece.range}`), [
    "0xff000-0x100000",
    "0x200000-0x300000",
    "0x300000-0x301000",
  ]);
  assertEquals([...memory.pieces()].length, 2);
  assertEquals([...memory.pieces(range(16 * MIB, 17 * MIB))], []);
  assertEquals([...memory.pieces(range(0, 0))], []);
  assertThrows(() => memory.pieces({ start: 0, end: PAGE } as never), TypeError, "pieces needs a MemoryRange");
});

Deno.test("isMapped says what an access would find, and throws at nothing", () => {
  using guest = create();
  const { memory } = guest;
  fc.assert(fc.property(fc.nat(5 * MIB), fc.nat(2 * MIB), fc.boolean(), (gpa, length, write) => {
    let can = true;
    try {
      memory.hostAddress(gpa, length, { write });
    } catch (error) {
      assert(error instanceof GuestMemoryError);
      can = false;
    }
    assertEquals(memory.isMapped(gpa, length, { write }), can);
  }));
  const odd: [number, number][] = [[-1, 1], [0.5, 1], [NaN, 1], [0, -1], [0, NaN], [0, 0.5], [2 ** 53, 1], [
    0,
    2 ** 53,
  ]];
  for (const [gpa, length] of odd) assertFalse(memory.isMapped(gpa, length));
  assert(memory.isMapped(16 * MIB, 0));
});

Deno.test("an error says which address is in the way", () => {
  using guest = create();
  const { memory } = guest;
  const at = (access: () => unknown) => assertThrows(access, GuestMemoryError).at;
  assertEquals(at(() => memory.read(MIB - 4, 8)), MIB);
  assertEquals(at(() => memory.write(2 * MIB - 4, new Uint8Array(8))), 2 * MIB - 4);
  assertEquals(at(() => memory.writeUint32(2 * MIB, 1)), 2 * MIB);
  assertEquals(at(() => memory.read(16 * MIB - 4, 8)), 16 * MIB);
});

Deno.test("hostAddress is refused where no lock could make it hold", () => {
  const path = Deno.makeTempFileSync({ dir: "/dev/shm" });
  try {
    Deno.truncateSync(path, PAGE);
    using va = VaMapper.reserve(MIB);
    using regions = new RegionManager(va);
    using file = Mappable.open(path, { write: true });
    const region = regions.newRegion({ name: "file", range: range(0, PAGE), priority: 0 });
    region.addMapping({ rangeInRegion: range(0, PAGE), mappable: file });
    region.map();
    const refused = (act: () => unknown) => assertThrows(act, MappingError).message;
    const why = `since someone may truncate "${path}": open it with fixedSize: true if nobody will`;
    assertEquals(refused(() => regions.memory.hostAddress(0, 8)), `This memory has no host address to use, ${why}`);
    assertEquals(refused(() => regions.memory.loadUint32(0)), `This memory has no atomic access, ${why}`);
    assertEquals(refused(() => regions.memory.lock(range(0, PAGE))), `This memory cannot be locked, ${why}`);
    using memfd = Mappable.memfd("loose", PAGE, { seal: false });
    region.addMapping({ rangeInRegion: range(0, PAGE), mappable: memfd });
    assertEquals(
      refused(() => regions.memory.lock(range(0, PAGE))),
      'This memory cannot be locked, since someone may truncate memfd "loose": seal it with F_SEAL_SHRINK, or make it ' +
        "with fixedSize: true if nobody will",
    );
  } finally {
    Deno.removeSync(path);
  }
});

Deno.test("regions() lists all regions, mapped or not, plain and frozen", () => {
  using guest = create();
  const extra = guest.regions.newRegion({
    name: "extra",
    range: range(8 * MIB, 9 * MIB),
    priority: 3,
    type: "device",
    holes: "fault",
  });
  const listed = guest.regions.regions();
  assertEquals(listed.map(({ name }) => name), ["low", "low", "own", "extra"]);
  const last = listed.at(-1);
  assertEquals(last, {
    id: extra.id,
    name: "extra",
    range: range(8 * MIB, 9 * MIB),
    priority: 3,
    type: "device",
    holes: "fault",
    params: null,
  });
  assertEquals(listed[1]?.params, { writable: false, executable: true, prefetch: false });
  assert(Object.isFrozen(listed) && Object.isFrozen(last) && Object.isFrozen(listed[1]?.params));
  guest.regions.batch(() => {
    extra.map();
    assertEquals(guest.regions.regions().at(-1)?.params?.writable, true);
  });
  extra[Symbol.dispose]();
  assertEquals(guest.regions.regions().length, 3);
  guest[Symbol.dispose]();
  assertThrows(() => guest.regions.regions(), DisposedError);
  assertThrows(() => guest.memory.find(0), DisposedError);
});

Deno.test("lockAll locks every range or none", () => {
  using guest = create();
  const { memory } = guest;
  const chain = [range(0, PAGE), range(0x8000, 0xa000), range(0x4000, 0x5000)];
  {
    using held = memory.lockAll(chain, { write: true });
    assertEquals(held.locks.map((lock) => lock.range), chain);
    held.locks[1]?.bytes.set([7], 0x1000);
    assertEquals(memory.readUint8(0x9000), 7);
    assertEquals(guest.regions.inspect().locks.length, 3);
  }
  assertEquals(guest.regions.inspect().locks, []);
  assertThrows(() => memory.lockAll([...chain, range(2 * MIB, 2 * MIB + PAGE)], { write: true }), GuestMemoryError);
  assertEquals(guest.regions.inspect().locks, []);
  assertThrows(() => memory.lockAll([...chain, range(0, 0)]), RangeError);
  assertThrows(() => memory.lockAll(chain.values() as never), TypeError);
  using none = memory.lockAll([]);
  assertStrictEquals(none.locks.length, 0);
});
