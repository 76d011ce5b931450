import { assert, assertEquals, assertInstanceOf, assertStrictEquals } from "@std/assert";
import { MappingError } from "membacking";
import { FAILURE_MODES, type FailureMode, type TargetCall } from "membacking/testing";
import { Model } from "../model/model.ts";
import { checkEconomy, describe, Files, wantedNow, World } from "../model/world.ts";
import { FILES, PAGES, type Scenario, SCENARIOS } from "./scenarios.ts";

/** A world in which everything before the scenario's request has happened. */
function prepare({ overlap = "nested", given }: Scenario, files: Files): { model: Model; world: World } {
  const model = new Model(PAGES, overlap, FILES);
  const world = new World({ pages: PAGES, overlap, files });
  for (const request of given) {
    assertEquals([...model.apply(request)], []);
    world.run(request);
  }
  world.compare(model);
  return { model, world };
}

/** Makes the request without any failure. Returns the calls it takes. */
function runWhole(scenario: Scenario, model: Model, world: World): readonly TargetCall[] {
  world.faults.reset();
  const before = wantedNow(model);
  assertEquals([...model.apply(scenario.request)], []);
  world.run(scenario.request);
  world.compare(model);
  checkEconomy(world, before, wantedNow(model));
  return [...world.calls];
}

/** What `action` throws. */
function thrownBy(action: () => void): unknown {
  try {
    action();
  } catch (error) {
    return error;
  }
  return undefined;
}

/** Makes the `k`-th call of the scenario's request fail and checks that nothing came of the request. */
function failStep(scenario: Scenario, k: number, mode: FailureMode, files: Files): void {
  const { model, world } = prepare(scenario, files);
  const at = `call ${k}, ${mode}`;
  const snapshot = world.snapshot();
  world.faults.failAfter(k, { mode });
  const error = thrownBy(() => world.run(scenario.request));
  const [fault] = world.faults.fired;
  assert(fault !== undefined, `${at} was not made`);

  if (fault.call.method === "prefetchRange") {
    assertStrictEquals(error, undefined, `${at}: a prefetch that fails fails nothing`);
    model.apply(scenario.request);
    world.compare(model);
    return world[Symbol.dispose]();
  }
  if (fault.call.method === "discard") {
    assertStrictEquals(error, undefined, `${at}: giving memory up is no part of what a request must achieve`);
    model.apply(scenario.request);
    world.compare(model);
    // What was kept goes with the manager at the latest.
    world.faults.reset();
    return world[Symbol.dispose]();
  }
  assertInstanceOf(error, MappingError, at);
  assertStrictEquals(error.cause, fault, at);
  assertEquals(error.outOfStep, [], at);
  assertEquals(world.snapshot(), snapshot, `${at}: ${describe(world.calls)}`);
  world.compare(model);
  runWhole(scenario, model, world);
  world[Symbol.dispose]();
}

for (const scenario of SCENARIOS) {
  Deno.test(`whichever step fails, nothing has happened and trying again works: ${scenario.name}`, () => {
    using files = new Files(FILES);
    const { model, world } = prepare(scenario, files);
    const { length } = runWhole(scenario, model, world);
    world[Symbol.dispose]();
    assert(length > 0, "the request has no steps");
    for (let k = 0; k < length; k++) {
      for (const mode of FAILURE_MODES) failStep(scenario, k, mode, files);
    }
  });
}
