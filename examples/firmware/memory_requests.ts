/**
 * What the devices of the machine ask of its memory.
 *
 * @module
 */

import type { PamChange } from "./pam.ts";

/** Memory changes, each all or nothing: one that throws has changed nothing. `cause` is for the log. */
export interface MemoryRequests {
  /** Switches RAM below 1 MiB. */
  setVisibility(changes: readonly PamChange[], cause: string): void;
  /** Puts a BAR of the card somewhere else, or nowhere. */
  placeBar(bar: number, gpa: number | null, cause: string): void;
}
