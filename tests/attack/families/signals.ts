/**
 * Signals by the thousand while requests are made: no call fails because of one.
 *
 * @module
 */

import { GuestMemoryManager, Mappable, MemoryRange } from "membacking";
import { currentThreadId, EventFd } from "membacking/kvm";
import { kickSignal } from "../../../ffi/kvm/kick_signal.ts";
import type { Family } from "../family.ts";
import { baseline, leakedAtLast } from "../resources.ts";
import { FaultyMachine } from "./faults.ts";

const PAGE = 0x1000;

const family: Family = {
  name: "signals",
  async attack(random, notes) {
    new FaultyMachine(random)[Symbol.dispose]();
    const count = new Int32Array(new SharedArrayBuffer(8));
    const storm = new Worker(new URL("../../kvm/storm_worker.ts", import.meta.url), { type: "module" });
    storm.postMessage({ thread: currentThreadId(), signal: kickSignal(), count });
    while (Atomics.load(count, 0) < 10) await new Promise((resolve) => setTimeout(resolve, 1));
    const before = await baseline();
    {
      using machine = new FaultyMachine(random);
      for (const until = performance.now() + 1500; performance.now() < until || Atomics.load(count, 0) < 500;) {
        machine.request(random, notes);
        notes.try("create", () => {
          const ram = [{ ranges: [MemoryRange.of(0, 2 ** 21)] }];
          using guest = GuestMemoryManager.create({ maxAddress: 2 ** 24, ram });
          guest.memory.fill(0, 2 ** 21, 1);
          guest.setRamVisibility(MemoryRange.of(PAGE, PAGE), "read-only");
        });
        notes.try("files", () => {
          using file = Mappable.memfd("storm", 2 ** 21);
          file.write(0, new Uint8Array(2 ** 21));
          using event = new EventFd();
          event.signal();
        });
      }
    }
    Atomics.store(count, 1, 1);
    notes.claim((notes.report.outcomes["OsError"] ?? 0) === 0, "calls failed because of signals");
    for (const left of await leakedAtLast(before)) notes.broken(left);
  },
};

export default family;
