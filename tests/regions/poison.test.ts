/**
 * Host addresses that are lost for good: a failed call took the old mapping with it, and something else in the process
 * got the addresses before they could be taken back. It could not be provoked with a real kernel, so the host range is
 * one that says so.
 */

import { HostAddresses } from "../../ffi/host/host_addresses.ts";
import { assertEquals, assertInstanceOf, assertThrows } from "@std/assert";
import {
  GuestMemoryError,
  Mappable,
  MappingError,
  MemoryRange,
  RegionManager,
  ReservationLostError,
  type VaTarget,
} from "membacking";
import { RecordingDmaTarget, RecordingPartition } from "membacking/testing";
import { range } from "../support/units.ts";

/** A real reservation that loses what is mapped next over the addresses in `losing`. */
class LosingVa implements VaTarget<Mappable>, Disposable {
  readonly #va: HostAddresses;
  losing: MemoryRange | null = null;
  /** The method that loses it; any when left out. */
  losingMethod: string | undefined;
  readonly touched: string[] = [];

  constructor(length: number) {
    this.#va = HostAddresses.reserve(length);
  }
  get base(): number {
    return this.#va.base;
  }
  get length(): number {
    return this.#va.length;
  }
  view(start: number, end: number): ArrayBuffer {
    return this.#va.view(start, end);
  }
  map(...args: Parameters<VaTarget<Mappable>["map"]>): void {
    this.#touch("map", args[0], args[1]);
    this.#va.map(...args);
  }
  protect(start: number, end: number, writable: boolean): void {
    this.#touch("protect", start, end);
    this.#va.protect(start, end, writable);
  }
  remove(start: number, end: number): void {
    this.#touch("remove", start, end);
    this.#va.remove(start, end);
  }
  park(...args: Parameters<VaTarget<Mappable>["park"]>): void {
    this.#touch("park", args[0], args[1]);
    this.#va.park(...args);
  }
  restore(...args: Parameters<VaTarget<Mappable>["restore"]>): void {
    this.#touch("restore", args[0], args[1]);
    this.#va.restore(...args);
  }
  discard(...args: Parameters<VaTarget<Mappable>["discard"]>): void {
    this.#va.discard(...args);
  }
  #touch(what: string, start: number, end: number): void {
    const range = new MemoryRange(start, end);
    const isLosing = this.losingMethod === undefined || this.losingMethod === what;
    if (isLosing && this.losing !== null && range.overlaps(this.losing)) {
      throw new ReservationLostError(range, new Error("a test says so"));
    }
    this.touched.push(`${what} ${range}`);
  }
  [Symbol.dispose](): void {
    this.#va[Symbol.dispose]();
  }
}

function setUp(stack: DisposableStack) {
  const va = stack.use(new LosingVa(0x10_0000));
  const manager = stack.adopt(new RegionManager(va), (manager) => manager[Symbol.dispose]());
  const vm = new RecordingPartition({ name: "vm" });
  const iommu = new RecordingDmaTarget<Mappable>({ name: "iommu" });
  manager.addPartition(vm);
  manager.addDmaTarget(iommu);
  const file = stack.use(Mappable.memfd("file", 0x10_0000));
  const region = manager.newRegion({ name: "ram", range: range(0, 0x8000), priority: 0 });
  region.addMapping({ rangeInRegion: range(0, 0x4000), mappable: file });
  region.addMapping({ rangeInRegion: range(0x4000, 0x8000), mappable: file, fileOffset: 0x8000 });
  region.map();
  return { va, manager, vm, iommu, file, region };
}

/** Fails a replacement in the first mapping so that its addresses are gone. */
function lose({ va, region, file }: ReturnType<typeof setUp>): MappingError {
  va.losing = range(0x1000, 0x2000);
  const error = assertThrows(
    () => region.addMapping({ rangeInRegion: range(0x1000, 0x2000), mappable: file, fileOffset: 0x2_0000 }),
    MappingError,
  );
  return error;
}

Deno.test("lost host addresses are taken away from every target, and the error says which", () => {
  using stack = new DisposableStack();
  const rig = setUp(stack);
  const error = lose(rig);
  assertInstanceOf(error.cause, ReservationLostError);
  assertEquals(error.outOfStep.map(({ target, range }) => `${target} ${range}`), [
    "host memory 0x1000-0x2000",
    "vm 0x0-0x4000",
    "iommu 0x0-0x4000",
  ]);
  assertEquals(rig.vm.ranges.map(({ range }) => `${range}`), ["0x4000-0x8000"]);
  assertEquals(rig.iommu.mappings.map(({ range }) => `${range}`), ["0x4000-0x8000"]);
});

Deno.test("lost host addresses cannot be accessed, and the rest can", () => {
  using stack = new DisposableStack();
  const rig = setUp(stack);
  lose(rig);
  const { memory } = rig.manager;
  assertThrows(() => memory.readUint32(0x1800), GuestMemoryError);
  memory.writeUint32(0x800, 1);
  memory.writeUint32(0x5000, 2);
  assertEquals([memory.readUint32(0x800), memory.readUint32(0x5000)], [1, 2]);
});

Deno.test("nothing is mapped at lost host addresses again", () => {
  using stack = new DisposableStack();
  const rig = setUp(stack);
  lose(rig);
  rig.va.losing = null;
  rig.va.touched.length = 0;
  for (const [start, end] of [[0x1000, 0x2000], [0, 0x4000]] as const) {
    assertThrows(
      () => rig.region.addMapping({ rangeInRegion: range(start, end), mappable: rig.file, fileOffset: 0x3_0000 }),
      MappingError,
      "lost",
    );
  }
  rig.region.addMapping({ rangeInRegion: range(0x2000, 0x3000), mappable: rig.file, fileOffset: 0x3_0000 });
  assertEquals(rig.va.touched.filter((call) => call.endsWith("0x1000-0x2000")), []);
});

Deno.test("the next request around lost host addresses brings the rest back to the targets", () => {
  using stack = new DisposableStack();
  const rig = setUp(stack);
  lose(rig);
  rig.va.losing = null;
  rig.region.map({ executable: false });
  const at = (gpa: number) => rig.vm.accessAt(gpa) !== null;
  assertEquals([at(0), at(0x1000), at(0x2000), at(0x4000)], [true, false, true, true]);
});

Deno.test("a region over lost host addresses can still be unmapped and disposed, without touching them", () => {
  using stack = new DisposableStack();
  const rig = setUp(stack);
  lose(rig);
  rig.va.losing = null;
  rig.va.touched.length = 0;
  rig.region.unmap();
  rig.region[Symbol.dispose]();
  assertEquals([rig.vm.ranges.length, rig.iommu.mappings.length], [0, 0]);
  const overlapping = rig.va.touched.filter((call) => {
    const [start = 0, end = 0] = call.split(" ")[1]?.split("-").map(Number) ?? [];
    return range(start, end).overlaps(range(0x1000, 0x2000));
  });
  assertEquals(overlapping, []);
});

Deno.test("private memory whose addresses are lost when it goes is undone, and its range given to nobody again", () => {
  using stack = new DisposableStack();
  const { va, manager, vm } = setUp(stack);
  const region = manager.newRegion({ name: "private", range: range(0x1_0000, 0x1_2000), priority: 0 });
  region.addMapping({ rangeInRegion: range(0, 0x2000), mappable: "private" });
  region.map();
  va.losing = range(0x1_0000, 0x1_2000);
  assertThrows(() => region[Symbol.dispose](), MappingError);
  assertEquals(vm.accessAt(0x1_0000), null);
  va.losing = null;
  region[Symbol.dispose]();
  using file = Mappable.memfd("other", 0x2000);
  const next = manager.newRegion({ name: "next", range: range(0x1_0000, 0x1_2000), priority: 0 });
  next.addMapping({ rangeInRegion: range(0, 0x2000), mappable: file });
  assertThrows(() => next.map(), MappingError, "lost");
});

Deno.test("private memory around addresses that are lost comes back", () => {
  using stack = new DisposableStack();
  const { va, manager, file } = setUp(stack);
  const ram = manager.newRegion({ name: "private", range: range(0x1_0000, 0x1_8000), priority: 0 });
  ram.addMapping({ rangeInRegion: range(0, 0x8000), mappable: "private" });
  ram.map();
  for (let gpa = 0x1_0000; gpa < 0x1_8000; gpa += 0x1000) manager.memory.writeUint32(gpa, gpa + 1);
  const device = manager.newRegion({ name: "device", range: range(0x1_0000, 0x1_8000), priority: 1 });
  device.addMapping({ rangeInRegion: range(0, 0x1000), mappable: file });
  device.addMapping({ rangeInRegion: range(0x3000, 0x4000), mappable: file });
  va.losing = range(0x1_3000, 0x1_4000);
  va.losingMethod = "map";
  const error = assertThrows(() => device.map(), MappingError);
  assertEquals(error.outOfStep.map(({ target, range }) => `${target} ${range}`), [
    "host memory 0x13000-0x14000",
    "vm 0x10000-0x18000",
    "iommu 0x10000-0x18000",
  ]);
  for (let gpa = 0x1_0000; gpa < 0x1_8000; gpa += 0x1000) {
    if (gpa === 0x1_3000) assertThrows(() => manager.memory.readUint32(gpa), GuestMemoryError);
    else assertEquals(manager.memory.readUint32(gpa), gpa + 1);
  }
});
