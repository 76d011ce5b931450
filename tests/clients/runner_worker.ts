/**
 * A Worker that runs a vCPU by a `VcpuRunner` until it is kicked, and reports the exits it has seen.
 *
 * @module
 */

import { type KvmExit, type SharedVcpuControl, VcpuRunner } from "membacking/kvm";

interface WorkerScope {
  onmessage: ((event: MessageEvent<SharedVcpuControl>) => void) | null;
  postMessage(message: unknown): void;
}
const scope = globalThis as unknown as WorkerScope;

/** A port at which the guest's writes are told at once; the others are counted only. */
const TOLD_PORT = 0x20;

scope.onmessage = ({ data }) => {
  using runner = VcpuRunner.attach(data);
  const exits: Partial<Record<KvmExit["kind"], number>> = {};
  scope.postMessage({ kind: "running" });
  while (true) {
    const exit = runner.run();
    exits[exit.kind] = (exits[exit.kind] ?? 0) + 1;
    if (exit.kind === "interrupted") break;
    if (exit.kind === "io" && exit.port === TOLD_PORT) scope.postMessage({ kind: "told" });
    if (exit.kind === "shutdown" || exit.kind === "internal-error") break;
  }
  scope.postMessage({ kind: "ended", exits });
};
