import { assert, assertEquals, assertInstanceOf, assertStringIncludes, assertThrows } from "@std/assert";
import {
  DisposedError,
  Mappable,
  MappingError,
  MemoryRange,
  type Partition,
  RegionManager,
  RegionOverlapError,
} from "membacking";
import { RecordingPartition, RecordingVa } from "membacking/testing";
import { Rig } from "./rig.ts";
import { range } from "../support/units.ts";

/** A rig with a partition, a DMA target and one mapped region, so that a request that does too much is seen. */
function watched(): Rig {
  const rig = new Rig();
  rig.partition();
  rig.dmaTarget();
  rig.backed(0x1000, 0x3000, { name: "ram", priority: 5 });
  rig.take();
  return rig;
}

/** Checks that `action` throws and that neither a target nor the manager changed. */
function assertRefused<E extends Error>(
  rig: Rig,
  action: () => unknown,
  errorClass: abstract new (...args: never[]) => E,
  ...parts: string[]
): E {
  const before = rig.manager.inspect();
  let error: unknown;
  try {
    action();
  } catch (thrown) {
    error = thrown;
  }
  assert(error instanceof errorClass, `expected ${errorClass.name}, got ${Deno.inspect(error)}`);
  for (const part of parts) assertStringIncludes(error.message, part);
  assertEquals(rig.take(), []);
  assertEquals(rig.manager.inspect(), before);
  return error;
}

/** A value that is not what the types say, as untyped callers pass it. */
function wrong<T>(value: unknown): T {
  return value as T;
}

Deno.test("newRegion refuses an empty range", () => {
  using rig = watched();
  assertRefused(rig, () => rig.region(0x4000, 0x4000, { name: "nothing" }), RangeError, "nothing");
});

Deno.test("newRegion refuses a range beyond the reservation", () => {
  using rig = watched();
  assertRefused(rig, () => rig.region(0xf_f000, 0x10_1000), RangeError, "0xff000-0x101000", "0x100000");
});

Deno.test("newRegion takes a range that ends where the reservation ends", () => {
  using rig = watched();
  rig.backed(0xf_f000, 0x10_0000);
});

Deno.test("newRegion refuses a range that is no MemoryRange", () => {
  using rig = watched();
  for (const range of [undefined, null, { start: 0, end: 0x1000 }, "0x0-0x1000"]) {
    assertRefused(rig, () => rig.manager.newRegion({ name: "r", range: wrong(range), priority: 0 }), TypeError);
  }
});

for (const priority of [-1, 256, 0.5, NaN, Infinity]) {
  Deno.test(`newRegion refuses the priority ${priority}`, () => {
    using rig = watched();
    assertRefused(rig, () => rig.region(0x8000, 0x9000, { priority }), RangeError, `${priority}`);
  });
}

Deno.test("newRegion takes the priorities 0 and 255", () => {
  using rig = watched();
  rig.region(0x8000, 0x9000, { priority: 255 });
  rig.region(0x8000, 0x9000, { priority: 0 });
});

Deno.test("newRegion refuses a priority, name, type or kind of holes that is of no known kind", () => {
  using rig = watched();
  const options = { name: "r", range: range(0x8000, 0x9000), priority: 0 };
  for (const bad of [{ priority: wrong<number>("1") }, { name: wrong<string>(7) }]) {
    assertRefused(rig, () => rig.manager.newRegion({ ...options, ...bad }), Error);
  }
  assertRefused(rig, () => rig.manager.newRegion({ ...options, type: wrong("rom") }), TypeError, "rom");
  assertRefused(rig, () => rig.manager.newRegion({ ...options, holes: wrong("ignore") }), TypeError, "ignore");
});

Deno.test("newRegion refuses a forbidden overlap", () => {
  using rig = watched();
  assertRefused(rig, () => rig.region(0x2000, 0x4000), RegionOverlapError, "ram", "0x1000-0x3000");
});

for (const value of [0x1001, 0.5, -0x1000, NaN, Infinity, 2 ** 53]) {
  Deno.test(`a range with the end ${value} cannot be made, so no request can get it`, () => {
    assertThrows(() => new MemoryRange(0, value), RangeError);
  });

  Deno.test(`addMapping refuses the file offset ${value}`, () => {
    using rig = watched();
    const region = rig.region(0x8000, 0x9000);
    const mappable = rig.file();
    rig.take();
    assertRefused(
      rig,
      () => region.addMapping({ rangeInRegion: range(0, 0x1000), mappable, fileOffset: value }),
      RangeError,
      "offset",
    );
  });

  Deno.test(`addPartition refuses the offset ${value}`, () => {
    using rig = watched();
    const partition = new RecordingPartition({ calls: rig.calls });
    assertRefused(rig, () => rig.manager.addPartition(partition, { offset: value }), RangeError);
  });
}

Deno.test("addPartition refuses an offset at which guest memory would end beyond 2^52", () => {
  using rig = watched();
  const partition = new RecordingPartition({ calls: rig.calls });
  assertRefused(
    rig,
    () => rig.manager.addPartition(partition, { offset: 2 ** 52 - 0x1000 }),
    RangeError,
    "0x10000000000000",
  );
  rig.manager.addPartition(partition, { offset: 2 ** 52 - rig.va.length });
});

Deno.test("addMapping and removeMappings refuse an empty range", () => {
  using rig = watched();
  const region = rig.region(0x8000, 0xa000, { name: "bar" });
  const mappable = rig.file();
  const rangeInRegion = range(0x1000, 0x1000);
  assertRefused(rig, () => region.addMapping({ rangeInRegion, mappable }), RangeError, "bar");
  assertRefused(rig, () => region.removeMappings(rangeInRegion), RangeError, "bar");
});

Deno.test("addMapping and removeMappings refuse a range that reaches out of the region", () => {
  using rig = watched();
  const region = rig.region(0x8000, 0xa000);
  const mappable = rig.file();
  for (const rangeInRegion of [range(0x1000, 0x3000), range(0x2000, 0x3000), range(0x8000, 0x9000)]) {
    assertRefused(rig, () => region.addMapping({ rangeInRegion, mappable }), RangeError, `${rangeInRegion}`);
    assertRefused(rig, () => region.removeMappings(rangeInRegion), RangeError, `${rangeInRegion}`);
  }
});

Deno.test("addMapping and removeMappings refuse what is no MemoryRange", () => {
  using rig = watched();
  const region = rig.region(0x8000, 0xa000);
  const mappable = rig.file();
  assertRefused(rig, () => region.addMapping({ rangeInRegion: wrong({ start: 0, end: 0x1000 }), mappable }), TypeError);
  assertRefused(rig, () => region.removeMappings(wrong(undefined)), TypeError);
});

Deno.test("addMapping refuses a file that is too short, and says how long it is", () => {
  using rig = watched();
  const region = rig.region(0x8000, 0xa000);
  const mappable = rig.file(0x1000);
  for (const [fileOffset, end] of [[0, 0x2000], [0x1000, 0x1000], [2 ** 40, 0x1000]] as const) {
    const error = assertRefused(
      rig,
      () => region.addMapping({ rangeInRegion: range(0, end), mappable, fileOffset }),
      MappingError,
      "0x1000",
    );
    assertEquals(`${error.range}`, `${range(0x8000, 0x8000 + end)}`);
  }
});

Deno.test("addMapping refuses to map a read-only file writable, and so does leaving writable out", () => {
  using rig = watched();
  const region = rig.region(0x8000, 0xa000);
  using mappable = Mappable.open(`/proc/self/fd/${rig.file().fd}`);
  const rangeInRegion = range(0, 0x1000);
  assertRefused(rig, () => region.addMapping({ rangeInRegion, mappable, writable: true }), MappingError, "writable");
  assertRefused(rig, () => region.addMapping({ rangeInRegion, mappable }), MappingError, "writable");
});

Deno.test("addMapping refuses a mappable that is closed", () => {
  using rig = watched();
  const region = rig.region(0x8000, 0xa000);
  const mappable = Mappable.memfd("closed", 0x1000);
  mappable[Symbol.dispose]();
  assertRefused(rig, () => region.addMapping({ rangeInRegion: range(0, 0x1000), mappable }), DisposedError, "closed");
});

Deno.test("addMapping refuses what is no mappable", () => {
  using rig = watched();
  const region = rig.region(0x8000, 0xa000);
  for (const mappable of [undefined, null, 3, "shared", {}]) {
    assertRefused(
      rig,
      () => region.addMapping({ rangeInRegion: range(0, 0x1000), mappable: wrong(mappable) }),
      TypeError,
    );
  }
});

Deno.test("addMapping refuses a file offset for private memory", () => {
  using rig = watched();
  const region = rig.region(0x8000, 0xa000);
  assertRefused(
    rig,
    () => region.addMapping({ rangeInRegion: range(0, 0x1000), mappable: "private", fileOffset: 0x1000 }),
    RangeError,
    "0x1000",
  );
});

Deno.test("addMapping refuses a NUMA node that cannot be", () => {
  using rig = watched();
  const region = rig.region(0x8000, 0xa000);
  for (const hostNumaNode of [-1, 0.5, NaN, 1024]) {
    assertRefused(
      rig,
      () => region.addMapping({ rangeInRegion: range(0, 0x1000), mappable: rig.file(), policy: { hostNumaNode } }),
      RangeError,
      `${hostNumaNode}`,
    );
  }
});

Deno.test("a refused addMapping leaves no open file behind", () => {
  using rig = watched();
  const region = rig.region(0x8000, 0xa000);
  const openFiles = () => [...Deno.readDirSync("/proc/self/fd")].length;
  const mappable = rig.file(0x1000);
  const before = openFiles();
  for (let i = 0; i < 50; i++) {
    assertThrows(() => region.addMapping({ rangeInRegion: range(0, 0x2000), mappable }), MappingError);
    assertThrows(() => region.addMapping({ rangeInRegion: range(0x4000, 0x5000), mappable }), RangeError);
  }
  assertEquals(openFiles(), before);
});

Deno.test("every request on a region that was disposed is refused, and disposing it again does nothing", () => {
  using rig = watched();
  const region = rig.backed(0x8000, 0xa000, { name: "gone" });
  region[Symbol.dispose]();
  const mappable = rig.file();
  rig.take();
  assertRefused(rig, () => region.map(), DisposedError, "gone");
  assertRefused(rig, () => region.unmap(), DisposedError, "gone");
  assertRefused(rig, () => region.addMapping({ rangeInRegion: range(0, 0x1000), mappable }), DisposedError, "gone");
  assertRefused(rig, () => region.removeMappings(range(0, 0x1000)), DisposedError, "gone");
  region[Symbol.dispose]();
  assertEquals([rig.take(), region.visible, region.mapParams], [[], [], null]);
});

Deno.test("every request on a manager that was disposed is refused, and disposing anything again does nothing", () => {
  using rig = watched();
  const region = rig.backed(0x8000, 0xa000);
  const { handle } = rig.partition({ name: "other" });
  rig.manager[Symbol.dispose]();
  rig.take();
  const mappable = rig.file();
  const requests = [
    () => rig.region(0x0, 0x1000),
    () => region.map(),
    () => region.unmap(),
    () => region.addMapping({ rangeInRegion: range(0, 0x1000), mappable }),
    () => region.removeMappings(range(0, 0x1000)),
    () => rig.manager.addPartition(new RecordingPartition()),
    () => rig.dmaTarget(),
    () => rig.manager.batch(() => 1),
  ];
  for (const request of requests) assertThrows(request, DisposedError);
  rig.manager[Symbol.dispose]();
  region[Symbol.dispose]();
  handle[Symbol.dispose]();
  assertEquals(rig.take(), []);
});

Deno.test("a manager refuses an overlap mode that is of no known kind", () => {
  assertThrows(() => new RegionManager(new RecordingVa(0x1000), { overlap: wrong("some") }), TypeError, "some");
});

Deno.test("one reservation serves one manager", () => {
  const va = new RecordingVa<Mappable>(0x1000);
  using _manager = new RegionManager(va);
  assertThrows(() => new RegionManager(va), TypeError);
});

Deno.test("a partition or DMA target that returns a promise fails the request and is undone", () => {
  using rig = new Rig();
  const { target } = rig.partition();
  // Async methods are what a caller without types might write: their failures would come after the request.
  const late: Partition = { mapRange: wrong(() => Promise.reject(new Error("late"))), unmapRange() {}, name: "late" };
  rig.manager.addPartition(late);
  const region = rig.region(0x1000, 0x3000);
  region.addMapping({ rangeInRegion: range(0, 0x2000), mappable: rig.file() });
  const error = assertThrows(() => region.map(), MappingError, "late");
  assertInstanceOf(error.cause, TypeError);
  assertEquals([target.ranges, rig.memory(), region.mapParams], [[], [], null]);

  using other = new Rig();
  other.manager.addDmaTarget({ mapDma: wrong(() => Promise.resolve()), unmapDma: () => undefined });
  const second = other.region(0x1000, 0x3000);
  second.addMapping({ rangeInRegion: range(0, 0x2000), mappable: other.file() });
  assertInstanceOf(assertThrows(() => second.map(), MappingError).cause, TypeError);
  assertEquals(other.memory(), []);
});
