/**
 * Which thread this is, and whether another one still lives.
 *
 * A thread's number may be given to a new thread once it is gone, so a thread is known by its number and the moment it
 * was started.
 *
 * Why it is safe: it reads files of /proc, and makes system calls that take numbers and change nothing.
 *
 * @module
 */

import { libc } from "./libc.ts";
import { SYS_GETTID, SYS_TGKILL } from "./mman.ts";
import { readTextFile } from "./proc_file.ts";

/** One thread of this process. Plain data: another thread can be told. */
export interface ThreadIdentity {
  /** The kernel's number for it. */
  readonly tid: number;
  /** When it was started, in the kernel's ticks since boot; `null` where /proc does not say. */
  readonly started: string | null;
}

const ESRCH = 3;

// How many fields of /proc/PID/stat lie between the name, which ends with the last parenthesis, and the start time.
const START_TIME_AFTER_NAME = 20;

/** The thread this runs on. */
export function currentThread(): ThreadIdentity {
  // SAFETY: SYS_gettid takes no arguments and cannot fail.
  const tid = libc().sys.syscall0(SYS_GETTID);
  return { tid, started: startOf(tid) };
}

/** When a thread was started, as two 32-bit words, low half first: for those who note threads in shared memory. */
export function startWords({ started }: ThreadIdentity): [low: number, high: number] {
  const ticks = Number(started ?? 0);
  return [ticks | 0, Math.floor(ticks / 2 ** 32)];
}

/** The thread that was noted by its number and its `startWords`. */
export function notedThread(tid: number, low: number, high: number): ThreadIdentity {
  const ticks = (low >>> 0) + (high >>> 0) * 2 ** 32;
  return { tid: tid >>> 0, started: ticks === 0 ? null : String(ticks) };
}

/**
 * Whether the thread is still there. Where /proc cannot be read, any thread of that number counts. What is no number of a
 * thread, since another thread has written over it, is not there.
 */
export function isAlive({ tid, started }: ThreadIdentity): boolean {
  if (!Number.isInteger(tid) || tid <= 0 || tid >= 2 ** 31) return false;
  const { sys, errno } = libc();
  // SAFETY: signal 0 is none; the call only says whether there is such a thread.
  const gone = sys.syscall3(SYS_TGKILL, BigInt(sys.getpid()), BigInt(tid), 0n) === -1 ? errno[0] === ESRCH : false;
  if (gone || started === null) return !gone;
  const now = startOf(tid);
  return now === null || now === started;
}

function startOf(tid: number): string | null {
  const stat = readTextFile(`/proc/self/task/${tid}/stat`);
  if (stat === undefined) return null;
  return stat.slice(stat.lastIndexOf(")") + 1).split(" ")[START_TIME_AFTER_NAME] ?? null;
}
