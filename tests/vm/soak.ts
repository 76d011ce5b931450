/**
 * Runs random sequences on real virtual machines for as long as told: `deno run -A tests/vm/soak.ts 60` for a minute.
 *
 * @module
 */

import * as fc from "fast-check";
import { sequence } from "../model/sequences.ts";
import { runOnVms, Stock } from "./vm_world.ts";

/** Sequences between two looks at the clock. */
const ROUND = 20;

if (import.meta.main) {
  const seconds = Number(Deno.args[0] ?? 60);
  if (!(seconds > 0)) {
    console.error(`usage: soak.ts SECONDS, got ${Deno.args.join(" ")}`);
    Deno.exit(2);
  }
  using stock = new Stock();
  const end = performance.now() + seconds * 1000;
  let count = 0;
  while (performance.now() < end) {
    for (const overlap of ["nested", "any"] as const) {
      const property = fc.property(sequence, (steps) => runOnVms(steps, overlap, stock));
      const result = fc.check(property, { numRuns: ROUND });
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
