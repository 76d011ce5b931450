/**
 * Runs random sequences on real virtual machines for as long as told: `deno run -A tests/vm/soak.ts 60` for a minute.
 *
 * @module
 */

import { soak } from "../model/soak_loop.ts";
import { runOnVms, Stock } from "./vm_world.ts";

if (import.meta.main) {
  using stock = new Stock();
  soak(20, (steps, overlap) => runOnVms(steps, overlap, stock));
}
