/**
 * Runs the soak test of copies for as long as told: `deno task soak-copies 60` for a minute.
 *
 * @module
 */

import { runSoak } from "./soak_run.ts";

if (import.meta.main) {
  const seconds = Number(Deno.args.at(-1) ?? 60);
  if (!(seconds > 0)) {
    console.error(`usage: soak.ts SECONDS, got ${Deno.args.join(" ")}`);
    Deno.exit(2);
  }
  const seed = Math.floor(Math.random() * 2 ** 30);
  console.log(`Seed ${seed}`);
  console.table(await runSoak(seconds, seed));
}
