/**
 * A Worker that runs a vCPU, and at each write to a port changes the memory map before it goes on.
 *
 * @module
 */

import { MemoryRange, SyncRegionManagerClient } from "membacking";
import { type SharedVcpuControl, VcpuRunner } from "membacking/kvm";

/** The first message. */
export interface ExitJob {
  readonly vcpu: SharedVcpuControl;
  readonly port: MessagePort;
  /** Where its region is. */
  readonly at: number;
  /** How many exits to serve. */
  readonly exits: number;
}

interface WorkerScope {
  onmessage: ((event: MessageEvent<ExitJob>) => void) | null;
  postMessage(message: unknown): void;
}
const scope = globalThis as unknown as WorkerScope;

scope.onmessage = async ({ data: { vcpu, port, at, exits } }) => {
  const client = await SyncRegionManagerClient.connect(port, { timeout: 20_000 });
  using runner = VcpuRunner.attach(vcpu);
  const bar = client.newRegion({ name: `bar ${at}`, range: MemoryRange.of(at, 0x4000), priority: 1 });
  bar.addMapping({ rangeInRegion: new MemoryRange(0, 0x4000), mappable: client.memfd("bar", 0x4000) });
  bar.map();
  client.memory.writeUint32(at, 0x1234);
  const unexpected: string[] = [];
  for (let served = 0; served < exits;) {
    const exit = runner.run();
    if (exit.kind !== "io") {
      unexpected.push(exit.kind === "mmio" ? `mmio at 0x${exit.gpa.toString(16)}` : exit.kind);
      if (exit.kind !== "mmio") break;
      continue;
    }
    if (exit.data[0] !== 0x34) unexpected.push(`read ${exit.data[0]}`);
    // Takes the slot away and brings another back: not atomic to a guest, so all vCPUs have to be out of it.
    bar.map({ writable: served++ % 2 === 1 });
  }
  scope.postMessage(unexpected);
  client[Symbol.dispose]();
};
