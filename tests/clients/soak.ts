/**
 * Runs the soak test of clients for as long as told: `deno task soak-clients 60` for a minute.
 *
 * @module
 */

import { runOwner, runSoak } from "./soak_run.ts";

if (import.meta.main) {
  const seconds = Number(Deno.args.at(-1) ?? 60);
  if (!(seconds > 0)) {
    console.error(`usage: soak.ts SECONDS, got ${Deno.args.join(" ")}`);
    Deno.exit(2);
  }
  const seed = Math.floor(Math.random() * 2 ** 31);
  console.table(await runSoak(seconds, seed));
  // And half as long again of nothing but processes that are killed.
  console.table(await runOwner("kill_owner.ts", seconds / 2, seed));
  console.log(`Nothing torn, leaked or stuck in ${seconds} s (seed ${seed})`);
}
