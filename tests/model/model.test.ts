import { assertGreater } from "@std/assert";
import type { CallMethod } from "membacking/testing";
import * as fc from "fast-check";
import { FILES, runSequence, sequence } from "./sequences.ts";
import { exercised, Files } from "./world.ts";

/** How many random sequences are tried in each overlap mode. */
const SEQUENCES = 1500;

/** Every kind of step, and how often it is carried out at least: a kind that hardly is would be checked by nobody. */
const AT_LEAST: Readonly<Partial<Record<CallMethod, number>>> = {
  map: 3000,
  protect: 150,
  remove: 1000,
  park: 200,
  restore: 150,
  discard: 100,
  mapRange: 3000,
  unmapRange: 2000,
  mapDma: 1500,
  unmapDma: 800,
  pinRange: 500,
  unpinRange: 300,
  prefetchRange: 500,
};

for (const overlap of ["nested", "any"] as const) {
  Deno.test(`the region manager does what the naive model does, overlap "${overlap}"`, () => {
    using files = new Files(FILES);
    exercised.clear();
    fc.assert(fc.property(sequence, (steps) => runSequence(steps, overlap, files)), {
      numRuns: SEQUENCES,
    });
    for (const [method, least] of Object.entries(AT_LEAST)) {
      assertGreater(exercised.get(method as CallMethod) ?? 0, least, `${method} was hardly exercised`);
    }
  });
}
