import { assertRejects } from "@std/assert";
import { RemoteError, type RemoteErrorData } from "./remote.ts";

/** What was thrown in a Worker or a process, which has to be. */
export async function remoteError(promise: Promise<unknown>): Promise<RemoteErrorData> {
  return (await assertRejects(() => promise, RemoteError)).data;
}
