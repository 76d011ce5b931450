/**
 * The signal that gets vCPUs out of the guest, with a handler that does nothing.
 *
 * A signal without a handler would end the process, and an ignored one interrupts nothing. A handler in JavaScript
 * would run on an event loop that has better things to do, and belongs to the program, not to a library. So a signal that
 * nobody uses gets `abs` of the C library as its handler: a function of one integer that touches no memory and calls
 * nothing, which is all a signal handler may do on whatever thread it finds itself.
 *
 * That is SIGSTKFLT, which no kernel and no program sends. Being one of the old signals it is not queued, so the limit on
 * queued signals (RLIMIT_SIGPENDING), which other processes of the user may have used up, does not stop it. Where a
 * program has a handler for it, a real-time signal does.
 *
 * Why it is safe: the struct is the C library's `struct sigaction` for x86-64, and only a signal whose disposition is
 * the default one is taken, so no handler of anybody else's is replaced.
 *
 * @module
 */

import { MembackingError } from "../../src/core/errors.ts";
import { libc } from "../os/libc.ts";
import { unwrap } from "../os/os_error.ts";

/** The C library's `struct sigaction`, as byte offsets. The mask and the restorer stay zero. */
export const SIGACTION = { size: 152, sa_handler: 0, sa_mask: 8, sa_flags: 136, sa_restorer: 144 } as const;

/** Restarts system calls that know how to; KVM_RUN does not. */
const SA_RESTART = 0x1000_0000;

const SIGSTKFLT = 16;
// Real-time signals. The C library keeps the first two (32 and 33) to itself; programs tend to count from the ends.
const REAL_TIME = { first: 44, last: 60 } as const;
const CANDIDATES: readonly number[] = [
  SIGSTKFLT,
  ...Array.from({ length: REAL_TIME.last - REAL_TIME.first + 1 }, (_, i) => REAL_TIME.first + i),
];

let chosen: number | undefined;

/**
 * A signal that may be sent to any thread of this process without harm. Chosen, and given its handler, at the first
 * call of this thread; other threads find and take the same one.
 *
 * @throws {MembackingError} If every candidate is in use.
 */
export function kickSignal(): number {
  return chosen ??= choose();
}

function choose(): number {
  const { sys, errno } = libc();
  const handler = BigInt(Deno.UnsafePointer.value(sys.abs));
  const act = new Uint8Array(SIGACTION.size);
  const old = new Uint8Array(SIGACTION.size);
  const oldHandler = new DataView(old.buffer);
  for (const signal of CANDIDATES) {
    // SAFETY: the kernel's answer is one struct sigaction, for which there is room.
    unwrap(sys.sigaction(signal, null, old), errno[0], "sigaction", () => `signal ${signal}`);
    const present = oldHandler.getBigUint64(SIGACTION.sa_handler, true);
    if (present === handler) return signal;
    if (present !== 0n) continue;
    const struct = new DataView(act.buffer);
    struct.setBigUint64(SIGACTION.sa_handler, handler, true);
    struct.setInt32(SIGACTION.sa_flags, SA_RESTART, true);
    // SAFETY: `abs` has the prototype of a handler, but for its result, which nobody looks at.
    unwrap(sys.sigaction(signal, act, old), errno[0], "sigaction", () => `signal ${signal}`);
    return signal;
  }
  throw new MembackingError(
    `Signals ${SIGSTKFLT} and ${REAL_TIME.first} to ${REAL_TIME.last} are all in use, and kicking a vCPU needs one`,
  );
}
