import { assert } from "@std/assert";
import { runOwner } from "./soak_run.ts";

Deno.test("processes that are killed at any moment leave nothing behind, and the owner goes on", async () => {
  const counts = await runOwner("kill_owner.ts", 4, 7);
  assert((counts.killed ?? 0) >= 3 && (counts.changes ?? 0) > 20, JSON.stringify(counts));
});
