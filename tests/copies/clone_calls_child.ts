/**
 * Clones guests of two sizes, and says to whoever traces its system calls where each clone begins and ends.
 *
 * @module
 */

import { GuestMemoryManager, MemoryRange } from "membacking";
import { RecordingPartition } from "membacking/testing";

/** A call that shows in the trace and does nothing. */
function mark(name: string): void {
  try {
    Deno.statSync(`/mark/${name}`);
  } catch {
    // There is nothing there.
  }
}

for (const mebibytes of [64, 16 * 1024]) {
  const size = mebibytes * 2 ** 20;
  using guest = GuestMemoryManager.create({ maxAddress: size, ram: [{ ranges: [new MemoryRange(0, size)] }] });
  // Touched all over: what a clone takes must not depend on what there is, either.
  for (let at = 0; at < size; at += size / 256) guest.memory.writeUint32(at, 1);
  using template = guest.freeze();
  for (let i = 0; i < 12; i++) {
    mark(`begin-${mebibytes}`);
    const clone = template.clone();
    clone.attachPartition(new RecordingPartition());
    mark("end");
    if (clone.memory.readUint32(size - size / 256) !== 1) throw new Error("The clone has other memory");
    clone[Symbol.dispose]();
  }
}
