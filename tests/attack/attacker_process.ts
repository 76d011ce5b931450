/**
 * A process that uses memory as a client until somebody kills it: `attacker_process.ts FD SEED`.
 *
 * @module
 */

import { MemoryRange, ProcessClient } from "membacking";
import { Random } from "./random.ts";

const PAGE = 0x1000;
const random = new Random(Number(Deno.args[1]));
const client = await ProcessClient.connect(Number(Deno.args[0]));
const file = await client.memfd("process", 16 * PAGE);
while (true) {
  const start = (32 + random.below(16)) * PAGE;
  const region = await client.newRegion({ name: "process", range: MemoryRange.of(start, 4 * PAGE), priority: 200 });
  await region.addMapping({ rangeInRegion: MemoryRange.of(0, 4 * PAGE), mappable: file });
  await region.map();
  client.memory.fill(start, 4 * PAGE, 7);
  const lock = client.memory.lock(MemoryRange.of(start, PAGE), { write: true });
  lock.bytes[0] = 1;
  if (random.oneIn(2)) lock[Symbol.dispose]();
  else setTimeout(() => lock[Symbol.dispose](), 1);
  client.memory.read(0, PAGE);
  await region.remove().catch(() => {}); // refused while the lock is held
}
