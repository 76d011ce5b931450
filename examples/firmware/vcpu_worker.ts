/**
 * The thread of the vCPU: runs the guest and answers for its devices. What the guest asks of its memory is done by the
 * thread that owns it.
 *
 * @module
 */

import { MemoryRange } from "membacking";
import { type KvmExit, KvmVcpu } from "membacking/kvm";
import { Board } from "./board.ts";
import type { BootEnd, VcpuJob, VcpuMessage } from "./protocol.ts";
import { RemoteMemory } from "./remote_memory.ts";

/** What SeaBIOS says when it has tried everything. */
const LAST_WORDS = "No bootable device.";

// What a Worker's global object has, and the types of a page do not know.
interface WorkerScope {
  onmessage: ((event: MessageEvent<VcpuJob>) => void) | null;
  postMessage(message: VcpuMessage): void;
  close(): void;
}
const scope = globalThis as unknown as WorkerScope;

scope.onmessage = ({ data: job }) => {
  try {
    using vcpu = KvmVcpu.attach(job.vcpu);
    scope.postMessage({ kind: "end", end: boot(vcpu, job) });
  } catch (error) {
    scope.postMessage({ kind: "failed", error });
  }
  scope.close();
};

function boot(vcpu: KvmVcpu, { mailbox, ram, bus: [start, end], files }: VcpuJob): BootEnd {
  let finished = false;
  const board = new Board({
    ram,
    bus: new MemoryRange(start, end),
    files,
    memory: new RemoteMemory(mailbox, (message) => scope.postMessage(message)),
    onLog(line) {
      scope.postMessage({ kind: "log", line });
      finished = line.startsWith(LAST_WORDS);
    },
    onFinding: (line) => scope.postMessage({ kind: "finding", line }),
    onRefused: (error) => scope.postMessage({ kind: "refused", why: String(error) }),
  });
  const exits: Record<string, number> = {};
  const started = performance.now();
  const ended = (exit: KvmExit | null): BootEnd => ({
    crash: exit && { exit: { ...exit }, regs: vcpu.getRegs(), sregs: vcpu.getSregs() },
    exits,
    millis: performance.now() - started,
  });
  while (!finished) {
    const exit = vcpu.run();
    exits[exit.kind] = (exits[exit.kind] ?? 0) + 1;
    switch (exit.kind) {
      case "io":
        board.io(exit);
        break;
      case "mmio":
        board.mmio(exit);
        break;
      case "interrupted":
        break;
      default:
        return ended(exit);
    }
  }
  return ended(null);
}
