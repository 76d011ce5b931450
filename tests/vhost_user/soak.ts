/**
 * Lets back ends die for so many seconds: `deno task soak-vhost 60`, or with a seed, `deno task soak-vhost 60 1234`.
 *
 * @module
 */

import { soak } from "./soak_loop.ts";

const [seconds = "60", seed = String(Math.floor(Math.random() * 2 ** 32))] = Deno.args;
const until = performance.now() + 1000 * Number(seconds);
console.log(`Seed ${seed}`);
let back = 0;
const report = await soak(Number(seed), (died) => {
  back = died;
  return performance.now() >= until;
});
console.log(`${back} back ends have died:`, report);
