/**
 * A Worker that runs a vCPU until it is kicked.
 *
 * @module
 */

import { type SharedVcpuControl, VcpuRunner } from "membacking/kvm";

(globalThis as unknown as { onmessage: (event: MessageEvent<SharedVcpuControl>) => void }).onmessage = ({ data }) => {
  using runner = VcpuRunner.attach(data);
  while (runner.run().kind !== "interrupted");
};
