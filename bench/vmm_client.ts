/**
 * The Worker of a `Vmm`: a client that has read guest memory once, so that it has to be kept up to date.
 *
 * @module
 */

import { RegionManagerClient } from "membacking";

const scope = globalThis as unknown as {
  onmessage: ((event: MessageEvent<MessagePort>) => void) | null;
  postMessage(message: string): void;
};

scope.onmessage = async ({ data: port }) => {
  const client = await RegionManagerClient.connect(port);
  client.memory.readUint32(0);
  scope.postMessage("ready");
};
