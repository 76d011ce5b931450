import { setImmediate } from "node:timers";

/** How long work goes on before everything else has its turn, in milliseconds. */
const SLICE = 5;

let began = 0;

/** Lets everything else on this thread have its turn, if it has waited for a while. */
export async function pause(): Promise<void> {
  if (performance.now() - began < SLICE) return;
  // After whatever is ready by now, and without the millisecond that a timer takes at least.
  await new Promise<void>((resolve) => void setImmediate(resolve));
  began = performance.now();
}
