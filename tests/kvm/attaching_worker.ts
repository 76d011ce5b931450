/**
 * A Worker that attaches to a vCPU, says so, and keeps it.
 *
 * @module
 */

import { type SharedVcpuControl, VcpuRunner } from "membacking/kvm";

const scope = globalThis as unknown as {
  onmessage: (event: MessageEvent<SharedVcpuControl>) => void;
  postMessage(message: unknown): void;
};
const kept: VcpuRunner[] = [];

scope.onmessage = ({ data }) => {
  kept.push(VcpuRunner.attach(data));
  scope.postMessage("attached");
};
