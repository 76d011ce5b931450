import { assertEquals, assertStrictEquals, assertThrows } from "@std/assert";
import { GuestMemoryManager, Mappable, MappingError, RegionManager, VaMapper } from "membacking";
import { range } from "../support/units.ts";

/** A manager with one region of four pages at 0x1000. */
function regionOverFile(file: Mappable, writable = true) {
  const stack = new DisposableStack();
  const va = stack.use(VaMapper.reserve(0x10_0000));
  const regions = stack.use(new RegionManager(va));
  const region = stack.use(regions.newRegion({ name: "cow", range: range(0x1000, 0x5000), priority: 0 }));
  region.addMapping({ rangeInRegion: range(0, 0x4000), mappable: file, copyOnWrite: true, writable });
  region.map();
  return { stack, regions, region };
}

function pattern(file: Mappable): void {
  for (let page = 0; page < 4; page++) file.write(page * 0x1000, new Uint8Array([page + 1]));
}

Deno.test("copy-on-write: what is written is the mapping's own, and the file stays as it is", () => {
  using file = Mappable.memfd("base", 0x4000);
  pattern(file);
  const { stack, regions } = regionOverFile(file);
  using _stack = stack;
  assertStrictEquals(regions.memory.readUint8(0x3000), 3);
  regions.memory.writeUint8(0x3000, 99);
  {
    using lock = regions.memory.lock(range(0x1000, 0x2000), { write: true });
    lock.bytes[0] = 98;
  }
  assertEquals([regions.memory.readUint8(0x1000), regions.memory.readUint8(0x3000)], [98, 99]);
  const bytes = new Uint8Array(1);
  assertEquals([0, 0x2000].map((offset) => (file.read(offset, bytes), bytes[0])), [1, 3]);
});

Deno.test("copy-on-write: a file that is open for reading can be written to in memory", () => {
  using memfd = Mappable.memfd("base", 0x4000);
  pattern(memfd);
  using file = Mappable.open(`/proc/self/fd/${memfd.fd}`);
  const { stack, regions, region } = regionOverFile(file);
  using _stack = stack;
  regions.memory.writeUint8(0x1000, 7);
  region.map({ writable: false });
  region.map({ writable: true });
  assertEquals([regions.memory.readUint8(0x1000), regions.memory.readUint8(0x2000)], [7, 2]);
});

Deno.test("copy-on-write: a file that someone may truncate is refused", () => {
  using file = Mappable.memfd("base", 0x4000, { seal: false });
  using va = VaMapper.reserve(0x10_0000);
  using regions = new RegionManager(va);
  using region = regions.newRegion({ name: "cow", range: range(0, 0x4000), priority: 0 });
  const mapping = { rangeInRegion: range(0, 0x4000), mappable: file, copyOnWrite: true };
  assertThrows(() => region.addMapping(mapping), MappingError, "fixedSize: true");
  assertThrows(() => region.addMapping({ ...mapping, copyOnWrite: 1 as unknown as boolean }), TypeError);
});

Deno.test("copy-on-write: DMA targets that need files refuse it, others are told an address without a file", () => {
  using file = Mappable.memfd("base", 0x4000);
  const { stack, regions } = regionOverFile(file);
  using _stack = stack;
  const told: (Mappable | null)[] = [];
  const target = {
    mapDma: ({ mappable }: { mappable: Mappable | null }) => void told.push(mappable),
    unmapDma: () => undefined,
  };
  assertThrows(() => regions.addDmaTarget(target, { needsFd: true }), MappingError, "copy-on-write");
  using _target = regions.addDmaTarget(target);
  assertEquals(told, [null]);
});

Deno.test("copy-on-write: it is never among the regions that can be shared", () => {
  using guest = GuestMemoryManager.create({ maxAddress: 0x40_0000, ram: [{ ranges: [range(0, 0x20_0000)] }] });
  using file = Mappable.memfd("base", 0x1000);
  using region = guest.regions.newRegion({ name: "cow", range: range(0x30_0000, 0x30_1000), priority: 255 });
  region.addMapping({ rangeInRegion: range(0, 0x1000), mappable: file, copyOnWrite: true });
  region.map();
  assertEquals(guest.shareableRegions().map(({ range }) => `${range}`), ["0x0-0x200000"]);
});
