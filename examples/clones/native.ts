/**
 * A guest of our own that runs natively: warm once its table is filled.
 *
 * @module
 */

import { GuestMemoryManager, MemoryRange } from "membacking";
import type { Kvm, KvmVcpu, VcpuState } from "membacking/kvm";
import { startLongMode, STOP_PORT } from "../guest/mod.ts";
import type { Machine, Subject } from "./subject.ts";
import { answer, AT, READY_PORT, warmGuest, type WarmGuestSize } from "./warm_guest.ts";

const MIB = 2 ** 20;
const SIZE: WarmGuestSize = { ram: 64 * MIB, pages: 2048, rounds: 1024, written: 4 };

/** Starts it, lets it get warm, and freezes it. */
export function nativeSubject(kvm: Kvm, size: WarmGuestSize = SIZE): Subject {
  const began = performance.now();
  using undo = new DisposableStack();
  const guest = undo.use(GuestMemoryManager.create({
    maxAddress: size.ram,
    ram: [{ ranges: [new MemoryRange(0, size.ram)], transparentHugepages: false }],
  }));
  using vm = kvm.createVm();
  using _attached = guest.attachPartition(vm);
  using vcpu = vm.createVcpu(0);
  vcpu.setCpuid2(kvm.getSupportedCpuid());
  startLongMode(vcpu, { write: (gpa, bytes) => guest.memory.write(gpa, bytes), ...warmGuest(size) });
  runTo(vcpu, READY_PORT);
  const warmUp = performance.now() - began;
  const state = vcpu.saveState();
  const template = undo.use(guest.freeze());
  const stack = undo.move();
  return {
    title: "a native guest with a warm table",
    warmUp,
    ram: size.ram,
    template,
    machine: (kvm, clone) => machine(kvm, clone, state),
    answer: (question) => Number(answer(size, question)),
    [Symbol.dispose]: () => stack.dispose(),
  };
}

function machine(kvm: Kvm, guest: GuestMemoryManager, state: VcpuState): Machine {
  using undo = new DisposableStack();
  const vm = undo.use(kvm.createVm());
  undo.use(guest.attachPartition(vm));
  const vcpu = undo.use(vm.createVcpu(0));
  const rewind = () => void vcpu.restoreState(state);
  rewind();
  const stack = undo.move();
  return {
    vm,
    vcpu,
    rewind,
    ask(question) {
      guest.memory.writeBigUint64(AT.input, BigInt(question));
      runTo(vcpu, STOP_PORT);
      return Number(guest.memory.readBigUint64(AT.result));
    },
    [Symbol.dispose]: () => stack.dispose(),
  };
}

function runTo(vcpu: KvmVcpu, port: number): void {
  const exit = vcpu.run();
  if (exit.kind !== "io" || exit.port !== port) throw new Error(`The guest came out with ${Deno.inspect(exit)}`);
}
