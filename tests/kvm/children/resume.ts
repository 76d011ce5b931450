/**
 * Goes on with a guest that another process has saved in a directory, and prints what it has counted.
 *
 * @module
 */

import { decodeState, type VcpuState, type VmState } from "membacking/kvm";
import { CountingMachine } from "../counting.ts";

const [directory = "."] = Deno.args;
const file = (name: string) => Deno.readFileSync(`${directory}/${name}`);
using machine = new CountingMachine(file("memory"));
machine.vcpu.restoreState(decodeState(file("vcpu")) as VcpuState);
machine.vm.restoreState(decodeState(file("vm")) as VmState);
const { rounds, total, sum } = machine.finish();
console.log(JSON.stringify([rounds, total, ...sum].map(String)));
