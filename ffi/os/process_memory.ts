/**
 * Writing to memory of this process that may not be there.
 *
 * Why it is safe: the kernel does the copy, and reports what it cannot reach (EFAULT) where a store would end in a
 * signal: SIGBUS in a mapping whose file has become too short or has no huge page left.
 *
 * @module
 */

import { libc } from "./libc.ts";
import { OsError } from "./os_error.ts";

// struct iovec: void *iov_base at 0, size_t iov_len at 8.
const IOVEC_WORDS = 2;
/** The most that is copied by one call, so that its result fits 32 bits. */
const CHUNK = 2 ** 30;

/**
 * Copies all of `bytes` to the host address `address`.
 *
 * @throws {OsError} EFAULT if a part of the target is not there. What lies before it may have been written.
 */
export function writeProcessMemory(address: number, bytes: Uint8Array<ArrayBuffer>): void {
  const { sys, errno } = libc();
  const pid = sys.getpid();
  const local = new BigUint64Array(IOVEC_WORDS);
  const remote = new BigUint64Array(IOVEC_WORDS);
  for (let done = 0; done < bytes.length;) {
    const part = bytes.subarray(done, done + CHUNK);
    // SAFETY: an address within `part`, which is referenced below the call.
    local[0] = Deno.UnsafePointer.value(Deno.UnsafePointer.of(part));
    local[1] = remote[1] = BigInt(part.length);
    remote[0] = BigInt(address + done);
    // SAFETY: reads at most `part`; the target is checked by the kernel.
    const count = sys.process_vm_writev(pid, local, 1n, remote, 1n, 0n);
    const code = count === -1 ? errno[0] ?? 0 : 0;
    if (count <= 0) throw new OsError("process_vm_writev", code, "the memory behind the file is not there");
    done += Math.min(count, part.length);
  }
}
