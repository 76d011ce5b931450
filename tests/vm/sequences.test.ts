import * as fc from "fast-check";
import { sequence } from "../model/sequences.ts";
import { kvmTest } from "../support/require.ts";
import { runOnVms, Stock } from "./vm_world.ts";

/** How many random sequences are tried in each overlap mode. */
const SEQUENCES = 30;

for (const overlap of ["nested", "any"] as const) {
  kvmTest(`guests, host and kernel see every page as the naive model does, overlap "${overlap}"`, () => {
    using stock = new Stock();
    fc.assert(fc.property(sequence, (steps) => runOnVms(steps, overlap, stock)), { numRuns: SEQUENCES });
  });
}
