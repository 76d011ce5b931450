/**
 * A vCPU that runs in a Worker, while this thread is free to change its memory.
 *
 * @module
 */

import { type KvmVcpu, VcpuControl } from "membacking/kvm";
import type { VcpuJob, VcpuMessage, VcpuReport } from "./vcpu_protocol.ts";

/** The port whose write ends a run, when nothing else is said. */
export const STOP_PORT = 0xf4;

/** A vCPU running in a Worker. */
export class VcpuThread implements AsyncDisposable {
  /** What happened, once the vCPU has come to its end. */
  readonly ended: Promise<VcpuReport>;
  readonly #control: VcpuControl;

  private constructor(control: VcpuControl, ended: Promise<VcpuReport>) {
    this.#control = control;
    this.ended = ended;
  }

  /** Starts running `vcpu`, which stays the caller's to dispose after `ended`. */
  static async start(vcpu: KvmVcpu, options: { stopPort?: number } = {}): Promise<VcpuThread> {
    const { stopPort = STOP_PORT } = options;
    const control = new VcpuControl(vcpu);
    const worker = new Worker(new URL("./vcpu_worker.ts", import.meta.url), { type: "module" });
    const { promise: ready, resolve: isReady, reject: isNotReady } = Promise.withResolvers<void>();
    const { promise: ended, resolve: hasEnded, reject: hasFailed } = Promise.withResolvers<VcpuReport>();
    ended.catch(() => {}); // whoever awaits it sees the failure
    worker.onmessage = ({ data }: MessageEvent<VcpuMessage>) => {
      if (data.kind === "ready") return isReady();
      control[Symbol.dispose]();
      hasEnded(data.report);
    };
    worker.onerror = (event) => {
      event.preventDefault();
      const error = new Error(`The vCPU's Worker failed: ${event.message}`);
      control[Symbol.dispose]();
      isNotReady(error);
      hasFailed(error);
    };
    worker.postMessage({ vcpu: control.share(), stopPort } satisfies VcpuJob);
    await ready;
    return new VcpuThread(control, ended);
  }

  /**
   * Gets the vCPU out of the guest and holds it there until the result is disposed. Blocks until it is out, which takes
   * some microseconds. Fit for a region manager's `quiesce`.
   */
  pause(): Disposable {
    if (this.#control.disposed) return { [Symbol.dispose]() {} }; // it has come to its end
    return this.#control.pause();
  }

  /** Ends the run, if it has not ended by itself. */
  stop(): Promise<VcpuReport> {
    if (!this.#control.disposed) this.#control.kick();
    return this.ended;
  }

  /** As `stop`. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }
}
