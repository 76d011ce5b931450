/**
 * Owners in Workers that are ended: their clients get an error, and never wait for good.
 *
 * @module
 */

import { MemoryRange, RegionManagerClient } from "membacking";
import type { Job } from "../attacker_worker.ts";
import type { Family } from "../family.ts";

const wait = (milliseconds: number) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const PAGE = 0x1000;
/** How long a client may be without an answer before that counts as waiting for good, in milliseconds. */
const PATIENCE = 8000;

const family: Family = {
  name: "owners",
  timeout: 60_000,
  async attack(random, notes) {
    for (let round = 0; round < 3; round++) {
      const owner = new Worker(new URL("../attacker_worker.ts", import.meta.url), { type: "module" });
      owner.onerror = (event) => event.preventDefault();
      const serving = new Promise((resolve) => owner.onmessage = resolve);
      const channels = Array.from({ length: 2 }, () => new MessageChannel());
      const ports = channels.map(({ port1 }) => port1);
      owner.postMessage({ role: "owner", ports, seed: random.next() } satisfies Job, ports);
      await serving;
      const clients = await Promise.all(
        channels.map(({ port2 }) =>
          notes.tryLater("connect", () => RegionManagerClient.connect(port2, { signal: AbortSignal.timeout(PATIENCE) }))
        ),
      );
      let isOver = false;
      const uses = clients.map(async (client, i) => {
        if (client === undefined) return;
        const request = async () => {
          while (!isOver) {
            const range = MemoryRange.of((i * 8 + random.below(4)) * PAGE, PAGE);
            const region = await client.newRegion({ name: `client ${i}`, range, priority: 5 });
            await region.remove();
            client.memory.isMapped(0, PAGE);
          }
        };
        await notes.tryLater("a request of a client", () =>
          Promise.race([
            request(),
            wait(PATIENCE + 500).then(() => notes.broken("a client has waited for an owner that is gone")),
          ]));
      });
      await wait(20 + random.below(200));
      owner.terminate();
      await Promise.race([Promise.all(uses), wait(PATIENCE + 1000)]);
      isOver = true;
      for (const client of clients) {
        for (const use of [() => client?.memory.read(0, PAGE), () => client?.memory.writeUint32(0, 1)]) {
          notes.try<unknown>("memory of an owner that is gone", use);
        }
        notes.try("dispose", () => client?.[Symbol.dispose]());
      }
    }
  },
};

export default family;
