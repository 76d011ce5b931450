import { assert, assertEquals } from "@std/assert";
import { descriptors, descriptorsAre } from "./rig.ts";
import { soak } from "./soak_loop.ts";

Deno.test("hundreds of back ends die at random, and manager, guest and table go on", async () => {
  const before = descriptors();
  const seed = Math.floor(Math.random() * 2 ** 32);
  const { ends, compared, requests, failed } = await soak(seed, (died) => died >= 300);
  const total = Object.values(ends).reduce((sum, count) => sum + count, 0);
  assert(total >= 100 && compared >= 20 && requests > failed, Deno.inspect({ seed, ends, compared, requests, failed }));
  assertEquals(Object.keys(ends).sort().includes("disconnected"), true);
  await descriptorsAre(before);
});
