/**
 * An eventfd: a counter in the kernel that one side adds to and the other side empties.
 *
 * Why it is safe: the descriptor is this object's own, and every transfer is the eight bytes an eventfd has.
 *
 * @module
 */

import { DisposedError } from "../../src/core/errors.ts";
import { libc } from "./libc.ts";
import { O_CLOEXEC, O_NONBLOCK } from "./mman.ts";
import { Errno, OsError, unwrap } from "./os_error.ts";

/** An eventfd, for `KvmVm.ioeventfd` and `KvmVm.irqfd`. Neither call takes ownership: keep it as long as it is in use. */
export class EventFd implements Disposable {
  #fd: number;
  #disposed = false;
  #buffer: BigUint64Array<ArrayBuffer> = new BigUint64Array(1);

  /**
   * Makes one with the count 0.
   *
   * @throws {OsError} If the process has too many open files.
   */
  constructor() {
    const { sys, errno } = libc();
    this.#fd = unwrap(sys.eventfd(0, O_CLOEXEC | O_NONBLOCK), errno[0], "eventfd");
  }

  /**
   * The descriptor, which stays this object's to close.
   *
   * @throws {DisposedError} After dispose, as every other member does too.
   */
  get fd(): number {
    if (this.#disposed) throw new DisposedError("EventFd");
    return this.#fd;
  }

  /** Adds 1 to the count. */
  signal(): void {
    const { fd } = this;
    this.#buffer[0] = 1n;
    const { sys, errno } = libc();
    // SAFETY: the kernel reads the eight bytes of the buffer.
    unwrap(sys.write(fd, this.#buffer, 8n), errno[0], "write", () => "eventfd");
  }

  /** Takes the count and sets it to 0. Never waits: 0 if nothing was added since. */
  take(): number {
    const { fd } = this;
    const { sys, errno } = libc();
    // SAFETY: the kernel writes the eight bytes of the buffer.
    const failed = sys.read(fd, this.#buffer, 8n) === -1 ? errno[0] ?? 0 : 0;
    if (failed === Errno.EAGAIN) return 0;
    if (failed !== 0) throw new OsError("read", failed, "eventfd");
    return Number(this.#buffer[0]);
  }

  /** Closes it. */
  [Symbol.dispose](): void {
    if (this.#disposed) return;
    this.#disposed = true;
    libc().sys.close(this.#fd);
  }
}
