/**
 * A program with a handler for SIGSTKFLT, so that vCPUs are kicked by a queued signal, and no room in the queue.
 *
 * @module
 */

import { TestMachine, touchForever } from "../support/guest.ts";
import { noQueuedSignals } from "../vm/children/limits.ts";
import { RunningVcpu, until } from "./runner.ts";

Deno.addSignalListener("SIGSTKFLT", () => {});
using machine = new TestMachine();
machine.longMode(touchForever(0x20_0000, 0x20_0008, 8));
const vcpu = new RunningVcpu(machine.vcpu);
const count = () => {
  const bytes = new Uint8Array(8);
  machine.ram.read(0x20_0000, bytes);
  return new DataView(bytes.buffer).getBigUint64(0, true);
};
await until(() => count() > 0n, "the guest runs");
try {
  using _full = noQueuedSignals();
  vcpu.control.pause();
} catch (error) {
  console.log(String((error as Error).message).replace(/thread \d+/, "thread N"));
}
const before = count();
await until(() => count() > before, "the guest goes on");
const pauses = vcpu.control.pauses;
const exits = await vcpu.stop();
console.log(`${pauses} pauses, still running, then ${Object.keys(exits)}`);
Deno.exit(0);
