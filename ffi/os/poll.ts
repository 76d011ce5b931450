/**
 * Waiting for descriptors: here and now (`pollOne`), or on the event loop (`watchFd`).
 *
 * Why it is safe: each call gets a buffer of its own with the number of entries it has. The buffer of the wait that is
 * under way on a thread of the runtime is kept by this module until that wait is over.
 *
 * @module
 */

import { openEvent, signalEvent, takeEvent } from "./event_counter.ts";
import { libc } from "./libc.ts";
import { O_CLOEXEC } from "./mman.ts";
import { Errno, OsError, unwrap } from "./os_error.ts";

/** What can be waited for, and what is reported beside it. The bits of poll and epoll are the same. */
export const Poll = {
  /** There is something to read, or the other end is closed. */
  IN: 0x1,
  /** There is room to write. */
  OUT: 0x4,
  /** An error; reported always. */
  ERR: 0x8,
  /** The other end has hung up; reported always. */
  HUP: 0x10,
} as const;

const EPOLL_CTL_ADD = 1;
const EPOLL_CTL_DEL = 2;
const EPOLL_CTL_MOD = 3;
/** `struct epoll_event`, packed on x86-64: the events, and eight bytes of the caller's. */
const EPOLL_EVENT_SIZE = 12;
const EVENTS = 64;

/**
 * Waits for one descriptor.
 *
 * @param events Bits of `Poll`.
 * @param timeout In milliseconds; -1 for no end, 0 for not at all.
 * @returns Which of them there are; 0 where the time is over.
 */
export function pollOne(fd: number, events: number, timeout: number): number {
  const { sys, errno } = libc();
  const view = new DataView(new ArrayBuffer(8));
  const bytes = new Uint8Array(view.buffer);
  view.setInt32(0, fd, true);
  view.setInt16(4, events, true);
  const until = performance.now() + timeout;
  for (let left = timeout;;) {
    // SAFETY: one struct pollfd.
    const count = sys.poll(bytes, 1n, Math.ceil(left));
    const code = count === -1 ? errno[0] ?? 0 : 0;
    if (code === 0) return count === 0 ? 0 : view.getInt16(6, true);
    if (code !== Errno.EINTR) throw new OsError("poll", code);
    if (timeout >= 0) left = Math.max(0, until - performance.now());
  }
}

/** The structs of `pollAny`, which lets nothing else run while it waits. */
const several = new DataView(new ArrayBuffer(8 * 8));
const severalBytes = new Uint8Array(several.buffer);

/**
 * Waits until one of up to eight descriptors can be read, or is at its end.
 *
 * @param timeout In milliseconds; 0 for not at all.
 * @returns Which of them: bit 0 is the first. 0 where the time is over.
 */
export function pollAny(fds: readonly number[], timeout: number): number {
  const { sys, errno } = libc();
  fds.forEach((fd, i) => {
    several.setInt32(8 * i, fd, true);
    several.setInt32(8 * i + 4, Poll.IN, true);
  });
  const until = performance.now() + timeout;
  for (let left = timeout;;) {
    // SAFETY: as many structs pollfd as are named.
    const count = sys.poll(severalBytes, BigInt(fds.length), Math.ceil(left));
    const code = count === -1 ? errno[0] ?? 0 : 0;
    if (code === 0) {
      return fds.reduce((ready, _, i) => several.getInt16(8 * i + 6, true) === 0 ? ready : ready | 1 << i, 0);
    }
    if (code !== Errno.EINTR) throw new OsError("poll", code);
    left = Math.max(0, until - performance.now());
  }
}

/** A descriptor that is watched on the event loop. */
export interface FdWatch extends Disposable {
  /** What is waited for, from now on. */
  events: number;
}

/**
 * Calls `ready` on the event loop whenever `fd` has one of `events`, again and again for as long as it has, until the
 * result is disposed. `ready` must not throw. The descriptor stays open until then, and the event loop alive.
 *
 * All watches of a thread share one thread of the runtime, which waits for them.
 *
 * @throws {OsError} If the process has too many open files, or the descriptor is of a kind that cannot be watched.
 */
export function watchFd(fd: number, events: number, ready: (events: number) => void): FdWatch {
  return (watching ??= new Watcher()).watch(fd, events, ready);
}

// One per thread, for as long as it watches anything.
let watching: Watcher | undefined;

class Watcher {
  readonly #epoll: number;
  readonly #wake = openEvent();
  readonly #ready = new Map<number, (events: number) => void>();
  #next = 1;
  #running = false;

  constructor() {
    const { sys, errno } = libc();
    try {
      this.#epoll = unwrap(sys.epoll_create1(O_CLOEXEC), errno[0], "epoll_create1");
    } catch (error) {
      sys.close(this.#wake);
      throw error;
    }
    this.#control(EPOLL_CTL_ADD, this.#wake, Poll.IN, 0);
  }

  watch(fd: number, events: number, ready: (events: number) => void): FdWatch {
    const id = this.#next++;
    let wanted = events;
    this.#control(EPOLL_CTL_ADD, fd, events, id);
    this.#ready.set(id, ready);
    if (!this.#running) this.#run();
    const change = (now: number) => {
      if (now === wanted || !this.#ready.has(id)) return;
      wanted = now;
      this.#control(EPOLL_CTL_MOD, fd, now, id);
    };
    return {
      get events() {
        return wanted;
      },
      set events(now) {
        change(now);
      },
      [Symbol.dispose]: () => {
        if (!this.#ready.delete(id)) return;
        this.#control(EPOLL_CTL_DEL, fd, 0, 0);
        if (this.#ready.size === 0) signalEvent(this.#wake);
      },
    };
  }

  async #run(): Promise<void> {
    this.#running = true;
    const { sys } = libc();
    const buffer = new Uint8Array(EVENTS * EPOLL_EVENT_SIZE);
    const view = new DataView(buffer.buffer);
    while (this.#ready.size > 0) {
      // SAFETY: room for EVENTS events, and kept until the promise settles. A signal that interrupts it does no harm.
      const count = await sys.epollWaitAsync(this.#epoll, buffer, EVENTS, -1);
      takeEvent(this.#wake);
      for (let i = 0; i < count; i++) {
        // What was watched under this number when the kernel reported it may be gone by now.
        this.#ready.get(view.getUint32(i * EPOLL_EVENT_SIZE + 4, true))?.(view.getUint32(i * EPOLL_EVENT_SIZE, true));
      }
    }
    this.#running = false;
    if (watching === this) watching = undefined;
    sys.close(this.#wake);
    sys.close(this.#epoll);
  }

  #control(operation: number, fd: number, events: number, id: number): void {
    const { sys, errno } = libc();
    const view = new DataView(new ArrayBuffer(EPOLL_EVENT_SIZE));
    view.setUint32(0, events, true);
    view.setUint32(4, id, true);
    // SAFETY: one struct epoll_event, which the kernel copies.
    unwrap(sys.epoll_ctl(this.#epoll, operation, fd, new Uint8Array(view.buffer)), errno[0], "epoll_ctl");
  }
}
