/**
 * Serves 20,000 ports that are closed without a hello, and prints how much the heap has grown by each half of them, in
 * MiB. Run with `--v8-flags=--expose-gc`.
 *
 * @module
 */

import { RegionManager, VaMapper } from "membacking";

const { gc } = globalThis as unknown as { gc(): void };
using regions = new RegionManager(VaMapper.reserve(0x10_0000));

async function round(count: number): Promise<number> {
  for (let i = 0; i < count; i++) {
    const { port1, port2 } = new MessageChannel();
    regions.serve(port1);
    port2.close();
    if (i % 100 === 0) await new Promise((resolve) => setTimeout(resolve, 0));
  }
  // Their ends are told on the event loop, a few at each turn: all of them once nothing has gone for a while.
  let least = Infinity;
  for (let looks = 0; looks < 20; looks++) {
    await new Promise((resolve) => setTimeout(resolve, 50));
    gc();
    const used = Deno.memoryUsage().heapUsed;
    if (used < least - 2 ** 12) looks = 0;
    least = Math.min(least, used);
  }
  return least / 2 ** 20;
}

const before = await round(2000);
const half = await round(10_000);
console.log(JSON.stringify([half - before, await round(10_000) - half]));
