/**
 * Virtual machines and vCPUs: tampered values, Workers ended in the guest, words written over, owners that go first.
 *
 * @module
 */

import { HostAddresses } from "../../../ffi/host/host_addresses.ts";
import { Mappable, MemoryRange } from "membacking";
import * as kvm from "membacking/kvm";
import { pollForever, startLongMode } from "../../support/guest.ts";
import { anyNumber, anything } from "../catalogue.ts";
import type { Family } from "../family.ts";
import { baseline, leakedAtLast } from "../resources.ts";
import { Stage } from "../stage.ts";
import { callAnything } from "./values.ts";

const RAM = 2 ** 24;
const wait = (milliseconds: number) => new Promise((resolve) => setTimeout(resolve, milliseconds));

type Callable = (...args: unknown[]) => unknown;
const FUNCTIONS: readonly [string, Callable][] = [
  ["quiesceVcpus", (...args) => (kvm.quiesceVcpus as Callable)(...args)],
  ["encodeState", (...args) => (kvm.encodeState as Callable)(...args)],
  ["decodeState", (...args) => (kvm.decodeState as Callable)(...args)],
  ["KvmVcpu.attach", (...args) => (kvm.KvmVcpu.attach as Callable)(...args)],
  ["VcpuRunner.attach", (...args) => (kvm.VcpuRunner.attach as Callable)(...args)],
  ["new VcpuControl", (...args) => new (kvm.VcpuControl as new (...args: unknown[]) => object)(...args)],
  ["Kvm.open", (...args) => (kvm.Kvm.open as Callable)(...args)],
];

const family: Family = {
  name: "vcpus",
  needsKvm: true,
  timeout: 60_000,
  async attack(random, notes) {
    new Stage()[Symbol.dispose]();
    const before = await baseline();
    let all = false;
    {
      using device = kvm.Kvm.open();
      using va = HostAddresses.reserve(RAM);
      using ram = Mappable.memfd("guest ram", RAM);
      va.map(0, RAM, ram, 0, true, undefined);
      // Anything, called with anything. The guest is never entered: nothing says that it would come out.
      {
        using vm = device.createVm();
        if (random.oneIn(2)) vm.createIrqchip();
        using vcpu = vm.createVcpu(0);
        vm.mapRange(va.base, new MemoryRange(0, RAM), { writable: true, executable: true });
        const stage = new Stage();
        const enter = Object.getOwnPropertyDescriptor(kvm.KvmVcpu.prototype, "run");
        Object.defineProperty(kvm.KvmVcpu.prototype, "run", {
          configurable: true,
          value(this: kvm.KvmVcpu) {
            this.immediateExit = true;
            return enter?.value.call(this);
          },
        });
        stage.live.push(kvm.Kvm.open(), vm, vcpu, new kvm.EventFd(), new kvm.VcpuControl(vcpu), vcpu.share());
        await callAnything(random, notes, stage, 300, FUNCTIONS);
        all = stage.dispose(notes);
        Object.defineProperty(kvm.KvmVcpu.prototype, "run", enter ?? {});
      }
      for (let round = 0; round < 4; round++) {
        using vm = device.createVm({ zapAllOnSlotDelete: random.oneIn(2), dirtyLog: random.of(["bitmap", "ring"]) });
        vm.mapRange(va.base, new MemoryRange(0, RAM), { writable: true, executable: true });
        using vcpu = vm.createVcpu(0);
        vcpu.setCpuid2(device.getSupportedCpuid());
        startLongMode(vcpu, {
          write: (gpa, bytes) => ram.write(gpa, bytes),
          ...{ tables: 0x1_0000, code: 0x1000, ranges: [{ start: 0, end: RAM }] },
          program: pollForever({ start: 0x80_0000, end: 0x90_0000, step: 8, expected: [0], counter: 0x8000 }),
        });
        using control = new kvm.VcpuControl(vcpu, { deadline: 200 });
        const shared = control.share();
        const worker = new Worker(new URL("../vcpu_worker.ts", import.meta.url), { type: "module" });
        worker.onerror = (event) => event.preventDefault();
        worker.postMessage(shared);
        await wait(random.below(120));
        const words = new Int32Array(shared.words);
        // Who runs it, as the words have said before they were written over: else nobody could make it leave the guest.
        const threads = new Set<number>();
        for (let i = 0; i < 30; i++) {
          switch (random.below(8)) {
            case 0:
              threads.add(words[1] ?? 0);
              words[random.below(words.length)] = anyNumber(random) | 0;
              break;
            case 1:
              notes.try("kick", () => control.kick());
              break;
            case 2:
              notes.try("registers", () => {
                using _held = control.pause();
                vcpu.setRegs({ ...vcpu.getRegs() });
              });
              break;
            case 3:
              notes.try("a state that is none", () => vcpu.restoreState(anything(random) as kvm.VcpuState));
              break;
            default:
              notes.try("pause", () => control.pause()[Symbol.dispose]());
          }
          notes.claim(control.pauses === 0, "a pause is counted that is over");
        }
        if (random.oneIn(2)) vm[Symbol.dispose]();
        worker.terminate();
        // However the words look: out of the guest, so that the thread can end.
        for (let i = 0; i < 100; i++) {
          vcpu.immediateExit = true;
          notes.try("signal", () => control.kick());
          for (const thread of threads.add(words[1] ?? 0)) {
            if (thread > 0) notes.try("signal", () => kvm.kickThread(thread, 16));
          }
          await wait(1);
        }
      }
    }
    for (const left of all ? await leakedAtLast(before) : []) notes.broken(left);
  },
};

export default family;
