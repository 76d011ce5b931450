/**
 * The words that a `VcpuControl` and its `VcpuRunner` share.
 *
 * Why it is safe: constants, and a look at an array of the caller's.
 *
 * @module
 */

import { notedThread, type ThreadIdentity } from "../os/thread.ts";

/** Their places in an `Int32Array`; those written by different threads lie in different cache lines. */
export const WORD = {
  /** Where the runner is: a `VCPU_STATE`. Written by the runner. */
  state: 0,
  /** The runner's thread. Written by the runner. */
  thread: 1,
  /** When that was started, in ticks; 0 if it is not known. Written by the runner. */
  startedLow: 2,
  startedHigh: 3,
  /** 1 while a runner is attached. Written by runners. */
  attached: 4,
  /** How many hold the vCPU out of the guest. Written by controls. */
  pauses: 16,
  /** 1 if the next or the present run shall be interrupted. Set by controls, reset by the runner. */
  kicked: 17,
  /** How many words there are. */
  count: 32,
} as const;

/** Where a runner is. */
export const VCPU_STATE = {
  /** Not in the guest; it looks at `pauses` before it enters. */
  outside: 0,
  /** In the guest, or about to enter it. */
  inside: 1,
} as const;

/** The thread of the runner, as it has noted itself. */
export function runnerThread(words: Int32Array): ThreadIdentity {
  const word = (at: number) => words[at] ?? 0;
  return notedThread(word(WORD.thread), word(WORD.startedLow), word(WORD.startedHigh));
}
