/**
 * The vCPU's thread, as seen from the machine's.
 *
 * @module
 */

import { type KvmVcpu, VcpuControl } from "membacking/kvm";
import type { BootEnd, VcpuJob, VcpuMessage } from "./protocol.ts";
import { SetupError } from "../pc/setup_error.ts";

/** What happens before the end. */
export type VcpuEvent = Exclude<VcpuMessage, { kind: "end" | "failed" }>;

/** A Worker that runs a vCPU. */
export class VcpuThread implements Disposable {
  /** Kicks the vCPU out of the guest, and keeps it out while memory changes. */
  readonly control: VcpuControl;
  readonly #worker: Worker;

  /** Starts the Worker; `run` lets the guest run. The vCPU stays the caller's. */
  constructor(vcpu: KvmVcpu) {
    this.control = new VcpuControl(vcpu);
    this.#worker = new Worker(new URL("./vcpu_worker.ts", import.meta.url), { type: "module" });
  }

  /** Runs the guest to its end, which is that of the boot, or a kick. */
  run(job: Omit<VcpuJob, "vcpu">, onEvent: (event: VcpuEvent) => void): Promise<BootEnd> {
    const { promise, resolve, reject } = Promise.withResolvers<BootEnd>();
    const worker = this.#worker;
    worker.onmessage = ({ data }: MessageEvent<VcpuMessage>) => {
      if (data.kind === "end") resolve(data.end);
      else if (data.kind === "failed") reject(data.error);
      else onEvent(data);
    };
    worker.onerror = (event) => {
      event.preventDefault();
      // It has not even been loaded: what fails in it later comes as a message.
      reject(new SetupError(`The thread of the vCPU cannot start: ${event.message}`));
    };
    worker.postMessage({ ...job, vcpu: this.control.share() } satisfies VcpuJob, [job.regions]);
    return promise;
  }

  /** Ends the Worker, wherever the guest is, and with it all memory that it has asked for. */
  [Symbol.dispose](): void {
    this.#worker.terminate();
    this.control.kick(); // a thread that is inside the guest does not end by itself
    this.control[Symbol.dispose]();
  }
}
