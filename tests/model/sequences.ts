/**
 * Random sequences of requests, and what must hold after each of them.
 *
 * @module
 */

import { assert, assertEquals, fail } from "@std/assert";
import * as fc from "fast-check";
import { MappingError } from "membacking";
import { FAILURE_MODES, type FailureMode, InjectedFault, type TargetCall } from "membacking/testing";
import { type ErrorName, Model, type ModelFile, type NewRegion, type Request } from "./model.ts";
import { checkEconomy, describe, type Files, wantedNow, World } from "./world.ts";
import { PAGE } from "../support/units.ts";

/** The length of the address space of a sequence, in pages. Small, so that everything meets everything. */
export const PAGES = 16;

/** The files of a sequence: two to write, one to read, one that is too short for most ranges. */
export const FILES: readonly ModelFile[] = [
  { pages: 32, writable: true },
  { pages: 32, writable: true },
  { pages: 32, writable: false },
  { pages: 2, writable: true },
];

/** A failure to inject during a request. */
export interface PlannedFault {
  readonly after: number;
  readonly mode: FailureMode;
  /** How many calls later another one fails, so that undoing fails too; 0 for none. */
  readonly again: number;
}

/** One step of a sequence: a request, with numbers still to be wrapped into what exists. */
export interface SequenceStep {
  readonly request: Request;
  readonly fault: PlannedFault | null;
  /** Whether numbers are taken as they are, so that most of them are wrong. */
  readonly wild: boolean;
}

const index = fc.nat(1023);

/** Ranges of pages: mostly blocks aligned to their own size, which nest; the rest anything, empty and too long included. */
const block = fc.oneof(
  {
    weight: 8,
    arbitrary: fc.tuple(fc.constantFrom(16, 8, 8, 4, 4, 2, 1), fc.nat(15))
      .map(([pages, at]) => ({ start: at * pages % PAGES, pages })),
  },
  {
    weight: 4,
    arbitrary: fc.tuple(fc.nat(PAGES - 1), fc.nat(PAGES - 1))
      .map(([a, b]) => ({ start: Math.min(a, b), pages: Math.abs(a - b) + 1 })),
  },
  { weight: 1, arbitrary: fc.record({ start: fc.nat(PAGES), pages: fc.constantFrom(0, PAGES, PAGES + 1) }) },
);

const newRegion = fc.record({
  range: block,
  priority: fc.oneof({ weight: 20, arbitrary: fc.nat(4) }, { weight: 1, arbitrary: fc.constantFrom(-1, 255, 256) }),
  bySize: fc.boolean(),
  type: fc.constantFrom<("ram" | "device")[]>("ram", "ram", "device"),
  holes: fc.constantFrom<("exit" | "fault")[]>("exit", "exit", "exit", "fault"),
}).map(({ range, priority, bySize, type, holes }): NewRegion => ({
  kind: "newRegion",
  ...range,
  // Larger regions over smaller ones is what the nested rule asks for.
  priority: bySize && priority >= 0 && priority < 5 ? range.pages + priority % 2 : priority,
  type,
  holes,
}));

const map = fc.record({
  kind: fc.constant("map" as const),
  region: index,
  writable: fc.constantFrom(true, true, false),
  executable: fc.constantFrom(true, true, true, false),
  prefetch: fc.constantFrom(false, false, false, true),
});

const addMapping = fc.record({
  kind: fc.constant("addMapping" as const),
  region: index,
  at: fc.nat(PAGES),
  pages: fc.nat(PAGES),
  file: fc.constantFrom<(number | "private")[]>(0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 3, "private"),
  // -1 stands for the guest page: different regions then show the very same memory at the same address.
  filePage: fc.oneof(fc.nat(8), fc.constant(-1)),
  writable: fc.boolean(),
  policy: fc.constantFrom(0, 0, 0, 1),
  copyOnWrite: fc.constantFrom(false, false, false, false, true),
});

const removeMappings = fc.record({
  kind: fc.constant("removeMappings" as const),
  region: index,
  at: fc.nat(PAGES),
  pages: fc.nat(PAGES),
});

const single: fc.Arbitrary<Request> = fc.oneof(
  { weight: 6, arbitrary: newRegion },
  { weight: 12, arbitrary: map },
  { weight: 7, arbitrary: fc.record({ kind: fc.constant("unmap" as const), region: index }) },
  { weight: 12, arbitrary: addMapping },
  { weight: 4, arbitrary: removeMappings },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant("disposeRegion" as const), region: index }) },
  {
    weight: 2,
    arbitrary: fc.record({
      kind: fc.constant("addPartition" as const),
      offset: fc.constantFrom(0, 0, 16, 1000),
      pin: fc.constantFrom(false, false, true),
    }),
  },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("detachPartition" as const), partition: index }) },
  { weight: 1, arbitrary: fc.constant<Request>({ kind: "addDmaTarget" }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant("detachDmaTarget" as const), target: index }) },
);

const request: fc.Arbitrary<Request> = fc.oneof(
  { weight: 8, arbitrary: single },
  {
    weight: 1,
    arbitrary: fc.record({
      kind: fc.constant("batch" as const),
      requests: fc.array(single, { minLength: 1, maxLength: 5 }),
      abandon: fc.constantFrom(false, false, false, true),
    }),
  },
);

const fault: fc.Arbitrary<PlannedFault | null> = fc.option(
  fc.record({
    after: fc.nat(8),
    mode: fc.constantFrom(...FAILURE_MODES),
    // Not 1: a target that fails both to do a thing and to clear it away again cannot be told from a good one.
    again: fc.oneof({ weight: 4, arbitrary: fc.constant(0) }, { weight: 1, arbitrary: fc.integer({ min: 2, max: 6 }) }),
  }),
  { freq: 3 },
);

const wild = fc.nat(9).map((n) => n === 0);

/** What may be attached from the start. A manager without DMA targets takes other ways. */
const watchers: fc.Arbitrary<Request[]> = fc.subarray<Request>([
  { kind: "addPartition", offset: 0, pin: false },
  { kind: "addPartition", offset: 16, pin: false },
  { kind: "addPartition", offset: 1000, pin: true },
  { kind: "addDmaTarget" },
]);

const plain = (request: Request): SequenceStep => ({ request, fault: null, wild: false });

/** A region of one mapping that is mapped, so that a sequence does not start from nothing. */
const backedRegion = fc.record({ region: newRegion, mapping: addMapping, params: map }).map(
  ({ region, mapping, params }): Request => ({
    kind: "batch",
    // The largest number is the region that was made last.
    requests: [region, { ...mapping, region: -1, at: 0, pages: -1 }, { ...params, region: -1 }],
    abandon: false,
  }),
);

/**
 * A sequence of requests, some of them with a failure injected, over a few regions and targets that watch. Without
 * bias: small numbers everywhere would leave most sequences with hardly a page that changes hands.
 */
export const sequence: fc.Arbitrary<SequenceStep[]> = fc.noBias(
  fc.record({
    watchers,
    regions: fc.array(backedRegion, { maxLength: 5, size: "max" }),
    steps: fc.array(fc.record({ request, fault, wild }), { minLength: 1, maxLength: 25, size: "max" }),
  }),
).map(({ watchers, regions, steps }) => [...[...watchers, ...regions].map(plain), ...steps]);

/** What exists while a request is resolved. */
export interface Existing {
  readonly regions: { start: number; pages: number; disposed: boolean }[];
  partitions: number;
  targets: number;
}

/** The request with its numbers wrapped into what exists, unless it is wild; `null` where nothing exists. */
export function resolve(request: Request, wild: boolean, existing: Existing): Request | null {
  const { regions, partitions, targets } = existing;
  switch (request.kind) {
    case "newRegion":
      regions.push({ ...request, disposed: false });
      return request;
    case "addPartition":
      existing.partitions++;
      return request;
    case "addDmaTarget":
      existing.targets++;
      return request;
    case "detachPartition":
      return partitions === 0 ? null : { ...request, partition: request.partition % partitions };
    case "detachDmaTarget":
      return targets === 0 ? null : { ...request, target: request.target % targets };
    case "batch": {
      const requests = request.requests.map((inner) => resolve(inner, wild, existing));
      return { ...request, requests: requests.filter((inner) => inner !== null) };
    }
  }
  const candidates = wild ? regions : regions.filter(({ disposed }) => !disposed);
  const chosen = candidates.at(request.region < 0 ? -1 : request.region % candidates.length);
  if (chosen === undefined) return null;
  const region = regions.indexOf(chosen);
  if (request.kind === "disposeRegion") chosen.disposed = true;
  if (request.kind !== "addMapping" && request.kind !== "removeMappings") return { ...request, region };
  const at = wild ? request.at : request.at % Math.max(1, chosen.pages);
  const rest = chosen.pages - at;
  const pages = wild ? Math.max(0, request.pages) : request.pages < 0 ? rest : 1 + request.pages % Math.max(1, rest);
  if (request.kind === "removeMappings") return { ...request, region, at, pages };
  const { file } = request;
  const filePage = request.filePage < 0 ? chosen.start + at : request.filePage;
  const mayWrite = wild || file === "private" || FILES[file]!.writable || request.copyOnWrite === true;
  const writable = request.writable && mayWrite;
  return { ...request, region, at, pages, filePage, writable };
}

/** Runs one sequence against the model and the manager. Throws at the first difference. */
export function runSequence(steps: readonly SequenceStep[], overlap: "nested" | "any", files: Files): void {
  const model = new Model(PAGES, overlap, FILES);
  const world = new World({ pages: PAGES, overlap, files });
  let scarred = false;
  for (const step of steps) {
    const { regions, partitions, dmaTargets } = model.state;
    const request = resolve(step.request, step.wild, {
      regions: regions.map(({ start, pages, disposed }) => ({ start, pages, disposed })),
      partitions: partitions.length,
      targets: dmaTargets.length,
    });
    if (request === null) continue;
    const ended = runStep(model, world, request, step.fault);
    scarred ||= ended !== "whole";
    if (ended === "torn") break;
  }
  world.dispose(scarred);
}

/** How a step left the world: `"mended"` after an undo that failed, `"torn"` if some of that is still to be seen. */
type Ending = "whole" | "mended" | "torn";

/** Runs one step. */
function runStep(model: Model, world: World, request: Request, fault: PlannedFault | null): Ending {
  const before = wantedNow(model);
  const stateBefore = model.copyState();
  // Until everything is mended, a request also clears what may or may not be there, and such a call may well fail.
  const inDoubt = world.manager.inspect().outOfStep.length > 0;
  const expected = model.apply(request);
  const mayFail = fault !== null || expected.size > 0;
  const snapshot = mayFail ? world.snapshot() : null;
  if (fault !== null && !inDoubt) {
    // Giving up memory that nobody has any more is no part of what a request must achieve; it has tests of its own.
    const on = ({ method }: TargetCall) => method !== "discard";
    world.faults.failAfter(fault.after, { mode: fault.mode, on });
    if (fault.again > 0) world.faults.failAfter(fault.after + fault.again, { mode: fault.mode, on });
  }
  const explained = fault === null && !inDoubt ? world.explain(request) : null;
  const error = attempt(() => world.run(request));
  if (explained !== null) {
    const asDone = error === undefined ? null : error instanceof Error ? error.name : "";
    const asSaid = explained.error === null ? null : explained.error instanceof Error ? explained.error.name : "";
    assertEquals(asSaid, asDone, `explained ${JSON.stringify(request)}`);
    if (error === undefined) assertEquals(explained.steps, world.calls.length, `explained ${JSON.stringify(request)}`);
  }
  const { fired } = world.faults;
  world.faults.reset();

  const failed = fired.some((fault) => fault.call.method !== "prefetchRange");
  if (error === undefined) {
    assertEquals([...expected], [], `the request must fail: ${JSON.stringify(request)}`);
    assert(!failed, `the request hides a failure: ${fired.map(String)}`);
    world.compare(model);
    if (!inDoubt) checkEconomy(world, before, wantedNow(model));
    return "whole";
  }

  // Whatever went wrong, the request did not happen.
  model.state = stateBefore;
  if (!failed) {
    const name = (error instanceof Error ? error.name : String(error)) as ErrorName;
    assert(expected.has(name), `unexpected ${Deno.inspect(error)} for ${JSON.stringify(request)}`);
    assertEquals(world.calls.filter(({ target }) => target !== ""), [], "a refused request touched a target");
  } else {
    assert(error instanceof MappingError, `a failing target shows as ${Deno.inspect(error)}`);
    assert(error.cause instanceof InjectedFault, `the cause is ${Deno.inspect(error.cause)}`);
    assert(
      error.cause === fired.find((fault) => fault.call.method !== "prefetchRange"),
      "the first failure is the cause",
    );
    if (fired.length > 1 && error.outOfStep.length > 0) return repair(model, world, error);
    assertEquals(error.outOfStep, [], "undoing met no failure");
    if (fired.length > 1) {
      // Undoing met failures and overcame them: what counts is what is there now.
      world.compare(model);
      return "whole";
    }
  }
  assertEquals(world.snapshot(), snapshot, `${error} left a trace: ${describe(world.calls)}`);
  world.compare(model);
  return "whole";
}

/** After an undo that failed: differences are where the error says, and remapping every region mends them. */
function repair(model: Model, world: World, error: MappingError): Ending {
  for (const { target, page, what } of world.differences(model)) {
    const named = error.outOfStep.some((out) => out.target === target && out.range.containsAddress(page * PAGE));
    const names = error.outOfStep.map(({ target, range }) => `${target} ${range}`);
    assert(named, `the error names ${names} and leaves out: ${what}`);
  }
  world.accept(error.outOfStep);
  for (const [i, { params, disposed }] of model.state.regions.entries()) {
    if (params === null || disposed) continue;
    world.run({ kind: "map", region: i, ...params, executable: !params.executable });
    world.run({ kind: "map", region: i, ...params });
  }
  let ending: Ending = "mended";
  for (const { page, what } of world.differences(model)) {
    // What no region shows at, no request has passed over yet.
    if (model.winner(page) !== null) fail(`not mended: ${what}`);
    ending = "torn";
  }
  return ending;
}

function attempt(action: () => void): unknown {
  try {
    action();
  } catch (error) {
    return error ?? new Error("threw nothing");
  }
  return undefined;
}
