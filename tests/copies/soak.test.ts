import { assert } from "@std/assert";
import { runSoak } from "./soak_run.ts";

Deno.test("children that freeze, clone, roll back, thaw and save at random have every page right until they are killed, and leave whole snapshots", async () => {
  const { children, steps } = await runSoak(4, Math.floor(Math.random() * 2 ** 30));
  assert(children >= 1 && steps >= 100);
});
