import * as fc from "fast-check";
import { sequence, type SequenceStep } from "./sequences.ts";

/**
 * Runs random sequences for as many seconds as the command line says, 60 by default, and reports how many. Ends the
 * process with 1 at the first that fails.
 *
 * @param round How many sequences to run between two looks at the clock.
 */
export function soak(round: number, run: (steps: SequenceStep[], overlap: "nested" | "any") => void): void {
  const seconds = Number(Deno.args.at(-1) ?? 60);
  if (!(seconds > 0)) {
    console.error(`usage: soak.ts SECONDS, got ${Deno.args.join(" ")}`);
    Deno.exit(2);
  }
  const end = performance.now() + seconds * 1000;
  let count = 0;
  while (performance.now() < end) {
    for (const overlap of ["nested", "any"] as const) {
      const result = fc.check(fc.property(sequence, (steps) => run(steps, overlap)), { numRuns: round });
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
