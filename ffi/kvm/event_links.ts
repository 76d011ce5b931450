/**
 * Event descriptors that a VM is bound to: guest writes that signal them, and interrupts that they raise.
 *
 * The kernel finds a binding by its eventfd, so taking it back needs a descriptor of that eventfd. Each binding keeps one
 * of its own: whoever made the eventfd may close it at any time.
 *
 * Why it is safe: a descriptor here is a duplicate that nobody else knows, and is closed once.
 *
 * @module
 */

import { libc } from "../os/libc.ts";
import { F_DUPFD_CLOEXEC } from "../os/mman.ts";
import { unwrap } from "../os/os_error.ts";
import { unsigned } from "./numbers.ts";

/** Makes a binding of `eventFd`, or with `remove` takes it back. */
type Bind = (eventFd: number, remove: boolean) => void;

/** All bindings of one VM. */
export class EventLinks {
  readonly #links = new Set<{ readonly fd: number; readonly bind: Bind }>();

  /**
   * Binds an eventfd. Disposing the result takes the binding back; if that fails, it may be tried again.
   *
   * @throws {OsError} If the kernel refuses, or the process has too many open files.
   */
  add(eventFd: number, bind: Bind): Disposable {
    const { sys, errno } = libc();
    const original = unsigned(eventFd, 31, "File descriptor");
    const fd = unwrap(sys.fcntl(original, F_DUPFD_CLOEXEC, 0), errno[0], "fcntl", () => `eventfd ${original}`);
    try {
      bind(fd, false);
    } catch (error) {
      sys.close(fd);
      throw error;
    }
    const link = { fd, bind };
    this.#links.add(link);
    return {
      [Symbol.dispose]: () => {
        if (!this.#links.has(link)) return;
        bind(fd, true);
        this.#links.delete(link);
        sys.close(fd);
      },
    };
  }

  /** Lets go of all. `takeBack` where the kernel's VM may go on without this object. */
  clear(takeBack: boolean): void {
    for (const { fd, bind } of this.#links) {
      if (takeBack) {
        try {
          bind(fd, true);
        } catch {
          // The eventfd then stays in the kernel for as long as its VM does.
        }
      }
      libc().sys.close(fd);
    }
    this.#links.clear();
  }
}
