import { assert, assertEquals, assertThrows } from "@std/assert";
import {
  DisposedError,
  GuestMemoryError,
  GuestMemoryManager,
  Mappable,
  MappingError,
  MemoryRange,
  ReentrancyError,
  RegionManager,
  VaMapper,
} from "membacking";
import { RecordingPartition } from "membacking/testing";
import { PAGE, range } from "../support/units.ts";

const MIB = 2 ** 20;
const GIB = 2 ** 30;

/** 1 MiB of RAM, a hole, a read-only MiB, private memory; 16 MiB in all. */
function create(): GuestMemoryManager {
  const guest = GuestMemoryManager.create({
    maxAddress: 16 * MIB,
    ram: [
      { ranges: [range(0, MIB), range(2 * MIB, 3 * MIB)] },
      { ranges: [range(3 * MIB, 4 * MIB)], backing: "private" },
    ],
  });
  guest.memory.fill(2 * MIB, MIB, 0x22);
  guest.setRamVisibility(range(2 * MIB, 3 * MIB), "read-only");
  return guest;
}

function kindOf(access: () => unknown): string {
  const error = assertThrows(access, GuestMemoryError);
  return error.kind;
}

Deno.test("values are little-endian, of every width, aligned or not", () => {
  using guest = create();
  const { memory } = guest;
  memory.writeBigUint64(0x1001, 0x8877_6655_4433_2211n);
  assertEquals([...memory.read(0x1000, 10)], [0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0]);
  assertEquals(memory.readUint8(0x1002), 0x22);
  assertEquals(memory.readUint16(0x1002), 0x3322);
  assertEquals(memory.readUint32(0x1005), 0x8877_6655);
  assertEquals(memory.readBigUint64(0x1001), 0x8877_6655_4433_2211n);
  memory.writeUint8(0x2000, 0x1ff);
  memory.writeUint16(0x2001, 0x1_ffee);
  memory.writeUint32(0x2003, -2);
  assertEquals([...memory.read(0x2000, 7)], [0xff, 0xee, 0xff, 0xfe, 0xff, 0xff, 0xff]);
});

Deno.test("accesses cross pages and mappings", () => {
  using guest = create();
  const { memory } = guest;
  const bytes = Uint8Array.from({ length: 3 * PAGE }, (_, i) => i % 251);
  memory.write(PAGE - 5, bytes);
  assertEquals(memory.read(PAGE - 5, bytes.length), bytes);
  memory.writeUint32(3 * MIB, 0xddcc_bbaa);
  assertEquals(memory.readUint32(3 * MIB - 2), 0xbbaa_2222);
  assertEquals(memory.readBigUint64(3 * MIB - 4), 0xddcc_bbaa_2222_2222n);
  const across = new Uint8Array(2 * PAGE);
  memory.readInto(3 * MIB - PAGE, across);
  assertEquals([across[PAGE - 1], across[PAGE]], [0x22, 0xaa]);
});

Deno.test("windows of 1 GiB are crossed like anything else, and memory far above them is reached", () => {
  using guest = GuestMemoryManager.create({
    maxAddress: 2 ** 40,
    ram: [{ ranges: [range(GIB - MIB, GIB + MIB), range(2 ** 40 - 2 * MIB, 2 ** 40)] }],
  });
  const { memory } = guest;
  for (const at of [GIB, 2 ** 40 - MIB]) {
    memory.writeBigUint64(at - 3, 0x8877_6655_4433_2211n);
    assertEquals(memory.readBigUint64(at - 3), 0x8877_6655_4433_2211n);
    assertEquals([memory.readUint16(at - 1), memory.readUint32(at - 1)], [0x4433, 0x6655_4433]);
    const bytes = Uint8Array.from({ length: 5 * PAGE }, (_, i) => i % 13);
    memory.write(at - 2 * PAGE - 1, bytes);
    assertEquals(memory.read(at - 2 * PAGE - 1, bytes.length), bytes);
    memory.fill(at - PAGE, 2 * PAGE, 0x55);
    assertEquals([memory.readUint8(at - PAGE - 1) === 0x55, memory.readUint32(at - 2)], [false, 0x5555_5555]);
  }
  assertEquals(kindOf(() => memory.readUint16(2 ** 40 - 1)), "out-of-range");
});

Deno.test("alternating between two memories reads each right", () => {
  using guest = GuestMemoryManager.create({
    maxAddress: 8 * GIB,
    ram: [{ ranges: [range(0, MIB), range(2 * MIB, 3 * MIB), range(4 * GIB, 4 * GIB + MIB)] }],
  });
  const places = [0, 2 * MIB, 4 * GIB];
  for (let round = 0; round < 3; round++) {
    places.forEach((at, i) => guest.memory.writeUint32(at + round * 8, 10 * round + i));
  }
  for (let round = 0; round < 3; round++) {
    places.forEach((at, i) => assertEquals(guest.memory.readUint32(at + round * 8), 10 * round + i));
  }
});

Deno.test("what is not mapped, read-only or beyond the end is an error of that kind, and nothing is written", () => {
  using guest = create();
  const { memory } = guest;
  const bytes = new Uint8Array(8).fill(0xee);
  const before = memory.read(MIB - 8, 8);
  assertEquals(kindOf(() => memory.readUint8(MIB)), "not-mapped");
  assertEquals(kindOf(() => memory.readUint32(MIB - 2)), "not-mapped");
  assertEquals(kindOf(() => memory.write(MIB - 4, bytes)), "not-mapped");
  assertEquals(kindOf(() => memory.fill(MIB - 4, 8, 1)), "not-mapped");
  assertEquals(kindOf(() => memory.writeUint32(MIB - 1, 1)), "not-mapped");
  assertEquals(memory.read(MIB - 8, 8), before);

  assertEquals(kindOf(() => memory.writeUint8(2 * MIB, 1)), "read-only");
  assertEquals(kindOf(() => memory.compareExchangeUint32(2 * MIB, 0x2222_2222, 1)), "read-only");
  assertEquals(memory.readUint8(2 * MIB), 0x22);
  // From read-only into writable memory and the other way round.
  assertEquals(kindOf(() => memory.write(3 * MIB - 4, bytes)), "read-only");
  assertEquals(memory.readUint32(3 * MIB), 0);

  assertEquals(kindOf(() => memory.readUint8(16 * MIB)), "out-of-range");
  assertEquals(kindOf(() => memory.readUint32(16 * MIB - 2)), "out-of-range");
  assertEquals(kindOf(() => memory.read(0, 2 ** 52)), "out-of-range");
  assertEquals(kindOf(() => memory.read(2 ** 52, 1)), "out-of-range");
  assertEquals(kindOf(() => memory.lock(range(MIB - PAGE, MIB + PAGE))), "not-mapped");
  assertEquals(kindOf(() => memory.lock(range(2 * MIB, 3 * MIB), { write: true })), "read-only");
});

Deno.test("an error says what was accessed and what was in the way", () => {
  using guest = create();
  const error = assertThrows(() => guest.memory.read(MIB - 0x10, 0x20), GuestMemoryError);
  assertEquals([error.gpa, error.length, error.kind], [MIB - 0x10, 0x20, "not-mapped"]);
  assertEquals(error.message, "Cannot access 32 bytes of guest memory at 0xffff0: nothing is mapped at 0x100000");
});

Deno.test("an access of no bytes is possible up to the end", () => {
  using guest = create();
  const { memory } = guest;
  for (const gpa of [0, MIB, 2 * MIB, 5 * MIB, 16 * MIB]) {
    assertEquals(memory.read(gpa, 0).length, 0);
    memory.readInto(gpa, new Uint8Array(0));
    memory.write(gpa, new Uint8Array(0));
    memory.fill(gpa, 0, 1);
  }
  assertEquals(kindOf(() => memory.read(16 * MIB + 1, 0)), "out-of-range");
  assertThrows(() => memory.read(-1, 0), RangeError);
});

Deno.test("no address is one before the first access, nor once the manager is gone", () => {
  const guest = create();
  const { memory } = guest;
  const empty = new Uint8Array(0);
  const reads = (gpa: number) => [() => memory.read(gpa, 0), () => memory.readInto(gpa, empty)];
  for (const read of reads(2 ** 53)) assertThrows(read, RangeError);
  guest[Symbol.dispose]();
  for (const gpa of [0, 4096]) for (const read of reads(gpa)) assertThrows(read, DisposedError);
  for (const read of reads(2 ** 53)) assertThrows(read);
});

Deno.test("addresses, lengths and values of the wrong kind are refused wherever the last access was", () => {
  using guest = create();
  const { memory } = guest;
  const wrong = (value: unknown) => value as never;
  for (const warm of [0x1000, 3 * MIB]) {
    for (const gpa of [-1, 0.5, NaN, Infinity, -Infinity, 2 ** 53, warm + 0.5]) {
      memory.readUint8(warm);
      for (const access of accesses(memory, gpa)) assertThrows(access, RangeError);
    }
    for (const gpa of ["4096", "4096e-0", "0x1000", [warm], { valueOf: () => warm }, undefined, null, true, 4096n]) {
      memory.readUint8(warm);
      for (const access of accesses(memory, wrong(gpa))) assertThrows(access, TypeError);
    }
  }
  for (const length of [-1, 0.5, NaN, 2 ** 53]) {
    assertThrows(() => memory.read(0, length), RangeError);
    assertThrows(() => memory.fill(0, length, 0), RangeError);
  }
  for (const length of ["4", { valueOf: () => 4 }, 4n, undefined]) {
    assertThrows(() => memory.read(0, wrong(length)), TypeError);
    assertThrows(() => memory.fill(0, wrong(length), 0), TypeError);
  }
  for (const value of ["1", { valueOf: () => 1 }, 1n, undefined, null]) {
    assertThrows(() => memory.writeUint8(0, wrong(value)), TypeError);
    assertThrows(() => memory.writeUint16(0, wrong(value)), TypeError);
    assertThrows(() => memory.writeUint32(0, wrong(value)), TypeError);
    assertThrows(() => memory.compareExchangeUint32(0, wrong(value), 0), TypeError);
    assertThrows(() => memory.compareExchangeUint32(0, 0, wrong(value)), TypeError);
  }
  assertThrows(() => memory.writeBigUint64(0, wrong(1)), TypeError);
  for (const value of [-1, 256, 0.5, NaN, "1"]) assertThrows(() => memory.fill(0, 1, wrong(value)), RangeError);
  for (const bytes of [[1, 2], "ab", new Uint16Array(2), new ArrayBuffer(2), { length: 2 }, null, undefined]) {
    assertThrows(() => memory.write(0, wrong(bytes)), TypeError);
    assertThrows(() => memory.readInto(0, wrong(bytes)), TypeError);
  }
  assertThrows(() => memory.lock(wrong([0, PAGE])), TypeError);
  assertThrows(() => memory.lock(MemoryRange.EMPTY), RangeError);
});

function* accesses(memory: GuestMemoryManager["memory"], gpa: number): Generator<() => unknown> {
  yield () => memory.read(gpa, 4);
  yield () => memory.readInto(gpa, new Uint8Array(4));
  yield () => memory.write(gpa, new Uint8Array(4));
  yield () => memory.fill(gpa, 4, 0);
  yield () => memory.readUint8(gpa);
  yield () => memory.readUint16(gpa);
  yield () => memory.readUint32(gpa);
  yield () => memory.readBigUint64(gpa);
  yield () => memory.writeUint8(gpa, 0);
  yield () => memory.writeUint16(gpa, 0);
  yield () => memory.writeUint32(gpa, 0);
  yield () => memory.writeBigUint64(gpa, 0n);
  yield () => memory.compareExchangeUint32(gpa, 0, 0);
}

Deno.test("code of the caller's that runs during an access cannot take the memory away under it", () => {
  using guest = create();
  const { memory } = guest;
  const low = range(0, MIB);
  const hide = () => guest.setRamVisibility(low, "unmapped");
  const show = () => guest.setRamVisibility(low, "read-write");
  memory.readUint8(0);
  const meddling = { valueOf: () => (hide(), 0x1000) } as never;
  assertThrows(() => memory.readUint32(meddling));
  show();
  memory.readUint8(0);
  assertThrows(() => memory.writeUint32(0, meddling));
  show();

  class Meddler extends Uint8Array<ArrayBuffer> {
    override set(): void {
      hide();
    }
    override get length(): number {
      hide();
      return 0x10000;
    }
    override subarray(): Meddler {
      hide();
      return this;
    }
  }
  for (const at of [0, MIB - 4]) {
    show();
    memory.readUint8(0);
    const bytes = new Meddler(new ArrayBuffer(8));
    if (at === 0) {
      memory.write(at, bytes);
      memory.readInto(at, bytes);
    } else {
      assertThrows(() => memory.write(at, bytes), GuestMemoryError);
      assertThrows(() => memory.readInto(at, bytes), GuestMemoryError);
    }
  }
  const proxy = new Proxy(new Uint8Array(8), { get: (target, key) => (hide(), Reflect.get(target, key)) });
  assertThrows(() => memory.write(0, proxy), TypeError);
  assertThrows(() => memory.readInto(0, proxy), TypeError);
});

Deno.test("bytes may be a part of a buffer, shared between threads, or guest memory itself", () => {
  using guest = create();
  const { memory } = guest;
  const buffer = new Uint8Array(16);
  memory.write(0x100, new Uint8Array(new SharedArrayBuffer(4)).fill(7));
  memory.readInto(0x100, buffer.subarray(4, 8));
  assertEquals([...buffer], [0, 0, 0, 0, 7, 7, 7, 7, 0, 0, 0, 0, 0, 0, 0, 0]);
  memory.readInto(0x100, new Uint8Array(new SharedArrayBuffer(4)));
  using locked = memory.lock(range(0, PAGE), { write: true });
  memory.write(0x102, locked.bytes.subarray(0x100, 0x104));
  assertEquals([...memory.read(0x100, 6)], [7, 7, 7, 7, 7, 7]);
});

Deno.test("compare-exchange writes only where it finds what is expected", () => {
  using guest = create();
  const { memory } = guest;
  memory.writeUint32(8, 0xffff_fffe);
  assertEquals(memory.compareExchangeUint32(8, 5, 6), 0xffff_fffe);
  assertEquals(memory.readUint32(8), 0xffff_fffe);
  assertEquals(memory.compareExchangeUint32(8, 0xffff_fffe, 6), 0xffff_fffe);
  assertEquals(memory.readUint32(8), 6);
  for (const gpa of [1, 2, 3, 0x1002]) assertThrows(() => memory.compareExchangeUint32(gpa, 0, 0), RangeError);
});

Deno.test("every change of the memory map is seen by the next access", () => {
  using guest = create();
  const { memory } = guest;
  const low = range(0, MIB);
  memory.writeUint32(0, 1);
  guest.setRamVisibility(low, "read-only");
  assertEquals(kindOf(() => memory.writeUint32(0, 2)), "read-only");
  assertEquals(memory.readUint32(0), 1);
  guest.setRamVisibility(low, "unmapped");
  assertEquals(kindOf(() => memory.readUint32(0)), "not-mapped");
  using file = Mappable.memfd("device", PAGE);
  file.write(0, new Uint8Array([9]));
  const device = guest.newDeviceMemory("device", PAGE);
  device.map({ offset: 0, mappable: file, length: PAGE });
  device.mapToGuest(0, true);
  assertEquals(memory.readUint32(0), 9);
  guest.setRamVisibility(low, "read-write");
  assertEquals(memory.readUint32(0), 1);
});

Deno.test("inside a batch accesses see memory as it is, and after it as it has become", () => {
  using guest = create();
  const { memory } = guest;
  guest.regions.batch(() => {
    guest.setRamVisibility(range(0, MIB), "unmapped");
    memory.writeUint32(0, 5);
  });
  assertEquals(kindOf(() => memory.readUint32(0)), "not-mapped");
});

Deno.test("a callback of the manager cannot access memory that is being changed", () => {
  using va = VaMapper.reserve(16 * MIB);
  const tries: unknown[] = [];
  const attempt = () => {
    for (const access of [() => regions.memory.readUint32(0), () => regions.memory.lock(range(0, PAGE))]) {
      try {
        access();
        tries.push("no error");
      } catch (error) {
        tries.push(error instanceof ReentrancyError ? "refused" : error);
      }
    }
  };
  using regions: RegionManager = new RegionManager(va, {
    quiesce: () => (attempt(), { [Symbol.dispose]: attempt }),
    logger: { debug: attempt, info: attempt, warn: attempt, error: attempt },
  });
  const vm = new RecordingPartition();
  using _attached = regions.addPartition({
    mapRange: (hva, range, access) => (attempt(), vm.mapRange(hva, range, access)),
    unmapRange: (range) => (attempt(), vm.unmapRange(range)),
  });
  using file = Mappable.memfd("ram", PAGE);
  const ram = regions.newRegion({ name: "ram", range: range(0, PAGE), priority: 0 });
  ram.addMapping({ rangeInRegion: range(0, PAGE), mappable: file });
  ram.map();
  regions.memory.readUint32(0);
  ram.map({ writable: false });
  regions.memory.readUint32(0);
  ram.unmap();
  assert(tries.length > 8);
  assertEquals(new Set(tries), new Set(["refused"]));
});

Deno.test("a target without memory of its own says so", () => {
  using regions = new RegionManager({
    base: 0x7f00_0000_0000,
    length: MIB,
    map() {},
    protect() {},
    remove() {},
    park() {},
    restore() {},
    discard() {},
  });
  using file = Mappable.memfd("ram", PAGE);
  const ram = regions.newRegion({ name: "ram", range: range(0, PAGE), priority: 0 });
  ram.addMapping({ rangeInRegion: range(0, PAGE), mappable: file });
  ram.map();
  assertThrows(() => regions.memory.readUint8(0), Error, "no memory to look at");
});

Deno.test("memory of a file that can be truncated has no atomic access and no lock, but reads and writes", () => {
  const path = Deno.makeTempFileSync({ dir: "/dev/shm" });
  try {
    Deno.truncateSync(path, MIB);
    using file = Mappable.open(path, { write: true });
    using guest = GuestMemoryManager.create({ maxAddress: MIB, ram: [{ ranges: [range(0, MIB)], backing: file }] });
    guest.memory.writeUint32(0, 7);
    assertEquals(guest.memory.readUint32(0), 7);
    assertEquals(Deno.readFileSync(path)[0], 7);
    assertThrows(() => guest.memory.compareExchangeUint32(0, 7, 8), MappingError, "fixedSize");
    const error = assertThrows(() => guest.memory.lock(range(0, PAGE)), MappingError, "fixedSize");
    assertEquals(`${error.range}`, "0x0-0x100000");
  } finally {
    Deno.removeSync(path);
  }
});
