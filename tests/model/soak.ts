/**
 * Runs random sequences against the naive model for as long as told: `deno task soak -- 60` for a minute.
 *
 * @module
 */

import * as fc from "fast-check";
import { FILES, runSequence, sequence } from "./sequences.ts";
import { Files } from "./world.ts";

/** Sequences between two looks at the clock. */
const ROUND = 100;

if (import.meta.main) {
  const seconds = Number(Deno.args.at(-1) ?? 60);
  if (!(seconds > 0)) {
    console.error(`usage: soak.ts SECONDS, got ${Deno.args.join(" ")}`);
    Deno.exit(2);
  }
  using files = new Files(FILES);
  const end = performance.now() + seconds * 1000;
  let count = 0;
  while (performance.now() < end) {
    for (const overlap of ["nested", "any"] as const) {
      const result = fc.check(fc.property(sequence, (steps) => runSequence(steps, overlap, files)), {
        numRuns: ROUND,
      });
      count += result.numRuns;
      if (result.failed) {
        console.error(`overlap "${overlap}", after ${count} sequences:`);
        console.error(fc.defaultReportMessage(result));
        Deno.exit(1);
      }
    }
  }
  console.log(`${count} sequences agreed with the model in ${seconds} s`);
}
