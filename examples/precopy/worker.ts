/// <reference lib="deno.worker" />
/**
 * A Worker that writes guest memory as a client of the region manager, at random, until it is told to stop.
 *
 * @module
 */

import { DisposedError, type GuestMemory, GuestMemoryError, MemoryRange, RegionManagerClient } from "membacking";
import { STATE, type WorkerJob } from "./worker_thread.ts";

self.onmessage = async ({ data }: MessageEvent<WorkerJob>) => {
  const { port, start, end, words } = data;
  using client = await RegionManagerClient.connect(port);
  self.postMessage("ready");
  while (true) {
    const state = Atomics.load(words, 0);
    if (state === STATE.stop) break;
    if (state === STATE.pause) {
      Atomics.store(words, 1, 1);
      Atomics.notify(words, 1);
      Atomics.wait(words, 0, STATE.pause);
      Atomics.store(words, 1, 0);
      continue;
    }
    for (let i = 0; i < 16; i++) write(client.memory, start + 8 * Math.floor(Math.random() * (end - start) / 8));
    Atomics.wait(words, 0, state, 1);
  }
  client[Symbol.dispose]();
  self.close();
};

/** Writes by one of the ways there are; where there is no memory to write, not at all. */
function write(memory: GuestMemory, gpa: number): void {
  try {
    switch (Math.floor(Math.random() * 4)) {
      case 0:
        return memory.writeUint32(gpa, Math.random() * 2 ** 32);
      case 1:
        return memory.fill(gpa, 100, Math.floor(Math.random() * 256));
      case 2:
        return void memory.compareExchangeUint32(gpa, memory.readUint32(gpa), Math.random() * 2 ** 32);
      case 3: {
        using locked = memory.lock(MemoryRange.bounding(gpa, gpa + 1), { write: true });
        locked.bytes[gpa % 4096] = Math.random() * 256;
      }
    }
  } catch (error) {
    // There may be no memory just now; and the owner may be done with this Worker.
    if (!(error instanceof GuestMemoryError || error instanceof DisposedError)) throw error;
  }
}
