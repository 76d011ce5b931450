/// <reference lib="deno.worker" />
/**
 * The thread of the vCPU: tells the VMM's main thread what the guest writes to ports.
 *
 * @module
 */

import { VcpuRunner } from "membacking/kvm";

self.onmessage = ({ data }) => {
  using runner = VcpuRunner.attach(data);
  for (let exit = runner.run(); exit.kind !== "interrupted"; exit = runner.run()) {
    if (exit.kind !== "io" || exit.direction !== "out") throw new Error(`Unexpected exit: ${exit.kind}`);
    self.postMessage({ port: exit.port, value: exit.value });
  }
  self.postMessage("stopped");
  self.close();
};
