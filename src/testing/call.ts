import type { MemoryRange } from "../core/memory_range.ts";

/** The methods of the recording targets, by the names of the interfaces they implement. */
export type CallMethod =
  | "mapRange"
  | "unmapRange"
  | "prefetchRange"
  | "pinRange"
  | "unpinRange"
  | "setDirtyLog"
  | "takeDirty"
  | "mapDma"
  | "unmapDma"
  | "map"
  | "protect"
  | "remove"
  | "park"
  | "restore"
  | "discard";

/** One call a target received. */
export interface TargetCall {
  /** The name of the target. */
  readonly target: string;
  /** The method that was called. */
  readonly method: CallMethod;
  /** The addresses it was called for, in bytes; of `discard`, the offsets in the memory. */
  readonly range: MemoryRange;
  /** Whether it made the range writable; `undefined` where the method has no such argument. */
  readonly writable?: boolean;
}

/**
 * One call in the log of a recording target.
 *
 * Several targets may be given the same array to log to. The array then shows the order of the calls among them.
 */
export interface RecordedCall extends TargetCall {
  /** What the call threw; `undefined` when it succeeded. */
  readonly error?: unknown;
}
