// Plans are data: an old state, a change, and what has to be done. No target is asked anything.

import { assertEquals, assertStrictEquals, assertThrows } from "@std/assert";
import { LimitError, MappingError } from "../../src/core/errors.ts";
import {
  addDmaTarget,
  addPartition,
  addRegion,
  type Change,
  mapRegion,
  removeRegion,
  setMapping,
  unmapRegion,
} from "../../src/core/map/edits.ts";
import { type Mapping, paramsOf, type Region } from "../../src/core/map/region.ts";
import { State } from "../../src/core/map/state.ts";
import { MemoryRange } from "../../src/core/memory_range.ts";
import { outOfStep } from "../../src/core/plan/out_of_step.ts";
import { type Facts, type Plan, Planner } from "../../src/core/plan/plan.ts";
import { inverse, type Step } from "../../src/core/plan/steps.ts";
import type { Partition } from "../../src/core/targets.ts";

const RW = paramsOf(true, true, false);
const RO = paramsOf(false, true, false);
const PREFETCH = paramsOf(true, true, true);

/** A map that is changed by edits, each planned from where the last one led to. */
class Planned {
  state = State.empty();
  facts: Omit<Facts, "capacities"> = { spareMappings: Infinity };
  capacity = Infinity;
  #id = 0;

  region(start: number, end: number, rest: Partial<Region> = {}): Region {
    const id = ++this.#id;
    const region: Region = {
      ...{ id, age: id, name: `r${id}`, priority: 0, type: "ram", holes: "exit" },
      ...rest,
      range: new MemoryRange(start, end),
      latest: undefined,
    };
    this.do((state) => addRegion(state, region, "any"));
    return region;
  }

  /** A mapped region with one mapping throughout. */
  backed(start: number, end: number, mapping: Mapping, rest: Partial<Region> = {}): Region {
    const region = this.region(start, end, rest);
    this.do((state) => setMapping(state, region, start, end, mapping));
    this.do((state) => mapRegion(state, region, RW));
    return region;
  }

  partition(rest: { pin?: boolean; target?: Partial<Partition> } = {}): void {
    const target = { mapRange() {}, unmapRange() {}, ...rest.target };
    this.do((state) => addPartition(state, { id: ++this.#id, target, offset: 0, pin: rest.pin ?? false }));
  }

  device(needsFd = false): void {
    this.do((state) => addDmaTarget(state, { id: ++this.#id, target: {}, needsFd, pins: false }));
  }

  /** Plans a change, and goes there. */
  do(edit: (state: State) => Change): Plan {
    const planned = this.plan(edit);
    this.state = planned.state;
    return planned;
  }

  /** Plans a change only. */
  plan(edit: (state: State) => Change): Plan {
    const change = edit(this.state);
    const capacities = change.state.partitions.map(({ target }) => target.disposed ? -1 : this.capacity);
    return new Planner().plan(this.state, change, { ...this.facts, capacities });
  }
}

let files = 0;

/** A mapping of a file of its own, from offset 0 at GPA 0 on unless `delta` says otherwise. */
function fileMapping(
  rest: Partial<Mapping> & { pageSize?: number; mayFailLate?: boolean; file?: object } = {},
): Mapping {
  const { pageSize = 4096, mayFailLate = false, file = { file: ++files }, ...others } = rest;
  const backing = { file, pageSize, mayFailLate };
  return { kind: "shared", backing, own: null, delta: 0, writable: true, policy: undefined, ...others };
}

function privateMapping(start: number, end: number): Mapping {
  return { kind: "private", backing: null, own: { start, end }, delta: 0, writable: true, policy: undefined };
}

function text(step: Step): string {
  const range = new MemoryRange(step.start, step.end);
  if (step.kind === "host") {
    return `${step.action} ${range}${step.mapping === null ? "" : step.writable ? " rw" : " ro"}`;
  }
  const how = step.kind === "slot" || step.kind === "dma" ? ` ${(step.to ?? step.from)?.writable ? "rw" : "ro"}` : "";
  return `${step.to === null ? "-" : "+"}${step.kind} ${range}${how}${step.uncertain ? "?" : ""}`;
}

function steps({ steps }: Plan): string[] {
  return steps.map(text);
}

Deno.test("plan: a mapping comes as host memory first and as a slot then", () => {
  const map = new Planned();
  map.partition();
  const region = map.region(0x1000, 0x5000);
  map.do((state) => mapRegion(state, region, RW));
  const planned = map.do((state) => setMapping(state, region, 0x2000, 0x3000, fileMapping()));
  assertEquals(steps(planned), ["map 0x2000-0x3000 rw", "+slot 0x2000-0x3000 rw"]);
  assertEquals([planned.exposed, planned.state.hostMappings], [[], 3]);
});

Deno.test("plan: a mapping goes as a slot first and as host memory then", () => {
  const map = new Planned();
  map.partition();
  const region = map.backed(0x1000, 0x5000, fileMapping());
  assertEquals(steps(map.do((state) => setMapping(state, region, 0x1000, 0x5000, null))), [
    "-slot 0x1000-0x5000 rw",
    "remove 0x1000-0x5000",
  ]);
});

Deno.test("plan: one mapping replaced by another is one step, and no guest needs to be held", () => {
  const map = new Planned();
  map.partition();
  const region = map.backed(0x1000, 0x5000, fileMapping());
  const planned = map.do((state) => setMapping(state, region, 0x2000, 0x3000, fileMapping()));
  assertEquals([steps(planned), planned.exposed], [["map 0x2000-0x3000 rw"], []]);
});

Deno.test("plan: a file that may fail late is replaced while the guest is held", () => {
  const map = new Planned();
  map.partition();
  const region = map.backed(0x1000, 0x5000, fileMapping());
  const planned = map.plan((state) => setMapping(state, region, 0x1000, 0x5000, fileMapping({ mayFailLate: true })));
  assertEquals(planned.exposed.map(String), ["0x1000-0x5000"]);
});

Deno.test("plan: the same memory again is no step", () => {
  const map = new Planned();
  map.partition();
  map.device();
  const file = {};
  const region = map.backed(0x1000, 0x5000, fileMapping({ file }));
  assertEquals(steps(map.plan((state) => setMapping(state, region, 0x2000, 0x3000, fileMapping({ file })))), []);
});

Deno.test("plan: a protection changes by itself, and the slot goes and comes around it while the guest is held", () => {
  const map = new Planned();
  map.partition();
  map.device();
  const region = map.backed(0x1000, 0x5000, fileMapping());
  const planned = map.do((state) => mapRegion(state, region, RO));
  assertEquals(steps(planned), [
    "-dma 0x1000-0x5000 rw",
    "-slot 0x1000-0x5000 rw",
    "protect 0x1000-0x5000 ro",
    "+dma 0x1000-0x5000 ro",
    "+slot 0x1000-0x5000 ro",
  ]);
  assertEquals(planned.exposed.map(String), ["0x1000-0x5000"]);
});

Deno.test("plan: neighbours of one file are one call, and slots of their own", () => {
  const map = new Planned();
  map.partition();
  const region = map.region(0x1000, 0x5000);
  const file = {};
  map.do((state) => setMapping(state, region, 0x1000, 0x3000, fileMapping({ file })));
  map.do((state) => setMapping(state, region, 0x3000, 0x5000, fileMapping({ file })));
  assertEquals(steps(map.do((state) => mapRegion(state, region, RW))), [
    "map 0x1000-0x5000 rw",
    "+slot 0x1000-0x3000 rw",
    "+slot 0x3000-0x5000 rw",
  ]);
});

Deno.test("plan: ranges that one request adds are joined only as far as the partition would be full otherwise", () => {
  const map = new Planned();
  map.partition();
  map.capacity = 2;
  const region = map.region(0x1000, 0x4000);
  for (const at of [0x1000, 0x2000, 0x3000]) {
    map.do((state) => setMapping(state, region, at, at + 0x1000, fileMapping()));
  }
  const slots = (planned: Plan) => steps(planned).filter((step) => step.includes("slot"));
  assertEquals(slots(map.plan((state) => mapRegion(state, region, RW))), [
    "+slot 0x1000-0x3000 rw",
    "+slot 0x3000-0x4000 rw",
  ]);
  map.capacity = 0;
  const error = assertThrows(() => map.plan((state) => mapRegion(state, region, RW)), LimitError);
  assertEquals([error.limit, error.have], ["memory slots", 0]);
});

Deno.test("plan: a slot that is cut goes whole, and its rest comes anew", () => {
  const map = new Planned();
  map.partition();
  const region = map.backed(0x1000, 0x5000, fileMapping());
  const planned = map.do((state) => setMapping(state, region, 0x2000, 0x3000, null));
  assertEquals(steps(planned), [
    "-slot 0x1000-0x5000 rw",
    "remove 0x2000-0x3000",
    "+slot 0x1000-0x2000 rw",
    "+slot 0x3000-0x5000 rw",
  ]);
});

Deno.test("plan: a window whose holes fault is one slot, whatever is mapped in it", () => {
  const map = new Planned();
  map.partition();
  const window = map.region(0x1000, 0x5000, { holes: "fault" });
  assertEquals(steps(map.do((state) => mapRegion(state, window, RW))), ["+slot 0x1000-0x5000 rw"]);
  assertEquals(steps(map.do((state) => setMapping(state, window, 0x2000, 0x3000, fileMapping()))), [
    "map 0x2000-0x3000 rw",
  ]);
});

Deno.test("plan: what comes to a target that has just been attached is all there is, and nothing else is touched", () => {
  const map = new Planned();
  map.backed(0x1000, 0x3000, fileMapping());
  map.backed(0x8000, 0x9000, fileMapping({ writable: false }));
  const id = 100;
  const target = { mapRange() {}, unmapRange() {} };
  const planned = map.plan((state) => addPartition(state, { id, target, offset: 0, pin: false }));
  assertEquals(steps(planned), ["+slot 0x1000-0x3000 rw", "+slot 0x8000-0x9000 ro"]);
});

Deno.test("plan: a partition that is disposed is told nothing and leaves", () => {
  const map = new Planned();
  const target = { disposed: false };
  map.partition({ target });
  const region = map.backed(0x1000, 0x3000, fileMapping());
  map.capacity = -1;
  const planned = map.plan((state) => unmapRegion(state, region));
  assertEquals([steps(planned), planned.state.partitions], [["remove 0x1000-0x3000"], []]);
});

Deno.test("plan: memory in no file is parked, comes back, and is given up after the request that removes it", () => {
  const map = new Planned();
  const own = privateMapping(0x1000, 0x3000);
  const region = map.backed(0x1000, 0x3000, own);
  assertEquals(steps(map.do((state) => unmapRegion(state, region))), [
    "park 0x1000-0x3000 rw",
    "remove 0x1000-0x3000",
  ]);
  assertEquals([...map.state.parked.get(own.own!) ?? []].length, 1);
  const back = map.do((state) => mapRegion(state, region, RW));
  assertEquals([steps(back), map.state.parked.size], [["restore 0x1000-0x3000 rw"], 0]);
  const gone = map.do((state) => removeRegion(state, region));
  assertEquals(gone.discards.map(({ memory }) => memory), [own.own]);
});

Deno.test("plan: memory in no file is not replaced", () => {
  const map = new Planned();
  const region = map.backed(0x1000, 0x3000, privateMapping(0x1000, 0x3000));
  assertThrows(() => map.plan((state) => setMapping(state, region, 0x1000, 0x2000, fileMapping())), MappingError);
});

Deno.test("plan: huge pages are not cut", () => {
  const map = new Planned();
  const huge = fileMapping({ pageSize: 0x20_0000 });
  const region = map.backed(0, 0x40_0000, huge);
  assertThrows(
    () => map.plan((state) => setMapping(state, region, 0x1000, 0x2000, fileMapping())),
    MappingError,
    "huge",
  );
});

Deno.test("plan: a DMA target that needs files refuses memory in none", () => {
  const map = new Planned();
  map.device(true);
  const region = map.region(0x1000, 0x3000);
  map.do((state) => setMapping(state, region, 0x1000, 0x3000, privateMapping(0x1000, 0x3000)));
  assertThrows(() => map.plan((state) => mapRegion(state, region, RW)), MappingError, "file descriptors");
});

Deno.test("plan: what replaces pinned memory is unpinned before and pinned after", () => {
  const map = new Planned();
  map.partition({ pin: true, target: { pinRange() {}, unpinRange() {} } });
  const region = map.backed(0x1000, 0x5000, fileMapping());
  assertEquals(steps(map.do((state) => setMapping(state, region, 0x2000, 0x3000, fileMapping()))), [
    "-pin 0x2000-0x3000",
    "map 0x2000-0x3000 rw",
    "+pin 0x2000-0x3000",
  ]);
});

Deno.test("plan: memory that is brought in early is so where it is new", () => {
  const map = new Planned();
  map.partition({ target: { prefetchRange() {} } });
  const region = map.region(0x1000, 0x5000);
  map.do((state) => setMapping(state, region, 0x1000, 0x3000, fileMapping()));
  assertEquals(steps(map.do((state) => mapRegion(state, region, PREFETCH))).at(-1), "+prefetch 0x1000-0x3000");
  assertEquals(steps(map.do((state) => setMapping(state, region, 0x4000, 0x5000, fileMapping()))), [
    "map 0x4000-0x5000 rw",
    "+slot 0x4000-0x5000 rw",
    "+prefetch 0x4000-0x5000",
  ]);
});

Deno.test("plan: kernel mappings that would run out are refused, those given back are not", () => {
  const map = new Planned();
  const region = map.backed(0x1000, 0x9000, fileMapping());
  map.facts = { spareMappings: 1 };
  const error = assertThrows(
    () => map.plan((state) => setMapping(state, region, 0x2000, 0x3000, fileMapping())),
    LimitError,
  );
  assertStrictEquals(error.limit, "host mappings");
  map.plan((state) => unmapRegion(state, region));
});

Deno.test("plan: the inverse of a step on host memory is what the old state has there, piece by piece", () => {
  const map = new Planned();
  const region = map.region(0x1000, 0x5000);
  map.do((state) => setMapping(state, region, 0x1000, 0x2000, fileMapping()));
  map.do((state) => setMapping(state, region, 0x3000, 0x4000, privateMapping(0x3000, 0x4000)));
  map.do((state) => mapRegion(state, region, RW));
  const above = map.region(0x0, 0x8000, { priority: 1 });
  map.do((state) => setMapping(state, above, 0x0, 0x8000, fileMapping()));
  const planned = map.plan((state) => mapRegion(state, above, RW));
  assertEquals(steps(planned), ["park 0x3000-0x4000 rw", "map 0x0-0x8000 rw"]);
  assertEquals(inverse(planned.steps[1]!, planned.old).map(text), [
    "remove 0x0-0x1000",
    "map 0x1000-0x2000 rw",
    "remove 0x2000-0x3000",
    "restore 0x3000-0x4000 rw",
    "remove 0x4000-0x8000",
  ]);
  assertEquals(inverse(planned.steps[0]!, planned.old).map(text), ["restore 0x3000-0x4000 rw"]);
});

Deno.test("plan: what an undo could not put back is looked at again by the next request over it", () => {
  const map = new Planned();
  map.partition();
  const region = map.backed(0x1000, 0x5000, fileMapping());
  const { steps: [slot, host] } = map.plan((state) => unmapRegion(state, region));
  map.state = outOfStep(map.state, [
    { step: { ...slot!, to: RW, from: null } as Step, uncertain: true },
    { step: { ...host!, action: "map", mapping: fileMapping() } as Step, uncertain: true },
  ], []);
  assertEquals(steps(map.do((state) => mapRegion(state, region, RO))), [
    "-slot 0x1000-0x5000 ro?",
    "map 0x1000-0x5000 ro",
    "+slot 0x1000-0x5000 ro",
  ]);
  assertEquals(map.state.damage.outOfStep.isEmpty, true);
});

Deno.test("plan: planning asks no target anything", () => {
  const map = new Planned();
  const target: Partition = {
    get disposed(): boolean {
      throw new Error("asked");
    },
    get capacity(): number {
      throw new Error("asked");
    },
    mapRange() {
      throw new Error("told");
    },
    unmapRange() {
      throw new Error("told");
    },
  };
  const region = map.backed(0x1000, 0x3000, fileMapping());
  const attached = addPartition(map.state, { id: 100, target, offset: 0, pin: false });
  map.state = new Planner().plan(map.state, attached, { spareMappings: Infinity, capacities: [10] }).state;
  const planned = new Planner().plan(map.state, unmapRegion(map.state, region), {
    spareMappings: Infinity,
    capacities: [10],
  });
  assertEquals(steps(planned), ["-slot 0x1000-0x3000 rw", "remove 0x1000-0x3000"]);
});
