/**
 * Signals to the calling thread, a thousand a second, as a profiler or a timer sends them.
 *
 * @module
 */

import { kickSignal } from "../../ffi/kvm/kick_signal.ts";
import { libc } from "../../ffi/os/libc.ts";
import { SYS_TGKILL } from "../../ffi/os/mman.ts";
import { currentThread } from "../../ffi/os/thread.ts";

/** What the Worker is told. */
export interface SignalJob {
  readonly tid: number;
  readonly signal: number;
  /** Word 0 counts the signals; word 1 is set to end it. */
  readonly words: Int32Array;
}

/** Sends the calling thread a signal about every millisecond, until disposed. `sent` counts them. */
export function underSignals(): { sent(): number } & AsyncDisposable {
  // It has a handler before this returns, which a listener of Deno's may not have: the first signal would end everything.
  const signal = kickSignal();
  const words = new Int32Array(new SharedArrayBuffer(8));
  const worker = new Worker(new URL("./signal_worker.ts", import.meta.url), { type: "module" });
  const ended = new Promise<void>((resolve) => worker.onmessage = () => resolve());
  worker.postMessage({ tid: currentThread().tid, signal, words } satisfies SignalJob);
  return {
    sent: () => Atomics.load(words, 0),
    async [Symbol.asyncDispose]() {
      Atomics.store(words, 1, 1);
      await ended;
      worker.terminate();
    },
  };
}

/** The Worker's part. */
export function sendSignals({ tid, signal, words }: SignalJob): void {
  const { sys } = libc();
  const pid = BigInt(sys.getpid());
  while (Atomics.wait(words, 1, 0, 1) === "timed-out") {
    sys.syscall3(SYS_TGKILL, pid, BigInt(tid), BigInt(signal));
    Atomics.add(words, 0, 1);
  }
}
