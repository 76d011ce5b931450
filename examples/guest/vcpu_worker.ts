/**
 * The Worker of a `VcpuThread`: runs one vCPU and keeps count of its exits.
 *
 * Reads from ports and from addresses without memory give all ones, as on a PC. A fault (memory missing behind a slot)
 * is tried again, since whoever changes the memory is about to put some there.
 *
 * @module
 */

import { type KvmExit, VcpuRunner } from "membacking/kvm";
import {
  type MmioAccess,
  type PortWrite,
  RECORD_LIMIT,
  type VcpuJob,
  type VcpuMessage,
  type VcpuReport,
} from "./vcpu_protocol.ts";

// What a Worker's global object has, and the types of a page do not know.
interface WorkerScope {
  onmessage: ((event: MessageEvent<VcpuJob>) => void) | null;
  postMessage(message: VcpuMessage): void;
  close(): void;
}
const scope = globalThis as unknown as WorkerScope;

function run(runner: VcpuRunner, stopPort: number): VcpuReport {
  const exits: Partial<Record<KvmExit["kind"], number>> = {};
  const portWrites: PortWrite[] = [];
  const mmio: MmioAccess[] = [];
  const report = (end: VcpuReport["end"], detail = ""): VcpuReport => ({ end, detail, exits, portWrites, mmio });
  try {
    while (true) {
      const exit = runner.run();
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
          break;
        case "interrupted":
          return report("asked");
        default: {
          const { rip } = runner.vcpu.getRegs();
          return report(exit.kind, `at rip 0x${rip.toString(16)}${"suberror" in exit ? `, ${exit.suberror}` : ""}`);
        }
      }
    }
  } catch (error) {
    return report("error", String(error));
  }
}

scope.onmessage = ({ data: { vcpu, stopPort } }) => {
  let report: VcpuReport;
  {
    using runner = VcpuRunner.attach(vcpu);
    scope.postMessage({ kind: "ready" });
    report = run(runner, stopPort);
  }
  scope.postMessage({ kind: "ended", report });
  scope.close();
};
