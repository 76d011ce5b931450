/**
 * System calls that a signal may interrupt, repeated until none does: the one place for it.
 *
 * What goes through here: whatever opens, reads, writes, allocates or brings in pages. What does not need it: mmap,
 * mprotect, mremap and munmap, which only a fatal signal interrupts. What must not: `KVM_RUN`, where EINTR is the kick,
 * and `close`, after which the descriptor is gone whatever it returned.
 *
 * Why it is safe: a call that failed with EINTR has done nothing, or a part that doing it again does not harm: a part
 * of an allocation.
 *
 * @module
 */

import { Errno, OsError } from "./os_error.ts";

/**
 * What `uninterrupted` wants of a call: its result, or minus its errno. Takes `errno` as an argument so that it is read
 * right after the call: `outcome(sys.open(path, flags, 0), errno[0])`.
 */
export function outcome(result: number, errno: number | undefined): number {
  return result === -1 ? -(errno ?? 0) : result;
}

/**
 * Makes `call`, and again for as long as a signal interrupts it.
 *
 * @returns The result of the call.
 * @throws {OsError} If it fails with anything but EINTR.
 */
export function uninterrupted(syscall: string, call: () => number, detail?: (errno: number) => string): number {
  while (true) {
    const result = call();
    if (result >= 0) return result;
    if (result !== -Errno.EINTR) throw new OsError(syscall, -result, detail?.(-result));
  }
}
