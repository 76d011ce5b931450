/**
 * Advice to the kernel about host memory.
 *
 * Why it is safe: the advice used in this package brings pages in or says how large they may be. What would take
 * contents away (MADV_DONTNEED, MADV_REMOVE) is for callers who own the memory.
 *
 * @module
 */

import { hex } from "../../src/core/hex.ts";
import { libc } from "../os/libc.ts";
import { Errno, OsError } from "../os/os_error.ts";

/**
 * Calls madvise for a range of host memory, and again where a signal interrupted it.
 *
 * @throws {OsError} As madvise(2) does.
 */
export function adviseHost(address: number, length: number, advice: number): void {
  const { sys, errno } = libc();
  while (true) {
    // SAFETY: what the caller advises is memory of a guest.
    const failed = sys.madvise(BigInt(address), BigInt(length), advice) === -1 ? errno[0] ?? 0 : 0;
    if (failed === 0) return;
    if (failed !== Errno.EINTR && failed !== Errno.EAGAIN) {
      throw new OsError("madvise", failed, `${hex(length)} bytes at ${hex(address)}`);
    }
  }
}
