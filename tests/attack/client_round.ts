import { type Mappable, MemoryRange, type ProcessClient, type RegionManagerClient } from "membacking";
import type { Random } from "./random.ts";

const PAGE = 0x1000;

/** What a client does with memory between two requests: a region of `file`, accesses, and a lock it may keep for a while. */
export async function clientRound(
  client: RegionManagerClient | ProcessClient,
  name: string,
  file: Mappable,
  random: Random,
): Promise<void> {
  const start = (32 + random.below(16)) * PAGE;
  const region = await client.newRegion({ name, range: MemoryRange.of(start, 4 * PAGE), priority: 200 });
  await region.addMapping({ rangeInRegion: MemoryRange.of(0, 4 * PAGE), mappable: file });
  await region.map();
  client.memory.fill(start, 4 * PAGE, 7);
  const lock = client.memory.lock(MemoryRange.of(start, PAGE), { write: true });
  lock.bytes[0] = 1;
  if (random.oneIn(2)) lock[Symbol.dispose]();
  else setTimeout(() => lock[Symbol.dispose](), 1);
  client.memory.read(0, PAGE);
  for (const { range } of client.memory.pieces()) client.memory.find(range.start);
  await region.remove().catch(() => {}); // refused while the lock is held
}
