/**
 * The manager's limit on kernel mappings, and what else of the process needs some: reservations of other threads before,
 * Workers and the JavaScript heap after.
 *
 * @module
 */

import { spareMappings } from "../../../ffi/host/mapping_budget.ts";
import { LimitError, Mappable, type RegionHandle, RegionManager, VaMapper } from "membacking";
import { mappings } from "../../support/proc.ts";
import { PAGE, range } from "../../support/units.ts";
import { report } from "./attempt.ts";
import { mappingLimit } from "./limits.ts";

/** A region to be filled with pieces that are two kernel mappings each. */
function window(): { region: RegionHandle; add(i: number): void } {
  const va = VaMapper.reserve(2 ** 30);
  const regions = new RegionManager(va);
  const region = regions.newRegion({ name: "window", range: range(0, 2 ** 30), priority: 0, holes: "fault" });
  region.map();
  const mappable = Mappable.memfd("window", PAGE);
  const add = (i: number) => region.addMapping({ rangeInRegion: range(2 * i * PAGE, (2 * i + 1) * PAGE), mappable });
  return { region, add };
}

/** A Worker with code, once it has answered for the first time. */
async function worker(source: string): Promise<Worker> {
  const made = new Worker(`data:text/javascript,${encodeURIComponent(source)}`, { type: "module" });
  await new Promise((resolve) => made.onmessage = resolve);
  return made;
}

const OTHERS = 10_000;
const { add } = window();
const before = spareMappings();
// Reserved by another thread, with the bare C library: what is not guest memory of this thread at all.
const other = await worker(`
  const { symbols } = Deno.dlopen("libc.so.6", {
    mmap: { parameters: ["usize", "usize", "i32", "i32", "i32", "i64"], result: "usize" },
    mprotect: { parameters: ["usize", "usize", "i32"], result: "i32" },
  });
  const base = symbols.mmap(0n, ${OTHERS * PAGE}n, 0, 0x4022, -1, 0n);
  for (let i = 0n; i < ${OTHERS / 2}n; i++) symbols.mprotect(base + 2n * i * 4096n, 4096n, 1);
  postMessage("done");
`);
let next = 0;
// Scarce enough for what others have to be counted again.
while (spareMappings() > mappingLimit() / 2 - 12_000) add(next++);
await new Promise((resolve) => setTimeout(resolve, 1500));
const afterOthers = spareMappings() + 2 * next;

let error = "";
try {
  while (next < 60_000) add(next++);
} catch (thrown) {
  error = thrown instanceof LimitError ? thrown.name : String(thrown);
}
const inProcess = mappings().length;

const workers: Worker[] = [other];
for (let i = 0; i < 10; i++) {
  workers.push(
    await worker("const a = []; for (let i = 0; i < 4e5; i++) a.push({ i, at: [i] }); postMessage(a.length)"),
  );
}
const afterWorkers = mappings().length;
const kept: unknown[] = [];
while (Deno.memoryUsage().heapUsed < 300 * 2 ** 20) for (let i = 0; i < 1e5; i++) kept.push({ i, at: [i] });
const heapMegabytes = Deno.memoryUsage().heapUsed / 2 ** 20;
const afterHeap = mappings().length;
for (const one of workers) one.terminate();
report({
  ...{ before, afterOthers, others: OTHERS, error, inProcess, afterWorkers, afterHeap, heapMegabytes },
  limit: mappingLimit(),
});
Deno.exit(0);
