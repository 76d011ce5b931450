/**
 * Clients in Workers that are ended at any instruction: the owner goes on, their regions and locks go, nothing is left.
 *
 * @module
 */

import { MemoryRange } from "membacking";
import type { Job } from "../attacker_worker.ts";
import type { Family } from "../family.ts";
import { baseline, leakedAtLast } from "../resources.ts";
import { Known } from "../stage.ts";

const wait = (milliseconds: number) => new Promise((resolve) => setTimeout(resolve, milliseconds));

const family: Family = {
  name: "workers",
  timeout: 60_000,
  async attack(random, notes) {
    const before = await baseline();
    {
      using known = new Known();
      for (let round = 0; round < 4; round++) {
        const workers = Array.from({ length: 1 + random.below(3) }, () => {
          const { port1, port2 } = new MessageChannel();
          known.manager.serve(port1, { deadline: 300 });
          const worker = new Worker(new URL("../attacker_worker.ts", import.meta.url), { type: "module" });
          worker.onerror = (event) => event.preventDefault();
          const role = random.of(["client", "client", "sync-client", "sync-client", "flood"] as const);
          worker.postMessage({ role, ports: [port2], seed: random.next() } satisfies Job, [port2]);
          return worker;
        });
        for (const worker of workers) {
          await wait(random.oneIn(3) ? random.below(5) : 60 + random.below(100));
          notes.try("terminate", () => worker.terminate());
          // Requests of the owner while the client's thread ends somewhere in the middle.
          for (let i = 0; i < 5; i++) {
            notes.try("a request", () => known.region.map({ writable: i % 2 === 0 }));
            if (random.oneIn(2)) await wait(1);
          }
          notes.try("map", () => known.region.map({ writable: true }));
        }
      }
      // The regions of those that are gone are gone after a while, and with them their locks.
      for (const until = performance.now() + 5000; performance.now() < until;) {
        if (known.manager.regions().length === 1) break;
        await wait(20);
      }
      const left = known.manager.regions().map(({ name }) => name);
      notes.claim(left.length === 1, `clients that are gone have left the regions ${left}`);
      notes.try("lock", () => known.manager.memory.lock(MemoryRange.of(0, 0x1000), { write: true })[Symbol.dispose]());
      known.check(notes);
    }
    // A Worker's own file dies with its thread's last descriptor only if it could close it: those are the runtime's loss.
    const lost = (await leakedAtLast(before)).filter((left) => !/memfd:(sync )?client/.test(left));
    for (const left of lost) notes.broken(left);
  },
};

export default family;
