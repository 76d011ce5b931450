/**
 * The Worker of a `Remote`: evaluates what it is told to, with a client at hand.
 *
 * @module
 */

import * as membacking from "membacking";
import { currentThread } from "../../ffi/os/thread.ts";
import { describe, type RemoteJob, type RemoteReply, type RemoteStart } from "./remote.ts";

interface WorkerScope {
  onmessage: ((event: MessageEvent<RemoteStart | RemoteJob>) => void) | null;
  postMessage(message: RemoteReply, transfer?: Transferable[]): void;
  close(): void;
}
const scope = globalThis as unknown as WorkerScope;

/** What the jobs of one Worker keep from one to the next. */
const kept: Record<string, unknown> = {};
let client: membacking.RegionManagerClient | membacking.SyncRegionManagerClient | undefined;

async function run(message: RemoteStart | RemoteJob): Promise<RemoteReply> {
  try {
    if (message.kind === "start") {
      client = message.sync
        ? await membacking.SyncRegionManagerClient.connect(message.port, message.options)
        : await membacking.RegionManagerClient.connect(message.port);
      return { value: currentThread().tid };
    }
    const context = { ...membacking, client, kept, tid: currentThread().tid };
    const names = Object.keys(context);
    const body = `return (async (${message.names.join(", ")}) => {${message.code}})(...values);`;
    const act = new Function(...names, "values", body);
    return { value: await act(...Object.values(context), message.values) };
  } catch (error) {
    return { error: describe(error) };
  }
}

scope.onmessage = async ({ data }) => {
  const reply = await run(data);
  const transfer = "value" in reply && reply.value instanceof MessagePort ? [reply.value] : [];
  scope.postMessage(reply, transfer);
};
