import type { VhostUserError } from "./errors.ts";

/** How a front end connects, and what it tells its owner. */
export interface VhostUserOptions {
  /** How long the back end may take for one answer, in milliseconds; 1000 when left out. */
  readonly deadline?: number;
  /** How long to go on trying while nobody listens at the socket yet, in milliseconds; 0 when left out. */
  readonly patience?: number;
  /** The protocol features that may be used (bits of `ProtocolFeature`); all this package knows when left out. */
  readonly protocolFeatures?: bigint;
  /** Is called when the device's configuration space has changed. */
  readonly onConfigChange?: () => void;
  /** Is called when the back end is gone or was cut off, on a turn of the event loop of its own. */
  readonly onDisconnect?: (error: VhostUserError) => void;
  /** Is called when a request of the back end was not granted, with the specification's name of it and the reason. */
  readonly onRefusal?: (request: string, error: unknown) => void;
}

/**
 * How the back end of a front end is: `"connected"`; `"cut off"`, because it broke the protocol or missed a deadline,
 * though it is still there; or `"disconnected"`.
 */
export type VhostUserState = "connected" | "cut off" | "disconnected";
