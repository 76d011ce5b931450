/**
 * Lets Linux go on from a snapshot, and prints what a command in it prints: `resume.ts DIRECTORY COMMAND`.
 *
 * @module
 */

import { GuestMemoryManager, Snapshot } from "membacking";
import { decodeState, type VcpuState, type VmState } from "membacking/kvm";
import { Linux } from "../rig.ts";

const [directory = "", command = ""] = Deno.args;

using snapshot = await Snapshot.open(directory, { verify: true });

function part(name: string): Uint8Array {
  const bytes = snapshot.state.get(name);
  if (bytes === undefined) throw new Error(`The snapshot has no "${name}"`);
  return bytes;
}

function kvmState<K extends "vm" | "vcpu">(name: string, kind: K): Extract<VmState | VcpuState, { kind: K }> {
  const state = decodeState(part(name));
  if (state.kind !== kind) throw new Error(`"${name}" is the state of a ${state.kind}`);
  return state as Extract<VmState | VcpuState, { kind: K }>;
}

const uart = JSON.parse(new TextDecoder().decode(part("uart")));
await using linux = Linux.resume({
  ram: (quiesce) => GuestMemoryManager.restore(snapshot, { quiesce }),
  state: {
    vm: kvmState("vm", "vm"),
    vcpus: [kvmState("vcpu 0", "vcpu"), kvmState("vcpu 1", "vcpu")],
    uart: { ...uart, registers: new Uint8Array(uart.registers), input: new Uint8Array(uart.input) },
  },
});
console.log(await linux.shell.output(command));
const end = await linux.powerOff();
if (end.why !== "off") throw new Error(`Linux ended with ${end.why}`);
