/**
 * An eventfd: a counter in the kernel that one side adds to and the other side empties.
 *
 * Why it is safe: the descriptor is this object's own, and nobody watches it once it is closed.
 *
 * @module
 */

import { checkSignal, onAbort } from "../../src/core/abort.ts";
import { DisposedError } from "../../src/core/errors.ts";
import { openEvent, signalEvent, takeEvent } from "./event_counter.ts";
import { libc } from "./libc.ts";
import { type FdWatch, Poll, watchFd } from "./poll.ts";

/** Who waits for a count. */
interface Waiter {
  readonly resolve: (count: number) => void;
  readonly reject: (error: unknown) => void;
}

/**
 * An eventfd, for `KvmVm.ioeventfd` and `KvmVm.irqfd`, which keep descriptors of their own: it may be disposed before what
 * they return.
 *
 * @example Usage
 * ```ts
 * import { EventFd } from "membacking/kvm";
 *
 * using event = new EventFd();
 * const waiting = event.wait();
 * event.signal();
 * event.signal();
 * console.assert(await waiting >= 1);
 * ```
 */
export class EventFd implements Disposable {
  #fd: number;
  #disposed = false;
  #waiting: Waiter[] = [];
  #watch: FdWatch | undefined;

  /**
   * Makes one with the count 0.
   *
   * @throws {OsError} If the process has too many open files.
   */
  constructor() {
    this.#fd = openEvent();
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
    signalEvent(this.fd);
  }

  /** Takes the count and sets it to 0. Never waits: 0 if nothing was added since. */
  take(): number {
    return takeEvent(this.fd);
  }

  /**
   * Waits until the count is not 0, takes it and sets it to 0. Of several that wait, each gets a count of its own, in
   * order. The event loop goes on meanwhile, and is kept alive.
   *
   * @param options `signal` ends the wait: it rejects with the signal's reason.
   * @throws {DisposedError} If it is disposed, meanwhile too.
   * @throws {OsError} If the process has too many open files.
   */
  async wait(options: { signal?: AbortSignal } = {}): Promise<number> {
    const { signal } = options;
    const { fd } = this;
    checkSignal(signal);
    if (this.#waiting.length === 0) {
      const count = takeEvent(fd);
      if (count > 0) return count;
    }
    const { promise, resolve, reject } = Promise.withResolvers<number>();
    const waiter: Waiter = { resolve, reject };
    // At once: who has aborted gets no count any more.
    const leave = () => this.#waiting = this.#waiting.filter((other) => other !== waiter);
    using _abort = onAbort(signal, () => {
      leave();
      reject(signal?.reason);
    });
    this.#waiting.push(waiter);
    try {
      this.#watchOrNot();
      return await promise;
    } finally {
      leave();
      this.#watchOrNot();
    }
  }

  /** Closes it. Those who wait get a `DisposedError`. */
  [Symbol.dispose](): void {
    if (this.#disposed) return;
    this.#disposed = true;
    const waiting = this.#waiting;
    this.#waiting = [];
    this.#watchOrNot();
    libc().sys.close(this.#fd);
    for (const { reject } of waiting) reject(new DisposedError("EventFd"));
  }

  #watchOrNot(): void {
    if (this.#waiting.length === 0) {
      this.#watch?.[Symbol.dispose]();
      this.#watch = undefined;
    } else {
      this.#watch ??= watchFd(this.#fd, Poll.IN, () => this.#ready());
    }
  }

  #ready(): void {
    // Somebody else may have been faster and taken it.
    const count = this.#waiting.length > 0 ? takeEvent(this.#fd) : 0;
    if (count > 0) this.#waiting.shift()?.resolve(count);
    this.#watchOrNot();
  }
}
