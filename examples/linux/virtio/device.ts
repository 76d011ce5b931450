/**
 * What a virtio device is, whatever brings the driver to it.
 *
 * @module
 */

import type { GuestMemory } from "membacking";
import type { VirtQueue } from "./queue.ts";

/** What a device can do through its transport. */
export interface VirtioHost {
  /** Guest memory. */
  readonly memory: GuestMemory;
  /** A queue, `null` while the driver has not set it up. */
  queue(index: number): VirtQueue | null;
  /** Tells the driver that requests of a queue have come back, if it wants to know. */
  finished(queue: VirtQueue): void;
  /** Tells the driver that the configuration is another one. */
  configurationChanged(): void;
  /** Something went wrong that the driver is to blame for: it is asked to begin anew. */
  broken(error: unknown): void;
}

/** A device. */
export interface VirtioDevice {
  /** What kind it is, by the numbers of the specification. */
  readonly kind: number;
  /** How many queues it has. */
  readonly queues: number;
  /** What it can do: feature bits besides those of every device. */
  readonly features: bigint;
  /** Its configuration as it is now. */
  readonly configuration: Uint8Array;
  /** The driver has written to the configuration. */
  configure?(offset: number, data: Uint8Array): void;
  /** The driver is ready: from now on there are queues. `features` are those it has taken. */
  start(host: VirtioHost, features: bigint): void;
  /** The driver has put something into a queue. */
  notified(index: number): void;
  /** The driver begins anew. */
  reset(): void;
}
