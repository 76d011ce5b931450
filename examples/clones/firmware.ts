/**
 * Unmodified SeaBIOS, warm once it has found nothing to boot. A clone asks it how much memory there is.
 *
 * @module
 */

import { type GuestMemoryManager, Mappable, MemoryRange } from "membacking";
import type { Kvm } from "membacking/kvm";
import { Machine as Pc, RAM } from "../firmware/machine.ts";
import { startRealMode } from "../guest/mod.ts";
import type { Machine, Subject } from "./subject.ts";

/** Where firmware lives below 1 MiB: RAM that the chipset shadows it in. */
const SHADOW = new MemoryRange(0xc_0000, 0x10_0000);
const CODE = 0x7c00;
const QUESTION = 0x7e00;
const ANSWER = 0x7e02;

/** mov bx, [QUESTION]; int 0x12, how much memory is there; mul bx; mov [ANSWER], ax; hlt */
const PROGRAM = new Uint8Array([0x8b, 0x1e, 0x00, 0x7e, 0xcd, 0x12, 0xf7, 0xe3, 0xa3, 0x02, 0x7e, 0xf4]);

/** Boots it to its end, and freezes it. */
export async function firmwareSubject(): Promise<Subject> {
  const began = performance.now();
  using undo = new DisposableStack();
  const silent = () => {};
  const pc = undo.use(
    new Pc({ events: { onLog: silent, onFinding: silent, onChange: silent, onRefused: silent } }),
  );
  const end = await pc.boot();
  if (end.crash !== null) throw new Error(`The firmware did not come to its end: ${Deno.inspect(end.crash)}`);
  const warmUp = performance.now() - began;
  const { guest } = pc.memory;
  const shadow = undo.use(Mappable.memfd("shadow", SHADOW.length));
  shadow.write(0, guest.memory.read(SHADOW.start, SHADOW.length));
  const kibibytes = guest.memory.readUint16(0x413); // of the BIOS data area
  const template = undo.use(guest.freeze());
  const stack = undo.move();
  return {
    title: "SeaBIOS after “No bootable device.”",
    warmUp,
    ram: RAM,
    template,
    machine: (kvm, clone) => machine(kvm, clone, shadow),
    answer: (question) => kibibytes * question & 0xffff,
    [Symbol.dispose]: () => stack.dispose(),
  };
}

function machine(kvm: Kvm, guest: GuestMemoryManager, shadow: Mappable): Machine {
  using undo = new DisposableStack();
  // The firmware's own code is not RAM of the template, but what a region shows: copy-on-write, as it was.
  const region = undo.use(guest.regions.newRegion({ name: "firmware", range: SHADOW, priority: 1 }));
  region.addMapping({ rangeInRegion: new MemoryRange(0, SHADOW.length), mappable: shadow, copyOnWrite: true });
  region.map();
  const vm = undo.use(kvm.createVm());
  undo.use(guest.attachPartition(vm));
  const vcpu = undo.use(vm.createVcpu(0));
  const rewind = () => {
    startRealMode(vcpu, CODE, { rsp: 0x7000n });
    guest.memory.write(CODE, PROGRAM);
  };
  rewind();
  const stack = undo.move();
  return {
    vm,
    vcpu,
    rewind,
    ask(question) {
      guest.memory.writeUint16(QUESTION, question);
      const exit = vcpu.run();
      if (exit.kind !== "hlt") throw new Error(`The guest came out with ${Deno.inspect(exit)}`);
      return guest.memory.readUint16(ANSWER);
    },
    [Symbol.dispose]: () => stack.dispose(),
  };
}
