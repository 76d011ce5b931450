/**
 * The thread of one vCPU: runs the guest, and asks the thread of the devices about every access to them.
 *
 * @module
 */

import { VcpuRunner } from "membacking/kvm";
import { crashOf } from "../pc/crash.ts";
import { Mailbox } from "./mailbox.ts";
import type { VcpuEnd, VcpuJob } from "./protocol.ts";

// What a Worker's global object has, and the types of a page do not know.
interface WorkerScope {
  onmessage: ((event: MessageEvent<VcpuJob>) => void) | null;
  postMessage(message: VcpuEnd): void;
}
const scope = globalThis as unknown as WorkerScope;

scope.onmessage = ({ data }) => {
  const exits: Record<string, number> = {};
  try {
    using runner = VcpuRunner.attach(data.vcpu);
    scope.postMessage(run(runner, new Mailbox(data.mailbox), exits));
  } catch (error) {
    scope.postMessage({ why: "failed", exits, error });
  }
};

function run(runner: VcpuRunner, mailbox: Mailbox, exits: Record<string, number>): VcpuEnd {
  while (true) {
    const exit = runner.run();
    exits[exit.kind] = (exits[exit.kind] ?? 0) + 1;
    switch (exit.kind) {
      case "io":
      case "mmio":
        mailbox.ask(exit);
        break;
      case "interrupted":
        // Here, where it is known what there was to answer.
        return { why: "kicked", exits, state: runner.vcpu.saveState() };
      default:
        return { why: "crashed", exits, crash: crashOf(runner.vcpu, exit) };
    }
  }
}
