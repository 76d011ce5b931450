/**
 * Runs random sequences against the naive model for as long as told: `deno task soak -- 60` for a minute.
 *
 * @module
 */

import { FILES, runSequence } from "./sequences.ts";
import { soak } from "./soak_loop.ts";
import { Files } from "./world.ts";

if (import.meta.main) {
  using files = new Files(FILES);
  soak(100, (steps, overlap) => runSequence(steps, overlap, files));
}
