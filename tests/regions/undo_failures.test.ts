import { assert, assertEquals, assertInstanceOf, assertStrictEquals, assertThrows } from "@std/assert";
import { MappingError, MembackingError } from "membacking";
import { FAILURE_MODES, type FailureMode, InjectedFault, type TargetCall } from "membacking/testing";
import { Model } from "../model/model.ts";
import { describe, Files, World } from "../model/world.ts";
import { dma, Rig, slots } from "./rig.ts";
import { FILES, PAGES, type Scenario, SCENARIOS } from "./scenarios.ts";
import { PAGE, range } from "../support/units.ts";

/** The `n`-th call of a method, counted from 0, on a target. */
function nth(n: number, method: TargetCall["method"], target?: string): (call: TargetCall) => boolean {
  let seen = 0;
  return (call) => call.method === method && (target === undefined || call.target === target) && seen++ === n;
}

Deno.test("an error names each target that undo could not restore, with range and cause, and the first cause", () => {
  using rig = new Rig();
  rig.partition({ name: "vm" });
  rig.dmaTarget({ name: "iommu" });
  const region = rig.backed(0x1000, 0x3000);
  rig.faults.failAfter(0, { on: ({ method, writable }) => method === "mapRange" && writable === false });
  rig.faults.failAfter(0, { on: ({ method, writable }) => method === "mapDma" && writable === true });
  rig.faults.failAfter(0, { on: ({ method, writable }) => method === "mapRange" && writable === true });

  const error = assertThrows(() => region.map({ writable: false }), MappingError);
  const [first, ...undo] = rig.faults.fired;
  assertStrictEquals(error.cause, first);
  assertEquals(
    error.outOfStep.map(({ target, range, cause }) => [target, `${range}`, cause]),
    undo.map((fault) => [fault.call.target, "0x1000-0x3000", fault]),
  );
  assertEquals(undo.map(({ call }) => call.target), ["vm", "iommu"]);
  assertEquals(region.mapParams?.writable, true);
});

Deno.test("undo goes on to the end after a failure in it", () => {
  using rig = new Rig();
  const vm = rig.partition({ name: "vm" }).target;
  const other = rig.partition({ name: "other" }).target;
  const region = rig.backed(0x1000, 0x3000);
  rig.take();
  rig.faults.failAfter(0, { on: nth(1, "mapRange") });
  rig.faults.failAfter(0, { on: nth(0, "mapRange", "other") });
  rig.faults.failAfter(0, { on: nth(1, "mapRange", "other") });
  const error = assertThrows(() => region.map({ writable: false }), MappingError);
  assertEquals(error.outOfStep.map(({ target }) => target), ["other"]);
  assertEquals([slots(vm), slots(other)], [["0x1000-0x3000 rw"], []]);
  assertEquals(rig.va.at(0x1000)?.writable, true);
});

Deno.test("the request that comes next over it puts back what undo could not", () => {
  using rig = new Rig();
  const vm = rig.partition({ name: "vm" }).target;
  const region = rig.backed(0x1000, 0x3000);
  rig.faults.failAfter(0, { times: 2, on: ({ method }) => method === "mapRange" });
  assertThrows(() => region.map({ writable: false }), MappingError);
  assertEquals(slots(vm), []);
  region.map({ writable: true });
  assertEquals(slots(vm), ["0x1000-0x3000 rw"]);
});

Deno.test("inspect shows what is out of step, and no longer once it is mended", () => {
  using rig = new Rig();
  rig.partition();
  const region = rig.backed(0x1000, 0x3000);
  assertEquals(rig.manager.inspect().outOfStep, []);
  rig.faults.failAfter(0, { times: 2, on: ({ method }) => method === "mapRange" });
  assertThrows(() => region.map({ writable: false }), MappingError);
  assertEquals(rig.manager.inspect().outOfStep, ["0x1000-0x3000"]);
  region.map({ writable: false });
  assertEquals(rig.manager.inspect().outOfStep, []);
});

Deno.test("host memory that undo could not restore is mapped anew by the next request over it", () => {
  using rig = new Rig();
  const { target } = rig.partition();
  const region = rig.backed(0x0, 0x4000);
  rig.faults.failAfter(0, { mode: "old-state-destroyed", times: 2, on: ({ method }) => method === "map" });
  const error = assertThrows(
    () => region.addMapping({ rangeInRegion: range(0x1000, 0x2000), mappable: rig.file() }),
    MappingError,
  );
  assertEquals(error.outOfStep.map(({ target, range }) => `${target} ${range}`), ["host memory 0x1000-0x2000"]);
  assertEquals(rig.va.at(0x1000), null);
  region.addMapping({ rangeInRegion: range(0x1000, 0x2000), mappable: rig.file() });
  assertEquals(rig.memory(), ["0x0-0x1000 0@0x0 rw", "0x1000-0x2000 2@0x0 rw", "0x2000-0x4000 0@0x2000 rw"]);
  assertEquals(rig.manager.inspect().outOfStep, []);
  assertEquals(target.accessAt(0x1000)?.writable, true);
});

Deno.test("a request elsewhere works while something is out of step, and leaves it alone", () => {
  using rig = new Rig();
  const { target } = rig.partition();
  const region = rig.backed(0x1000, 0x3000);
  rig.faults.failAfter(0, { times: 2, on: ({ method }) => method === "mapRange" });
  assertThrows(() => region.map({ writable: false }), MappingError);
  rig.take();
  rig.backed(0x8000, 0x9000);
  assertEquals(slots(target), ["0x8000-0x9000 rw"]);
  assertEquals(rig.take().filter((call) => call.includes("0x1000")), []);
});

Deno.test("a manager with something out of step still gives everything back when it is disposed", () => {
  using rig = new Rig();
  const { target } = rig.partition();
  const { target: iommu } = rig.dmaTarget();
  const region = rig.backed(0x0, 0x4000);
  // The new slots and DMA mappings come, the last of them fails, and the others cannot be taken away again.
  rig.faults.failAfter(0, { on: nth(1, "mapRange") });
  rig.faults.failAfter(0, { on: nth(2, "unmapRange") });
  rig.faults.failAfter(0, { on: nth(1, "unmapDma") });
  assertThrows(() => region.removeMappings(range(0x1000, 0x2000)), MappingError);
  rig.faults.reset();
  rig.manager[Symbol.dispose]();
  assertEquals([slots(target), iommu.mappings.length, rig.memory()], [[], 0, []]);
});

Deno.test("disposing a manager goes on past failures, and its error has them all", () => {
  const rig = new Rig();
  const a = rig.partition({ name: "a" }).target;
  const b = rig.partition({ name: "b" }).target;
  const { target: iommu } = rig.dmaTarget();
  rig.backed(0x0, 0x1000);
  rig.backed(0x2000, 0x3000);
  rig.faults.failAfter(0, { on: nth(0, "unmapDma") }).failAfter(0, { on: nth(0, "unmapRange", "a") });
  const error = assertThrows(() => rig.manager[Symbol.dispose](), MembackingError);
  assertInstanceOf(error.cause, AggregateError);
  assertEquals(error.cause.errors, [...rig.faults.fired]);
  assertEquals([a.ranges.length, b.ranges.length, iommu.mappings.length, rig.memory()], [1, 0, 1, []]);
  rig[Symbol.dispose]();
});

// Found by random sequences. ---------------------------------------------------------------------------------------

Deno.test("a new slot that undo could not take away, so that the old one could not return, is mended", () => {
  using rig = new Rig();
  const { target } = rig.partition();
  const region = rig.backed(0x0, 0x4000);
  rig.take();
  // unmap 0-4, map 0-1, map 2-4 fails; clear 2-4; unmap 0-1 fails; so 0-4 cannot come back.
  rig.faults.failAfter(0, { on: nth(1, "mapRange") });
  rig.faults.failAfter(0, { on: nth(2, "unmapRange") });
  const error = assertThrows(() => region.removeMappings(range(0x1000, 0x2000)), MappingError);
  assertEquals(error.outOfStep.map(({ range }) => `${range}`), ["0x0-0x1000", "0x0-0x4000"]);
  assertEquals(slots(target), ["0x0-0x1000 rw"]);
  region.map({ executable: false });
  for (let gpa = 0; gpa < 0x4000; gpa += PAGE) {
    assertEquals(target.accessAt(gpa), { writable: true, executable: false }, `at ${gpa}`);
  }
});

Deno.test("a slot that came back although undo was told that it failed does not hinder the next request", () => {
  using rig = new Rig();
  const { target } = rig.partition();
  const region = rig.backed(0x1000, 0x3000);
  rig.faults.failAfter(0, { on: nth(0, "mapRange") });
  rig.faults.failAfter(0, { mode: "done-then-failed", on: nth(1, "mapRange") });
  assertThrows(() => region.map({ writable: false }), MappingError);
  region.map({ writable: false });
  assertEquals(slots(target), ["0x1000-0x3000 ro"]);
});

Deno.test("a slot that went although undo was told that it did not go does not hinder the next request", () => {
  using rig = new Rig();
  const { target } = rig.partition();
  rig.dmaTarget();
  const region = rig.region(0x1000, 0x4000);
  region.addMapping({ rangeInRegion: range(0x0, 0x1000), mappable: rig.file() });
  region.addMapping({ rangeInRegion: range(0x2000, 0x3000), mappable: rig.file() });
  rig.faults.failAfter(0, { on: nth(1, "mapRange") });
  rig.faults.failAfter(0, { mode: "done-then-failed", on: nth(1, "unmapRange") });
  rig.faults.failAfter(0, { mode: "done-then-failed", on: nth(0, "unmapDma") });
  assertThrows(() => region.map(), MappingError);
  region.map({ writable: false });
  assertEquals(slots(target), ["0x1000-0x2000 ro", "0x3000-0x4000 ro"]);
});

Deno.test("memory that cannot be given up fails no request, is logged, and goes with the next one", () => {
  for (const mode of FAILURE_MODES) {
    const errors: string[] = [];
    const logger = { debug() {}, info() {}, warn() {}, error: (message: string) => void errors.push(message) };
    using rig = new Rig({ logger });
    const { target } = rig.partition();
    const region = rig.backed(0x1000, 0x3000, { file: "private" });
    rig.faults.failAfter(0, { mode, on: ({ method }) => method === "discard" });
    region.removeMappings(range(0x0, 0x1000));
    assertEquals([slots(target), errors.length], [["0x2000-0x3000 rw"], 1]);
    assertEquals(rig.memory(), ["0x2000-0x3000 private@0x0 rw"]);
    region.map({ executable: false });
    assertEquals(rig.va.parkedBytes, 0);
  }
});

Deno.test("of several private memories one that cannot be given up does not keep the others", () => {
  using rig = new Rig();
  const region = rig.region(0x0, 0x4000);
  region.addMapping({ rangeInRegion: range(0x0, 0x1000), mappable: "private" });
  region.addMapping({ rangeInRegion: range(0x2000, 0x3000), mappable: "private" });
  region.map();
  rig.faults.failAfter(0, { on: ({ method }) => method === "discard" });
  region[Symbol.dispose]();
  assertEquals([rig.memory(), rig.va.parkedBytes], [[], 0x1000]);
  rig.manager[Symbol.dispose]();
  assertEquals(rig.va.parkedBytes, 0);
});

Deno.test("a new range that went although undo was told that it stayed does not take the old one off the books", () => {
  using rig = new Rig();
  const { target } = rig.partition();
  const { target: iommu } = rig.dmaTarget();
  const region = rig.backed(0x0, 0x8000);
  // 0-8 goes, 0-1 comes, 2-8 fails; clear 2-8; 0-1 goes, with an error; 0-8 comes back.
  rig.faults.failAfter(0, { on: nth(1, "mapRange") });
  rig.faults.failAfter(0, { mode: "done-then-failed", on: nth(2, "unmapRange") });
  rig.faults.failAfter(0, { mode: "done-then-failed", on: nth(1, "unmapDma") });
  assertThrows(() => region.removeMappings(range(0x1000, 0x2000)), MappingError);
  region.map({ writable: false });
  assertEquals([slots(target), dma(iommu)], [["0x0-0x8000 ro"], ["0x0-0x8000 ro"]]);
});

Deno.test("a large range that could not return is mended whole by a request over a part of it", () => {
  using rig = new Rig({ overlap: "any" });
  const { target } = rig.partition();
  rig.backed(0x0, 0x8000, { priority: 0 });
  const small = rig.region(0x3000, 0x4000, { priority: 1 });
  small.addMapping({ rangeInRegion: range(0x0, 0x1000), mappable: rig.file(), writable: false });
  // 0-8 goes, 0-3 comes, 3-4 comes, 4-8 fails; clear 4-8; 3-4 does not go, so that 0-8 cannot return.
  rig.faults.failAfter(0, { on: nth(2, "mapRange") });
  rig.faults.failAfter(0, { on: nth(2, "unmapRange") });
  assertThrows(() => small.map(), MappingError);
  small.map();
  for (let gpa = 0; gpa < 0x8000; gpa += PAGE) {
    assertEquals(target.accessAt(gpa)?.writable, gpa !== 0x3000, `at ${gpa}`);
  }
});

// Every pair of failures. --------------------------------------------------------------------------------------------

/** Fails the `k`-th call of the request and the `j`-th, which undoes. Returns whether there was a `j`-th. */
function failTwice(scenario: Scenario, k: number, j: number, mode: FailureMode, files: Files): boolean {
  const model = new Model(PAGES, scenario.overlap ?? "nested", FILES);
  const world = new World({ pages: PAGES, overlap: scenario.overlap ?? "nested", files });
  for (const request of scenario.given) {
    model.apply(request);
    world.run(request);
  }
  const at = `calls ${k} and ${j}, ${mode}`;
  world.faults.failAfter(k, { mode: k % 2 === 0 ? "nothing-done" : "done-then-failed" }).failAfter(j, { mode });
  let error: unknown;
  try {
    world.run(scenario.request);
  } catch (thrown) {
    error = thrown;
  }
  const { fired } = world.faults;
  if (fired.length < 2) return false;
  if (fired[0]!.call.method === "prefetchRange") return true;
  assertInstanceOf(error, MappingError, at);
  assertStrictEquals(error.cause, fired[0], at);
  for (const { cause, target } of error.outOfStep) {
    assert(cause instanceof InjectedFault || cause instanceof MembackingError, `${at}: ${target}: ${cause}`);
  }
  const names = error.outOfStep.map(({ target, range }) => `${target} ${range}`);
  for (const { target, page, what } of world.differences(model)) {
    const named = error.outOfStep.some((out) => out.target === target && out.range.containsAddress(page * PAGE));
    assert(named, `${at}: the error names ${names} and leaves out: ${what}; ${describe(world.calls)}`);
  }
  world.accept(error.outOfStep);

  world.faults.reset();
  model.apply(scenario.request);
  try {
    world.run(scenario.request);
    world.compare(model);
  } catch (cause) {
    throw new Error(`${at}, then again, out of step: ${names}`, { cause });
  }
  world.dispose(true);
  return true;
}

/** Whether undoing it loses bytes for good, or has no steps in it that can fail. */
const isPlain = ({ given }: Scenario) => !given.some((request) => "file" in request && request.file === "private");

for (const scenario of SCENARIOS.filter(isPlain)) {
  Deno.test(`when undoing fails too, the error says where, and trying again mends it: ${scenario.name}`, () => {
    using files = new Files(FILES);
    let pairs = 0;
    for (const mode of ["nothing-done", "done-then-failed"] as const) {
      for (let k = 1; k <= 40; k++) {
        // The call right after a failure clears what it may have left: a failure there cannot be told from success.
        for (let j = k + 2; failTwice(scenario, k, j, mode, files); j++) pairs++;
      }
    }
    assert(pairs > 0, "no pair of calls could fail");
  });
}

Deno.test("memory around what an undo could not park comes back", () => {
  using rig = new Rig();
  const below = rig.backed(0x6000, 0xa000, { file: "private" });
  const above = rig.backed(0x0, 0x1_0000, { file: "private", priority: 16 });
  below.removeMappings(range(0x1000, 0x2000));
  for (let gpa = 0; gpa < 0x1_0000; gpa += PAGE) rig.manager.memory.writeUint32(gpa, gpa + 1);

  rig.faults.failAfter(0, { on: nth(1, "restore") });
  rig.faults.failAfter(0, { on: nth(2, "park") });
  const error = assertThrows(() => above[Symbol.dispose](), MappingError);
  assertEquals(error.outOfStep.map(({ target, range }) => `${target} ${range}`), ["host memory 0x6000-0x7000"]);
  const bytes = () =>
    Array.from({ length: 16 }, (_, page) => page === 6 ? null : rig.manager.memory.readUint32(page * PAGE));
  const written = Array.from({ length: 16 }, (_, page) => page === 6 ? null : page * PAGE + 1);
  assertEquals(bytes(), written);

  above.map({ executable: false });
  assertEquals(rig.manager.inspect().outOfStep, []);
  assertEquals(bytes(), written);
  assertStrictEquals(rig.manager.memory.readUint32(0x6000), 0x6001);
});

Deno.test("a pin that undo could not end is ended by the next request, and what is to be pinned stays so", () => {
  using rig = new Rig();
  const vm = rig.partition({ name: "vm", pin: true }).target;
  rig.partition({ name: "other", pin: true });
  const region = rig.backed(0x0, 0x4000, { holes: "fault" });
  region.removeMappings(range(0x2000, 0x3000));
  const pinned = ["0x0-0x2000", "0x3000-0x4000"];
  assertEquals(vm.pinned.map(String), pinned);

  rig.faults.failAfter(0, { on: nth(0, "pinRange", "other") });
  rig.faults.failAfter(0, { on: nth(2, "unpinRange", "vm") });
  const add = { rangeInRegion: range(0x1000, 0x4000), mappable: rig.file() };
  const error = assertThrows(() => region.addMapping(add), MappingError);
  assertEquals(error.outOfStep.map(({ target, range }) => `${target} ${range}`), ["vm 0x1000-0x4000"]);
  assertEquals(vm.pinned.map(String), ["0x0-0x4000"]);

  rig.faults.failAfter(0, { on: nth(0, "mapRange") });
  assertThrows(() => region.map({ executable: false }), MappingError);
  assertEquals(vm.pinned.map(String), pinned);
  region.map({ executable: false });
  assertEquals(vm.pinned.map(String), pinned);
  assertEquals(rig.manager.inspect().outOfStep, []);
});
