/**
 * Getting a vCPU out of the guest from another thread.
 *
 * Why it is safe: the system calls here take numbers only. A signal that the process has no handler for ends it, which
 * is why `kickThread` says what to install first.
 *
 * @module
 */

import { libc } from "../os/libc.ts";
import { SYS_GETTID, SYS_TGKILL } from "../os/mman.ts";
import { Errno, OsError } from "../os/os_error.ts";
import { unsigned } from "./numbers.ts";

/** SIGUSR1 of x86-64 Linux, for `kickThread`. */
export const SIGUSR1 = 10;
/** SIGUSR2 of x86-64 Linux, for `kickThread`. */
export const SIGUSR2 = 12;

/**
 * The kernel's number for the calling thread. A Worker that runs a vCPU reports it to whoever may want to kick it.
 */
export function currentThreadId(): number {
  // SAFETY: SYS_gettid takes no arguments and cannot fail.
  return libc().sys.syscall0(SYS_GETTID);
}

/**
 * Sends a signal to one thread of this process, so that its `KvmVcpu.run` returns `"interrupted"`.
 *
 * The whole recipe, no part of which works alone:
 *
 * 1. Once: `Deno.addSignalListener("SIGUSR2", () => {})`. Without a handler the signal ends the process, so leave it
 *    there: a kick may still be on its way when the vCPU has come out. It does not keep the process alive.
 * 2. Set `immediateExit` of the vCPU, so that a `run` about to begin does not enter the guest.
 * 3. `kickThread(tid)`, so that a `run` in progress comes out.
 * 4. When `run` has returned, clear `immediateExit`.
 *
 * @param tid What `currentThreadId` said in that thread.
 * @param signal SIGUSR2 when left out.
 * @throws {OsError} ESRCH if the thread is gone.
 */
export function kickThread(tid: number, signal: number = SIGUSR2): void {
  // The kernel takes both as 32 bits, and a number that is cut is another thread's.
  unsigned(tid, 31, "Thread id");
  unsigned(signal, 31, "Signal");
  const { sys, errno } = libc();
  const [pid, thread, number] = [sys.getpid(), tid, signal].map(BigInt) as [bigint, bigint, bigint];
  // SAFETY: numbers only; the caller has installed a handler.
  const failed = sys.syscall3(SYS_TGKILL, pid, thread, number) === -1 ? errno[0] ?? 0 : 0;
  if (failed === 0) return;
  const why = failed === Errno.EAGAIN ? ": the user's queue of signals is full, raise its limit (ulimit -i)" : "";
  throw new OsError("tgkill", failed, `thread ${tid}${why}`);
}
