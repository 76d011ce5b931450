/**
 * A Worker that sends signals to another thread: one, a pause of a millisecond, the next.
 *
 * @module
 */

import { kickThread } from "membacking/kvm";

interface WorkerScope {
  onmessage: ((event: MessageEvent<{ thread: number; signal: number; count: Int32Array }>) => void) | null;
  close(): void;
}
const scope = globalThis as unknown as WorkerScope;

scope.onmessage = ({ data: { thread, signal, count } }) => {
  while (Atomics.wait(count, 1, 0, 1) === "timed-out") {
    kickThread(thread, signal);
    Atomics.add(count, 0, 1);
  }
  scope.close();
};
