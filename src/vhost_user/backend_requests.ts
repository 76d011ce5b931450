/**
 * What becomes of the requests that a back end makes.
 *
 * @module
 */

import { BackendRequest, backendRequestName } from "./protocol.ts";
import { isRefusal, type ShmemWindows } from "./shmem.ts";
import type { Message } from "./message.ts";

/** What requests of a back end act on. */
export interface BackendRequestContext {
  /** Where it maps files. */
  readonly shmem: ShmemWindows;
  /** Whether it may map files at all (SHMEM). */
  readonly mayMap: boolean;
  /** Is told that the configuration space has changed. */
  readonly onConfigChange: (() => void) | undefined;
  /** Is told of a request that was not granted, and why. */
  readonly onRefusal: (request: string, error: unknown) => void;
}

/** Serves one request. @returns Whether it was granted. */
export function serveBackend(message: Message, context: BackendRequestContext): boolean {
  const { shmem, mayMap, onConfigChange, onRefusal } = context;
  const name = backendRequestName(message.request);
  try {
    switch (message.request) {
      case BackendRequest.CONFIG_CHANGE_MSG:
        onConfigChange?.();
        return true;
      case BackendRequest.SHMEM_MAP:
        if (mayMap) {
          shmem.map(message);
          return true;
        }
        break;
      case BackendRequest.SHMEM_UNMAP:
        if (mayMap) {
          shmem.unmap(message);
          return true;
        }
        break;
    }
  } catch (error) {
    if (!isRefusal(error)) reportError(error);
    onRefusal(name, error);
    return false;
  }
  onRefusal(name, new RangeError(`${name} is of a feature that was not agreed on`));
  return false;
}
