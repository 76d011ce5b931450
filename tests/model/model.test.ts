import * as fc from "fast-check";
import { Files } from "./world.ts";
import { FILES, runSequence, sequence } from "./sequences.ts";

/** How many random sequences are tried in each overlap mode. */
const SEQUENCES = 1500;

for (const overlap of ["nested", "any"] as const) {
  Deno.test(`the region manager does what the naive model does, overlap "${overlap}"`, () => {
    using files = new Files(FILES);
    fc.assert(fc.property(sequence, (steps) => runSequence(steps, overlap, files)), {
      numRuns: SEQUENCES,
    });
  });
}
