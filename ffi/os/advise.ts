/**
 * Advice to the kernel about host memory.
 *
 * Why it is safe: the advice used in this package brings pages in or says how large they may be. What would take
 * contents away (MADV_DONTNEED, MADV_REMOVE) is for callers who own the memory.
 *
 * @module
 */

import { hex } from "../../src/core/hex.ts";
import { libc } from "./libc.ts";
import { outcome, uninterrupted } from "./uninterrupted.ts";

/**
 * Calls madvise for a range of host memory.
 *
 * @throws {OsError} As madvise(2) does.
 */
export function adviseHost(address: number, length: number, advice: number): void {
  const { sys, errno } = libc();
  const at = BigInt(address);
  const size = BigInt(length);
  uninterrupted(
    "madvise",
    // SAFETY: what the caller advises is memory of a guest.
    () => outcome(sys.madvise(at, size, advice), errno[0]),
    () => `${hex(length)} bytes at ${hex(address)}`,
  );
}
