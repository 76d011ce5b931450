/** How long work goes on before everything else has its turn, in milliseconds. */
const SLICE = 5;

let began = 0;

/** Lets everything else on this thread have its turn, if it has waited for a while. */
export async function pause(): Promise<void> {
  if (performance.now() - began < SLICE) return;
  await new Promise((resolve) => setTimeout(resolve, 0));
  began = performance.now();
}
