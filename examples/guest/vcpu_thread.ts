/**
 * A vCPU that runs in a Worker, while this thread is free to change its memory.
 *
 * @module
 */

import { kickThread, type KvmVcpu } from "membacking/kvm";
import { CONTROL, STATE, type VcpuJob, type VcpuMessage, type VcpuReport, WANT, wantOf } from "./vcpu_protocol.ts";

/** The port whose write ends a run, when nothing else is said. */
export const STOP_PORT = 0xf4;

/** How long to wait for the Worker before it is kicked once more, in milliseconds. */
const PATIENCE = 20;

let handled = false;

/**
 * Sees to it that a kick, which is a signal, does not end the process. Once and for good: a signal that is still on its
 * way to a thread when its handler is taken away would do just that. A handler keeps no process alive.
 */
function handleKicks(): void {
  if (!handled) Deno.addSignalListener("SIGUSR2", () => {});
  handled = true;
}

/** A vCPU running in a Worker. */
export class VcpuThread implements AsyncDisposable {
  /** What happened, once the vCPU has come to its end. */
  readonly ended: Promise<VcpuReport>;
  #vcpu: KvmVcpu;
  #control: Int32Array;
  #threadId: number;
  #pauses = 0;
  #wishes = 0;

  private constructor(vcpu: KvmVcpu, control: Int32Array, threadId: number, ended: Promise<VcpuReport>) {
    this.#vcpu = vcpu;
    this.#control = control;
    this.#threadId = threadId;
    this.ended = ended;
  }

  /** Starts running `vcpu`, which stays the caller's to dispose after `ended`. */
  static async start(vcpu: KvmVcpu, options: { stopPort?: number } = {}): Promise<VcpuThread> {
    const { stopPort = STOP_PORT } = options;
    const words = new SharedArrayBuffer(4 * CONTROL.words);
    handleKicks();
    const worker = new Worker(new URL("./vcpu_worker.ts", import.meta.url), { type: "module" });
    const { promise: ready, resolve: isReady, reject: isNotReady } = Promise.withResolvers<number>();
    const { promise: ended, resolve: hasEnded, reject: hasFailed } = Promise.withResolvers<VcpuReport>();
    ended.catch(() => {}); // whoever awaits it sees the failure
    worker.onmessage = ({ data }: MessageEvent<VcpuMessage>) => {
      if (data.kind === "ready") isReady(data.threadId);
      else hasEnded(data.report);
    };
    worker.onerror = (event) => {
      event.preventDefault();
      const error = new Error(`The vCPU's Worker failed: ${event.message}`);
      isNotReady(error);
      hasFailed(error);
    };
    const job: VcpuJob = { vcpu: vcpu.share(), control: words, stopPort };
    worker.postMessage(job);
    return new VcpuThread(vcpu, new Int32Array(words), await ready, ended);
  }

  /**
   * Gets the vCPU out of the guest and holds it there until the result is disposed. Blocks until it is out, which takes
   * some microseconds. Fit for a region manager's `quiesce`.
   */
  pause(): Disposable {
    if (this.#pauses++ === 0) {
      this.#want(WANT.pause);
      while (Atomics.load(this.#control, CONTROL.state) === STATE.running) {
        this.#kick();
        Atomics.wait(this.#control, CONTROL.state, STATE.running, PATIENCE);
      }
    }
    let over = false;
    return {
      [Symbol.dispose]: () => {
        if (over) return;
        over = true;
        if (--this.#pauses === 0 && wantOf(Atomics.load(this.#control, CONTROL.want)) === WANT.pause) {
          // Set back here, so that a pause that follows at once waits for the Worker's answer.
          Atomics.compareExchange(this.#control, CONTROL.state, STATE.paused, STATE.running);
          this.#want(WANT.run);
        }
      },
    };
  }

  /** Ends the run, if it has not ended by itself. */
  async stop(): Promise<VcpuReport> {
    this.#want(WANT.stop);
    if (Atomics.load(this.#control, CONTROL.state) === STATE.running) this.#kick();
    const again = setInterval(() => this.#kick(), PATIENCE);
    try {
      return await this.ended;
    } finally {
      clearInterval(again);
    }
  }

  /** As `stop`. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }

  #want(want: number): void {
    // 29 bits of number, which may wrap: what counts is that it differs from the one before.
    this.#wishes = (this.#wishes + 1) & 0x1fff_ffff;
    Atomics.store(this.#control, CONTROL.want, this.#wishes << 2 | want);
    Atomics.notify(this.#control, CONTROL.want);
  }

  #kick(): void {
    if (Atomics.load(this.#control, CONTROL.state) === STATE.ended) return;
    this.#vcpu.immediateExit = true;
    try {
      kickThread(this.#threadId);
    } catch {
      // The thread has just ended.
    }
  }
}
