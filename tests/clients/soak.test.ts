import { assert } from "@std/assert";
import { testUnless, tooSlow } from "../support/require.ts";
import { runSoak } from "./soak_run.ts";

testUnless(
  tooSlow,
  "eight Workers and three processes read, write, lock and change memory while the owner does, and some end on the way",
  async () => {
    const counts = await runSoak(4, 6);
    for (const what of ["window read", "locked", "lock checked", "own region made", "refused: locked", "replaced"]) {
      assert((counts[what] ?? 0) > 0, `nothing was counted as "${what}": ${JSON.stringify(counts)}`);
    }
  },
);
