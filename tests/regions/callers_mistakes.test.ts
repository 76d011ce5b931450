/**
 * What callers can get wrong about the things they bring along. Found by using the package without having read it.
 */

import { assert, assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import {
  DisposedError,
  type DmaTarget,
  GuestMemoryManager,
  LimitError,
  Mappable,
  type MapParams,
  MappingError,
  MemoryRange,
  type Partition,
  ReentrancyError,
  RegionManager,
  VaMapper,
} from "membacking";
import { RecordingPartition } from "membacking/testing";
import { Rig, slots } from "./rig.ts";
import { openFds } from "../support/proc.ts";
import { range } from "../support/units.ts";

/** Values that are no targets. */
const NO_TARGETS: readonly unknown[] = [undefined, null, 5, "vm", {}, { mapRange() {}, mapDma() {} }];

Deno.test("what is no target is refused at the door", () => {
  using rig = new Rig();
  for (const value of NO_TARGETS) {
    assertThrows(() => rig.manager.addPartition(value as Partition), TypeError, "partition");
    assertThrows(() => rig.manager.addDmaTarget(value as DmaTarget), TypeError, "DMA target");
  }
  rig.backed(0, 0x1000);
  assertEquals([rig.manager.inspect().partitions.length, rig.manager.inspect().dmaTargets.length], [0, 0]);
});

Deno.test("a capacity that becomes nonsense later on limits nothing, and no request fails for it", () => {
  using rig = new Rig();
  const partition = { mapRange() {}, unmapRange() {}, capacity: 8 as unknown };
  const attached = rig.manager.addPartition(partition as Partition);
  for (const capacity of [5n, "7", {}, NaN, -3, null]) {
    partition.capacity = capacity;
    const region = rig.backed(0, 0x4000);
    region.unmap();
    region.map();
    region[Symbol.dispose]();
  }
  attached[Symbol.dispose]();
});

Deno.test("a capacity that is no number of ranges is refused", () => {
  using rig = new Rig();
  for (const capacity of [-1, NaN, 1.5, "7"]) {
    const partition = { mapRange() {}, unmapRange() {}, capacity } as unknown as Partition;
    assertThrows(() => rig.manager.addPartition(partition), RangeError, "capacity");
  }
});

Deno.test("flags that are no booleans are refused, and nothing has changed", () => {
  using rig = new Rig();
  const region = rig.backed(0, 0x1000);
  const bad = (value: unknown) => value as boolean;
  for (const value of ["false", 0, 1, null]) {
    assertThrows(() => region.map({ writable: bad(value) }), TypeError, "writable");
    assertThrows(() => region.map({ prefetch: bad(value) }), TypeError, "prefetch");
    assertThrows(
      () => region.addMapping({ rangeInRegion: range(0, 0x1000), mappable: rig.file(), writable: bad(value) }),
      TypeError,
      "writable",
    );
    assertThrows(() => rig.partition({ pin: bad(value) }), TypeError, "pin");
  }
  assertEquals(region.mapParams, { writable: true, executable: true, prefetch: false });
});

Deno.test("a target whose name cannot be asked, and that throws nothing sensible, is undone all the same", () => {
  using rig = new Rig();
  const { target } = rig.partition();
  const region = rig.region(0, 0x2000);
  region.addMapping({ rangeInRegion: range(0, 0x2000), mappable: rig.file() });
  rig.manager.addDmaTarget({
    mapDma() {
      throw Object.create(null);
    },
    unmapDma() {},
    get name(): string {
      throw new Error("no name");
    },
  } as unknown as DmaTarget);
  const error = assertThrows(() => region.map(), MappingError);
  assertStringIncludes(error.message, "DMA target");
  assertEquals([region.mapParams, slots(target), rig.memory()], [null, [], []]);
  assertEquals(rig.manager.inspect().dmaTargets[0]?.name, "DMA target");
});

Deno.test("params that were handed out cannot be changed, nor what partitions are told", () => {
  using rig = new Rig();
  const region = rig.backed(0, 0x1000);
  const params = region.mapParams as { -readonly [K in keyof MapParams]: MapParams[K] };
  assertThrows(() => params.writable = false, TypeError);
  rig.manager.addPartition({
    mapRange(_hva, _range, access) {
      assert(Object.isFrozen(access));
    },
    unmapRange() {},
  });
});

Deno.test("a range that was tampered with does not become a region", () => {
  using rig = new Rig();
  const tampered = Object.create(MemoryRange.prototype, { start: { value: 0x123 }, end: { value: 0x2000 } });
  assertThrows(() => rig.manager.newRegion({ name: "r", range: tampered, priority: 0 }), RangeError);
});

Deno.test("a logger that works asynchronously and fails is ignored", async () => {
  const fail = () => Promise.reject(new Error("no disk"));
  using rig = new Rig({ logger: { debug: fail, info: fail, warn: fail, error: fail } });
  rig.backed(0, 0x1000);
  await new Promise((resolve) => setTimeout(resolve));
});

Deno.test("a hold that cannot be released is logged, and the request is done", () => {
  const errors: unknown[] = [];
  const logger = { debug() {}, info() {}, warn() {}, error: (...args: unknown[]) => void errors.push(args) };
  const quiesce = () => ({
    [Symbol.dispose]() {
      throw new Error("stuck");
    },
  });
  using rig = new Rig({ logger, quiesce });
  const { target } = rig.partition();
  const region = rig.backed(0, 0x1000);
  region.map({ writable: false });
  assertEquals([slots(target), errors.length], [["0x0-0x1000 ro"], 1]);
});

Deno.test("one partition can be attached twice where the two do not overlap, and both count against its capacity", () => {
  using rig = new Rig();
  const { manager } = rig;
  const vm = new RecordingPartition({ capacity: 3 });
  using _main = manager.addPartition(vm);
  assertThrows(() => manager.addPartition(vm, { offset: 0x8_0000 }), TypeError, "attached already");
  const alias = manager.addPartition(vm, { offset: 0x10_0000 });
  rig.backed(0, 0x1000);
  assertEquals(slots(vm), ["0x0-0x1000 rw", "0x100000-0x101000 rw"]);
  const second = rig.region(0x2000, 0x3000);
  second.addMapping({ rangeInRegion: range(0, 0x1000), mappable: rig.file() });
  assertThrows(() => second.map(), LimitError);
  alias[Symbol.dispose]();
  second.map();
  assertEquals(slots(vm), ["0x0-0x1000 rw", "0x2000-0x3000 rw"]);
});

Deno.test("a disposed manager makes no device memory and has nothing to inspect", () => {
  const guest = GuestMemoryManager.create({ maxAddress: 0x10000, ram: [] });
  guest[Symbol.dispose]();
  assertThrows(() => guest.newDeviceMemory("bar", 0x1000), DisposedError);
  assertThrows(() => guest.regions.inspect(), DisposedError);
});

Deno.test("an array that lies about its length moves no byte beyond its own", () => {
  class Liar extends Uint8Array {
    override get length(): number {
      return 32 << 20;
    }
    override get byteLength(): number {
      return 32 << 20;
    }
  }
  using file = Mappable.memfd("file", 64 << 20);
  file.write(0, new Uint8Array(32).fill(7));
  const liar = new Liar(16);
  file.read(0, liar);
  assertEquals(new Uint8Array(liar.buffer), new Uint8Array(16).fill(7));
  file.write(0x1000, liar);
  const back = new Uint8Array(32);
  file.read(0x1000, back);
  assertEquals(back, new Uint8Array([...new Uint8Array(16).fill(7), ...new Uint8Array(16)]));
});

Deno.test("addMapping on a manager that is disposed or busy keeps no file open", () => {
  const before = openFds();
  {
    using file = Mappable.memfd("left over", 0x1000);
    using regions = new RegionManager(VaMapper.reserve(0x10_0000));
    const region = regions.newRegion({ name: "r", range: new MemoryRange(0, 0x1000), priority: 0 });
    const mapping = { rangeInRegion: new MemoryRange(0, 0x1000), mappable: file };
    let refused: unknown;
    const busy = {
      mapRange: () => {
        try {
          region.addMapping(mapping);
        } catch (error) {
          refused = error;
        }
      },
      unmapRange() {},
    };
    regions.addPartition(busy);
    region.addMapping(mapping);
    region.map();
    assert(refused instanceof ReentrancyError);
    regions[Symbol.dispose]();
    for (let i = 0; i < 10; i++) assertThrows(() => region.addMapping(mapping), DisposedError);
  }
  assertEquals(openFds(), before);
});
