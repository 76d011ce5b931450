// A back end's memory table where the stack ends in the middle of a change of it.

import { assertEquals, assertGreater } from "@std/assert";
import { throwsNearEnd } from "../support/stack.ts";
import { Rig } from "./rig.ts";

/** How many words before the end of the stack each request is tried: far from it first, and fast code takes less than new. */
const PLACES = [
  65_536,
  ...Array.from({ length: 200 }, (_, i) => 4000 - 17 * i),
  ...Array.from({ length: 150 }, (_, i) => 900 - 6 * i),
];

Deno.test("where the stack ends in a change of the memory table, the back end has what is said, or is cut off", async () => {
  const outcomes = { done: 0, undone: 0, cutOff: 0 };
  let rig = await Rig.make();
  let region = rig.region();
  try {
    for (const words of PLACES) {
      for (let requests = 0; requests < 2; requests++) {
        const wasMapped = region.mapParams !== null;
        const isInterrupted = throwsNearEnd(words, () => wasMapped ? region.unmap() : region.map());
        // Whatever was left unfinished is put in order by whoever asks next.
        const isMapped = region.mapParams !== null;
        if (rig.frontend.state === "connected") {
          outcomes[isInterrupted ? "undone" : "done"]++;
          // What was taken back without a word is told with the next request.
          if (isInterrupted) rig.guest.regions.batch(() => isMapped ? region.unmap() : region.map());
          const ranges = isInterrupted ? !isMapped : isMapped;
          if (rig.frontend.state === "connected") {
            assertEquals(
              [await rig.held(), rig.told.length],
              [rig.told, ranges ? 2 : 1],
              `${words} words from the end`,
            );
            continue;
          }
        }
        outcomes.cutOff++;
        await rig[Symbol.asyncDispose]();
        rig = await Rig.make();
        region = rig.region();
      }
    }
  } finally {
    await rig[Symbol.asyncDispose]();
  }
  assertGreater(outcomes.done, 20);
  assertGreater(outcomes.undone + outcomes.cutOff, 20);
});
