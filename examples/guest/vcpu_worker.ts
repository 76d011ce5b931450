/**
 * The Worker of a `VcpuThread`: runs one vCPU and keeps count of its exits.
 *
 * Reads from ports and from addresses without memory give all ones, as on a PC. A fault (memory missing behind a slot)
 * is tried again, since whoever changes the memory is about to put some there.
 *
 * @module
 */

import { currentThreadId, type KvmExit, KvmVcpu } from "membacking/kvm";
import {
  CONTROL,
  type MmioAccess,
  type PortWrite,
  RECORD_LIMIT,
  STATE,
  type VcpuJob,
  type VcpuMessage,
  type VcpuReport,
  WANT,
  wantOf,
} from "./vcpu_protocol.ts";

// What a Worker's global object has, and the types of a page do not know.
interface WorkerScope {
  onmessage: ((event: MessageEvent<VcpuJob>) => void) | null;
  postMessage(message: VcpuMessage): void;
  close(): void;
}
const scope = globalThis as unknown as WorkerScope;

/** Whether there is something to obey before the guest is entered. */
function wanted(control: Int32Array): boolean {
  return wantOf(Atomics.load(control, CONTROL.want)) !== WANT.run;
}

/** Waits outside the guest while a pause is wanted. Returns whether to go on. */
function obey(control: Int32Array, vcpu: KvmVcpu): boolean {
  while (wanted(control)) {
    const word = Atomics.load(control, CONTROL.want);
    if (wantOf(word) === WANT.stop) return false;
    if (wantOf(word) === WANT.pause) {
      Atomics.store(control, CONTROL.state, STATE.paused);
      Atomics.notify(control, CONTROL.state);
      Atomics.wait(control, CONTROL.want, word);
    }
    Atomics.store(control, CONTROL.state, STATE.running);
    // Cleared before the wish is looked at again: one made meanwhile is seen here, or it sets the flag once more.
    vcpu.immediateExit = false;
  }
  return true;
}

function run(vcpu: KvmVcpu, control: Int32Array, stopPort: number): VcpuReport {
  const exits: Partial<Record<KvmExit["kind"], number>> = {};
  const portWrites: PortWrite[] = [];
  const mmio: MmioAccess[] = [];
  const report = (end: VcpuReport["end"], detail = ""): VcpuReport => ({ end, detail, exits, portWrites, mmio });
  try {
    while (true) {
      if (wanted(control) && !obey(control, vcpu)) return report("asked");
      const exit = vcpu.run();
      exits[exit.kind] = (exits[exit.kind] ?? 0) + 1;
      switch (exit.kind) {
        case "io":
          if (exit.direction === "in") {
            exit.data.fill(0xff);
          } else {
            const [a = 0, b = 0, c = 0, d = 0] = exit.data;
            const value = (a | b << 8 | c << 16 | d << 24) >>> 0;
            if (exit.port === stopPort) return report("stop-port", String(value));
            if (portWrites.length < RECORD_LIMIT) portWrites.push({ port: exit.port, value });
          }
          break;
        case "mmio":
          if (!exit.isWrite) exit.data.fill(0xff);
          if (mmio.length < RECORD_LIMIT) mmio.push({ gpa: exit.gpa, isWrite: exit.isWrite });
          break;
        case "fault":
        case "interrupted":
          break;
        default: {
          const { rip } = vcpu.getRegs();
          return report(exit.kind, `at rip 0x${rip.toString(16)}${"suberror" in exit ? `, ${exit.suberror}` : ""}`);
        }
      }
    }
  } catch (error) {
    return report("error", String(error));
  }
}

scope.onmessage = ({ data: { vcpu: shared, control: buffer, stopPort } }) => {
  const control = new Int32Array(buffer);
  let report: VcpuReport;
  {
    using vcpu = KvmVcpu.attach(shared);
    scope.postMessage({ kind: "ready", threadId: currentThreadId() });
    report = run(vcpu, control, stopPort);
  }
  Atomics.store(control, CONTROL.state, STATE.ended);
  Atomics.notify(control, CONTROL.state);
  scope.postMessage({ kind: "ended", report });
  scope.close();
};
