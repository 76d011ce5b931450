/**
 * Writing to memory of this process that may not be there.
 *
 * Why it is safe: the kernel does the copy, and reports what it cannot reach (EFAULT) where a store would end in a
 * signal: SIGBUS in a mapping whose file has become too short or has no huge page left.
 *
 * @module
 */

import { libc } from "./libc.ts";
import { Errno, OsError } from "./os_error.ts";
import { outcome, uninterrupted } from "./uninterrupted.ts";

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
  if (bytes.length === 0) return;
  // SAFETY: `bytes` is referenced below the call.
  const from = Number(Deno.UnsafePointer.value(Deno.UnsafePointer.of(bytes)));
  copyProcessMemory(address, from, bytes.length);
  keepAlive(bytes);
}

/**
 * Copies `length` bytes of this process from the host address `from` to `to`; `moved` is told of each part.
 *
 * @throws {OsError} EFAULT if a part of either is not there. What lies before it may have been copied.
 */
export function copyProcessMemory(to: number, from: number, length: number, moved?: (count: number) => void): void {
  const { sys, errno } = libc();
  const pid = sys.getpid();
  const local = new BigUint64Array(IOVEC_WORDS);
  const remote = new BigUint64Array(IOVEC_WORDS);
  for (let done = 0; done < length;) {
    local[0] = BigInt(from + done);
    remote[0] = BigInt(to + done);
    local[1] = remote[1] = BigInt(Math.min(length - done, CHUNK));
    const missing = () => "the memory behind the file is not there";
    const count = uninterrupted(
      "process_vm_writev",
      // SAFETY: the kernel checks both addresses; the caller may read the one and write the other.
      () => outcome(sys.process_vm_writev(pid, local, 1n, remote, 1n, 0n), errno[0]),
      missing,
    );
    if (count === 0) throw new OsError("process_vm_writev", Errno.EFAULT, missing());
    done += count;
    moved?.(count);
  }
}

/** Looks at an array after its address was used, so that it cannot have been collected before. */
function keepAlive(bytes: Uint8Array): void {
  if (bytes.length < 0) throw new RangeError("An array has a length");
}
