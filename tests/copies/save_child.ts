/**
 * Saves one snapshot after another, each the difference to the last, until it is killed: what `save.test.ts` does.
 *
 * @module
 */

import { GuestMemoryManager, MemoryRange, type Snapshot } from "membacking";

const [directory = ""] = Deno.args;
const SIZE = 4 * 2 ** 20;
using guest = GuestMemoryManager.create({ maxAddress: SIZE, ram: [{ ranges: [new MemoryRange(0, SIZE)] }] });
let base: Snapshot | undefined;
for (let i = 1;; i++) {
  guest.memory.fill(0, SIZE / 2, i & 0xff);
  guest.memory.writeUint32(SIZE - 4, i);
  const snapshot: Snapshot = await guest.save(`${directory}/${i}`, base === undefined ? {} : { base });
  base?.[Symbol.dispose]();
  base = snapshot;
  console.log(i);
}
