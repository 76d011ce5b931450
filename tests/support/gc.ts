import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

setFlagsFromString("--expose-gc");
const gc: () => void = runInNewContext("gc");

/** Collects garbage until `done`, and lets finalizers run; throws if that never comes. */
export async function collectUntil(done: () => boolean): Promise<void> {
  for (let round = 0; round < 200; round++) {
    gc();
    await new Promise((resolve) => setTimeout(resolve, 1));
    if (done()) return;
  }
  throw new Error("200 garbage collections have not made it so");
}

/** Collects garbage some times, and lets finalizers run. */
export async function collect(): Promise<void> {
  let rounds = 0;
  await collectUntil(() => ++rounds === 5);
}
