/**
 * A Worker of the soak test.
 *
 * @module
 */

import { RegionManagerClient, SyncRegionManagerClient } from "membacking";
import type { SoakReport, SoakWorkerStart } from "./soak_layout.ts";
import { soak } from "./soaker.ts";

interface WorkerScope {
  onmessage: ((event: MessageEvent<SoakWorkerStart>) => void) | null;
  postMessage(message: SoakReport): void;
}
const scope = globalThis as unknown as WorkerScope;

scope.onmessage = async ({ data: start }) => {
  const { port, sync } = start;
  const client = sync
    ? await SyncRegionManagerClient.connect(port, { timeout: 60_000 })
    : await RegionManagerClient.connect(port);
  scope.postMessage(await soak(client, start));
};
