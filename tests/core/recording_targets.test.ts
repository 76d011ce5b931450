import { assert, assertEquals, assertInstanceOf, assertStrictEquals, assertThrows } from "@std/assert";
import type { Partition, VaTarget } from "membacking";
import {
  failAfter,
  FAILURE_MODES,
  Faults,
  InjectedFault,
  type RecordedCall,
  RecordingDmaTarget,
  RecordingPartition,
  RecordingVa,
  TargetStateError,
} from "membacking/testing";
import { range } from "../support/units.ts";

const RW = { writable: true, executable: true };
const HVA = 0x7000_0000;

Deno.test("RecordingPartition fits where a Partition is asked for, RecordingVa where a VaTarget is", () => {
  const partition: Partition = new RecordingPartition();
  const va: VaTarget<string> = new RecordingVa<string>(0x1000);
  assertEquals([partition.disposed, va.length], [false, 0x1000]);
});

Deno.test("RecordingPartition refuses overlaps, empty ranges and bad host addresses", () => {
  const partition = new RecordingPartition();
  partition.mapRange(HVA, range(0x1000, 0x3000), RW);
  for (const other of [range(0x2000, 0x4000), range(0, 0x2000), range(0x1000, 0x3000), range(0, 0x4000)]) {
    assertThrows(() => partition.mapRange(HVA, other, RW), TargetStateError);
  }
  assertThrows(() => partition.mapRange(HVA, range(0x5000, 0x5000), RW), TargetStateError);
  for (const hva of [0, -0x1000, 0x1001, NaN]) {
    assertThrows(() => partition.mapRange(hva, range(0x5000, 0x6000), RW), TargetStateError);
  }
  assertEquals(partition.ranges.map(({ range }) => `${range}`), ["0x1000-0x3000"]);
});

Deno.test("RecordingPartition unmaps exactly what was mapped and nothing else", () => {
  const partition = new RecordingPartition();
  partition.mapRange(HVA, range(0x1000, 0x3000), RW);
  partition.mapRange(HVA, range(0x3000, 0x4000), RW);
  for (const other of [range(0x1000, 0x2000), range(0x1000, 0x4000), range(0x8000, 0x9000), range(0x2000, 0x3000)]) {
    assertThrows(() => partition.unmapRange(other), TargetStateError);
  }
  partition.unmapRange(range(0x1000, 0x3000));
  assertEquals(partition.ranges.map(({ range }) => `${range}`), ["0x3000-0x4000"]);
});

Deno.test("RecordingPartition knows access and host address of every byte", () => {
  const partition = new RecordingPartition();
  partition.mapRange(HVA, range(0x1000, 0x3000), { writable: false, executable: true });
  assertEquals(partition.accessAt(0x2fff), { writable: false, executable: true });
  assertEquals([partition.hvaAt(0x2345), partition.hvaAt(0x3000), partition.accessAt(0xfff)], [
    HVA + 0x1345,
    null,
    null,
  ]);
});

Deno.test("RecordingPartition holds no more ranges than its capacity", () => {
  const partition = new RecordingPartition({ capacity: 1 });
  partition.mapRange(HVA, range(0x1000, 0x2000), RW);
  assertThrows(() => partition.mapRange(HVA, range(0x4000, 0x5000), RW), TargetStateError, "1");
});

Deno.test("RecordingPartition joins what is pinned and cuts what is unpinned", () => {
  const partition = new RecordingPartition();
  partition.mapRange(HVA, range(0x0, 0x5000), RW);
  partition.pinRange(range(0x0, 0x2000));
  partition.pinRange(range(0x2000, 0x4000));
  assertEquals(partition.pinned.map(String), ["0x0-0x4000"]);
  partition.unpinRange(range(0x1000, 0x2000));
  assertEquals(partition.pinned.map(String), ["0x0-0x1000", "0x2000-0x4000"]);
  assertThrows(() => partition.pinRange(range(0x4000, 0x6000)), TargetStateError, "0x5000");
  assertThrows(() => partition.prefetchRange(range(0x4000, 0x6000)), TargetStateError, "0x5000");
});

Deno.test("RecordingPartition forgets everything when it is disposed and refuses every call after", () => {
  const partition = new RecordingPartition();
  partition.mapRange(HVA, range(0x0, 0x5000), RW);
  partition[Symbol.dispose]();
  assertEquals([partition.disposed, partition.ranges], [true, []]);
  assertThrows(() => partition.mapRange(HVA, range(0x0, 0x5000), RW), TargetStateError, "disposed");
  assertThrows(() => partition.unpinRange(range(0x0, 0x5000)), TargetStateError, "disposed");
});

Deno.test("RecordingDmaTarget is strict about overlaps and exact unmaps", () => {
  const target = new RecordingDmaTarget<string>();
  const mapping = { hva: HVA, mappable: "file", fileOffset: 0, writable: true, type: "ram" as const };
  target.mapDma({ ...mapping, range: range(0x1000, 0x3000) });
  assertThrows(() => target.mapDma({ ...mapping, range: range(0x2000, 0x4000) }), TargetStateError);
  assertThrows(() => target.mapDma({ ...mapping, range: range(0x4000, 0x4000) }), TargetStateError);
  assertThrows(() => target.unmapDma(range(0x1000, 0x2000)), TargetStateError);
  assertStrictEquals(target.at(0x2000)?.mappable, "file");
  target.unmapDma(range(0x1000, 0x3000));
  assertEquals(target.mappings, []);
});

Deno.test("RecordingVa cuts what it replaces and keeps the offsets of the rest", () => {
  const va = new RecordingVa<string>(0x10000);
  va.map(0x0, 0x5000, "a", 0x1000, true, undefined);
  va.map(0x2000, 0x3000, "b", 0x8000, false, undefined);
  assertEquals(
    va.ranges.map(({ range, mappable, fileOffset, writable }) => [`${range}`, mappable, fileOffset, writable]),
    [["0x0-0x2000", "a", 0x1000, true], ["0x2000-0x3000", "b", 0x8000, false], ["0x3000-0x5000", "a", 0x4000, true]],
  );
  va.remove(0x1000, 0x4000);
  assertEquals([va.at(0xfff)?.fileOffset, va.at(0x1000), va.at(0x4000)?.fileOffset], [0x1fff, null, 0x5000]);
});

Deno.test("RecordingVa tells one piece of private memory from another", () => {
  const va = new RecordingVa<string>(0x10000);
  va.map(0x0, 0x4000, null, 0, true, undefined);
  va.protect(0x1000, 0x2000, false);
  assertEquals([va.at(0x1000)?.generation, va.at(0x3000)?.generation], [1, 1]);
  va.map(0x1000, 0x2000, null, 0, true, undefined);
  assertEquals([va.at(0x1000)?.generation, va.at(0x3000)?.generation], [2, 1]);
});

Deno.test("RecordingVa refuses what is out of range, unaligned, or protects a hole", () => {
  const va = new RecordingVa<string>(0x4000);
  assertThrows(() => va.map(0x0, 0x5000, "a", 0, true, undefined), TargetStateError);
  assertThrows(() => va.map(0x0, 0x0, "a", 0, true, undefined), TargetStateError);
  assertThrows(() => va.map(0x0, 0x1000, "a", 0x10, true, undefined), TargetStateError);
  assertThrows(() => va.map(0x0, 0x1001, "a", 0, true, undefined), RangeError);
  va.map(0x0, 0x1000, "a", 0, true, undefined);
  assertThrows(() => va.protect(0x0, 0x2000, false), TargetStateError);
  assertStrictEquals(va.at(0)?.writable, true);
});

Deno.test("RecordingVa holds no more pieces than its limit", () => {
  const va = new RecordingVa<string>(0x10000, { limit: 2 });
  va.map(0x0, 0x3000, "a", 0, true, undefined);
  assertStrictEquals(va.spareMappings, 1);
  assertThrows(() => va.map(0x1000, 0x2000, "b", 0, true, undefined), TargetStateError, "2");
  va.map(0x0, 0x1000, "b", 0, true, undefined);
  assertStrictEquals(va.spareMappings, 0);
});

Deno.test("targets that share a log show the order of calls among them", () => {
  const calls: RecordedCall[] = [];
  const va = new RecordingVa<string>(0x10000, { calls });
  const partition = new RecordingPartition({ calls, name: "vm" });
  va.map(0x0, 0x1000, "a", 0, true, undefined);
  partition.mapRange(HVA, range(0x0, 0x1000), RW);
  assertThrows(() => partition.mapRange(HVA, range(0x0, 0x1000), RW));
  assertEquals(calls.map(({ target, method }) => `${target}.${method}`), [
    "host memory.map",
    "vm.mapRange",
    "vm.mapRange",
  ]);
  assertEquals(calls.map(({ error }) => error instanceof TargetStateError), [false, false, true]);
});

Deno.test("failAfter lets so many calls pass and fails the next", () => {
  const faults = failAfter(2);
  const partition = new RecordingPartition({ faults });
  partition.mapRange(HVA, range(0x0, 0x1000), RW);
  partition.mapRange(HVA, range(0x1000, 0x2000), RW);
  const error = assertThrows(() => partition.mapRange(HVA, range(0x2000, 0x3000), RW), InjectedFault, "mapRange");
  assertStrictEquals(faults.fired[0], error);
  partition.mapRange(HVA, range(0x2000, 0x3000), RW);
  assertEquals([faults.seen, faults.fired.length], [4, 1]);
});

Deno.test("a failing call leaves the state behind that its mode says", () => {
  const left = FAILURE_MODES.map((mode) => {
    const partition = new RecordingPartition({ faults: failAfter(1, { mode }) });
    partition.mapRange(HVA, range(0x0, 0x1000), RW);
    assertThrows(() => partition.mapRange(HVA, range(0x1000, 0x2000), RW), InjectedFault);
    const va = new RecordingVa<string>(0x1000, { faults: failAfter(1, { mode }) });
    va.map(0x0, 0x1000, "old", 0, true, undefined);
    assertThrows(() => va.map(0x0, 0x1000, "new", 0, true, undefined), InjectedFault);
    return [mode, partition.ranges.length, va.at(0)?.mappable ?? null];
  });
  assertEquals(left, [["nothing-done", 1, "old"], ["done-then-failed", 2, "new"], ["old-state-destroyed", 1, null]]);
});

Deno.test("a failing unmap is done in every mode but nothing-done", () => {
  const left = FAILURE_MODES.map((mode) => {
    const target = new RecordingDmaTarget({ faults: failAfter(1, { mode }) });
    target.mapDma({ range: range(0, 0x1000), hva: HVA, mappable: null, fileOffset: 0, writable: true, type: "ram" });
    assertThrows(() => target.unmapDma(range(0, 0x1000)), InjectedFault);
    return target.mappings.length;
  });
  assertEquals(left, [1, 0, 0]);
});

Deno.test("a failing protect never takes the memory away", () => {
  const left = FAILURE_MODES.map((mode) => {
    const va = new RecordingVa<string>(0x3000, { faults: failAfter(1, { mode }) });
    va.map(0x0, 0x3000, "file", 0, true, undefined);
    assertThrows(() => va.protect(0x0, 0x3000, false), InjectedFault);
    return va.ranges.map(({ range, writable }) => `${range} ${writable ? "rw" : "ro"}`);
  });
  assertEquals(left, [["0x0-0x3000 rw"], ["0x0-0x3000 ro"], ["0x0-0x1000 ro", "0x1000-0x3000 rw"]]);
});

Deno.test("several faults count calls for themselves, and only the calls they are for", () => {
  const faults = new Faults()
    .failAfter(1, { on: ({ method }) => method === "unmapRange" })
    .failAfter(0, { times: 2, on: ({ target }) => target === "b" });
  const a = new RecordingPartition({ name: "a", faults });
  const b = new RecordingPartition({ name: "b", faults });
  a.mapRange(HVA, range(0, 0x1000), RW);
  assertThrows(() => b.mapRange(HVA, range(0, 0x1000), RW), InjectedFault);
  assertThrows(() => b.mapRange(HVA, range(0, 0x1000), RW), InjectedFault);
  b.mapRange(HVA, range(0, 0x1000), RW);
  a.unmapRange(range(0, 0x1000));
  assertThrows(() => b.unmapRange(range(0, 0x1000)), InjectedFault);
  assertEquals(faults.fired.map(({ call }) => call.target), ["b", "b", "b"]);
  faults.reset();
  b.unmapRange(range(0, 0x1000));
  assertEquals([faults.seen, faults.fired.length], [1, 0]);
});

Deno.test("Faults drives a target of one's own", () => {
  const faults = failAfter(0, { mode: "done-then-failed" });
  let done = 0;
  const call = { target: "mine", method: "mapRange" as const, range: range(0, 0x1000) };
  const error = assertThrows(() => faults.run(call, { act: () => void done++ }), InjectedFault);
  assertInstanceOf(error, InjectedFault);
  assert(error.call === call && error.mode === "done-then-failed");
  faults.run(call, { act: () => void done++ });
  assertStrictEquals(done, 2);
});

Deno.test("Faults refuses plans that make no sense", () => {
  for (const passes of [-1, 0.5, NaN, Infinity]) assertThrows(() => new Faults().failAfter(passes), RangeError);
  for (const times of [0, -1, NaN]) assertThrows(() => new Faults().failAfter(0, { times }), RangeError);
});

Deno.test("recording targets take a range of any size in one step, as the targets they stand for do", () => {
  const size = 2 ** 52;
  const all = range(0, size);
  const partition = new RecordingPartition({ dirtyLog: true });
  partition.mapRange(HVA, all, { writable: true, executable: true, logDirty: true });
  partition.pinRange(all);
  partition.write(all);
  assertEquals(partition.pinned, [all]);
  partition.unpinRange(range(0x1000, size));
  assertEquals(partition.pinned, [range(0, 0x1000)]);
  const taken: [number, number][] = [];
  partition.faults.reset();
  partition.faults.failAfter(0, { mode: "old-state-destroyed" });
  assertThrows(() => partition.takeDirty?.(all, (start, end) => void taken.push([start, end])));
  partition.takeDirty?.(all, (start, end) => void taken.push([start, end]));
  assertEquals(taken, [[0, size / 2], [size / 2, size]]);

  const va = new RecordingVa(size);
  const memory = { start: 0, end: size };
  va.map(0, size, null, 0, true, undefined);
  va.park(0, size, memory, 0);
  assertEquals(va.parkedBytes, size);
  va.restore(0, size, memory, 0, false);
  assertEquals([va.parkedBytes, va.ranges.length], [0, 1]);
});
