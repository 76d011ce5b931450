/**
 * Other processes, held on to by a descriptor (pidfd) that no other process of the same number can be mistaken for.
 *
 * Why it is safe: system calls that take numbers; the descriptor is this object's own.
 *
 * @module
 */

import { DisposedError } from "../../src/core/errors.ts";
import { libc } from "./libc.ts";
import { SYS_PIDFD_OPEN } from "./mman.ts";
import { unwrap } from "./os_error.ts";
import { Poll, pollOne } from "./poll.ts";

/** A process that may end at any time. */
export class ProcessHandle implements Disposable {
  /** The kernel's number for it. */
  readonly pid: number;
  readonly #fd: number;
  #disposed = false;

  /**
   * Holds on to the process that has the number now.
   *
   * @throws {OsError} ESRCH if there is none.
   */
  constructor(pid: number) {
    const { sys, errno } = libc();
    this.pid = pid;
    // SAFETY: takes two numbers and returns a descriptor, which is close-on-exec.
    this.#fd = unwrap(
      sys.syscall3(SYS_PIDFD_OPEN, BigInt(pid), 0n, 0n),
      errno[0],
      "pidfd_open",
      () => `process ${pid}`,
    );
  }

  /** The descriptor, which has something to read (`Poll.IN`) once the process has ended. */
  get fd(): number {
    if (this.#disposed) throw new DisposedError("ProcessHandle");
    return this.#fd;
  }

  /** Whether it has not ended yet; a zombie has. */
  get isAlive(): boolean {
    return pollOne(this.fd, Poll.IN, 0) === 0;
  }

  /** Lets go of it. */
  [Symbol.dispose](): void {
    if (this.#disposed) return;
    this.#disposed = true;
    libc().sys.close(this.#fd);
  }
}
