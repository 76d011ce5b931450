/**
 * The system calls of an eventfd, for those that keep its descriptor.
 *
 * Why it is safe: every transfer is the eight bytes an eventfd has, to or from a buffer of eight.
 *
 * @module
 */

import { libc } from "./libc.ts";
import { O_CLOEXEC, O_NONBLOCK } from "./mman.ts";
import { Errno, OsError, unwrap } from "./os_error.ts";

const buffer = new BigUint64Array(1);

/**
 * A new eventfd with the count 0.
 *
 * @throws {OsError} If the process has too many open files.
 */
export function openEvent(): number {
  const { sys, errno } = libc();
  return unwrap(sys.eventfd(0, O_CLOEXEC | O_NONBLOCK), errno[0], "eventfd");
}

/** Adds 1 to the count. */
export function signalEvent(fd: number): void {
  const { sys, errno } = libc();
  buffer[0] = 1n;
  // SAFETY: the kernel reads the eight bytes of the buffer.
  unwrap(sys.write(fd, buffer, 8n), errno[0], "write", () => "eventfd");
}

/** Takes the count and sets it to 0. Never waits: 0 if nothing was added since. */
export function takeEvent(fd: number): number {
  const { sys, errno } = libc();
  // SAFETY: the kernel writes the eight bytes of the buffer.
  const failed = sys.read(fd, buffer, 8n) === -1 ? errno[0] ?? 0 : 0;
  if (failed === Errno.EAGAIN) return 0;
  if (failed !== 0) throw new OsError("read", failed, "eventfd");
  return Number(buffer[0]);
}
