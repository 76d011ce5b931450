/**
 * A vCPU in a Worker, for tests of `VcpuControl`.
 *
 * @module
 */

import type { KvmExit, KvmVcpu } from "membacking/kvm";
import { VcpuControl } from "membacking/kvm";

/** How often each kind of exit was seen. */
export type Exits = Partial<Record<KvmExit["kind"], number>>;

/** A vCPU that runs in a Worker until it is kicked. */
export class RunningVcpu {
  readonly control: VcpuControl;
  readonly worker: Worker;
  /** The words of the control. */
  readonly words: SharedArrayBuffer;
  /** The exits, once it has ended. */
  readonly ended: Promise<Exits>;
  /** Resolves once the runner is attached. */
  readonly running: Promise<void>;

  constructor(vcpu: KvmVcpu) {
    this.control = new VcpuControl(vcpu);
    this.worker = new Worker(new URL("./runner_worker.ts", import.meta.url), { type: "module" });
    const { promise: ended, resolve, reject } = Promise.withResolvers<Exits>();
    const { promise: running, resolve: isRunning } = Promise.withResolvers<void>();
    this.ended = ended;
    this.running = running;
    this.worker.onmessage = ({ data }) => {
      if (data.kind === "running") isRunning();
      if (data.kind === "ended") resolve(data.exits);
    };
    this.worker.onerror = (event) => {
      event.preventDefault();
      reject(new Error(event.message));
    };
    const shared = this.control.share();
    this.words = shared.words;
    this.worker.postMessage(shared);
  }

  /** Ends the run. */
  async stop(): Promise<Exits> {
    this.control.kick();
    const exits = await this.ended;
    this.worker.terminate();
    this.control[Symbol.dispose]();
    return exits;
  }
}

/** Waits until `condition` holds, or fails after some seconds. */
export async function until(condition: () => boolean, what: string): Promise<void> {
  const end = performance.now() + 10_000;
  while (!condition()) {
    if (performance.now() > end) throw new Error(`Waited too long until ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
}
