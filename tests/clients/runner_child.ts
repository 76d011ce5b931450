/**
 * A program that pauses and kicks a vCPU, to be run with few permissions.
 *
 * @module
 */

import { TestMachine, touchForever } from "../support/guest.ts";
import { RunningVcpu, until } from "./runner.ts";

using machine = new TestMachine();
machine.longMode(touchForever(0x20_0000, 0x20_0008, 8));
const vcpu = new RunningVcpu(machine.vcpu);
await vcpu.running;
await until(() => vcpu.control.isInside, "the guest runs");
vcpu.control.pause()[Symbol.dispose]();
const exits = await vcpu.stop();
console.log(`paused, ${exits.interrupted === 1 ? "kicked" : "not kicked"}`);
