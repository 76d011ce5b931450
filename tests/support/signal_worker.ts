import { sendSignals, type SignalJob } from "./signals.ts";

interface WorkerScope {
  onmessage: ((event: MessageEvent<SignalJob>) => void) | null;
  postMessage(message: unknown): void;
}
const scope = globalThis as unknown as WorkerScope;

scope.onmessage = ({ data }) => {
  sendSignals(data);
  scope.postMessage("ended");
};
