/**
 * Transfers that the kernel may do in parts, such as pread and pwrite, repeated until all of it has moved: the one loop
 * for it.
 *
 * @module
 */

import { Errno, OsError } from "./os_error.ts";
import { uninterrupted } from "./uninterrupted.ts";

/** The most that is asked of one call, in bytes, so that its result fits 32 bits. */
const MOST = 2 ** 30;

/** What is said of a transfer. `done` is how many bytes have moved before. */
export interface TransferNotes {
  /** Says in an error where it failed. */
  detail?(done: number): string;
  /** The error where nothing moves any more; EIO where it is left out. */
  ended?(done: number): Error;
  /** Is told how many bytes each call has moved. */
  moved?(count: number): void;
}

/**
 * Moves `length` bytes. `call` moves at most `size` of them behind the first `done`, and returns what `outcome` says.
 *
 * @throws {OsError} As the call does, or EIO if it ends before.
 */
export function transferWhole(
  syscall: string,
  length: number,
  call: (done: number, size: number) => number,
  { detail, ended, moved }: TransferNotes = {},
): void {
  for (let done = 0; done < length;) {
    const size = Math.min(length - done, MOST);
    const count = uninterrupted(syscall, () => call(done, size), detail && (() => detail(done)));
    if (count === 0) throw ended?.(done) ?? new OsError(syscall, Errno.EIO, detail?.(done));
    done += count;
    moved?.(count);
  }
}
