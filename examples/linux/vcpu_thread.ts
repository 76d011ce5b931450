/**
 * A vCPU's thread, as seen from the machine's.
 *
 * @module
 */

import { type KvmVcpu, VcpuControl } from "membacking/kvm";
import { SetupError } from "../pc/setup_error.ts";
import { type Access, Mailbox } from "./mailbox.ts";
import type { VcpuEnd, VcpuJob } from "./protocol.ts";

/** A Worker that runs a vCPU. */
export class VcpuThread implements Disposable {
  /** Kicks the vCPU out of the guest, and keeps it out while memory changes. */
  readonly control: VcpuControl;
  readonly #worker: Worker;
  readonly #mailbox = new Mailbox();
  #isOver = false;

  /** Starts the Worker; `run` lets the guest run. The vCPU stays the caller's. */
  constructor(vcpu: KvmVcpu) {
    this.control = new VcpuControl(vcpu);
    this.#worker = new Worker(new URL("./vcpu_worker.ts", import.meta.url), { type: "module" });
  }

  /** Runs the guest until the vCPU is kicked or cannot go on. `answer` answers for the devices, in this thread. */
  async run(answer: (access: Access) => void): Promise<VcpuEnd> {
    const { promise, resolve, reject } = Promise.withResolvers<VcpuEnd>();
    this.#worker.onmessage = ({ data }: MessageEvent<VcpuEnd>) => resolve(data);
    this.#worker.onerror = (event) => {
      event.preventDefault();
      reject(new SetupError(`The thread of a vCPU cannot start: ${event.message}`));
    };
    this.#worker.postMessage({ vcpu: this.control.share(), mailbox: this.#mailbox.buffer } satisfies VcpuJob);
    // What a device throws is the machine's failure: it ends the run, and nobody waits any more.
    this.#mailbox.serve(answer, () => this.#isOver).catch(reject);
    try {
      return await promise;
    } finally {
      this.#isOver = true;
      this.#mailbox.wake();
    }
  }

  /** Ends the Worker, wherever the guest is. */
  [Symbol.dispose](): void {
    this.#isOver = true;
    this.#mailbox.wake();
    this.#worker.terminate();
    this.control.kick(); // a thread that is inside the guest does not end by itself
    this.control[Symbol.dispose]();
  }
}
