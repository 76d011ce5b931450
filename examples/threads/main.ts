/**
 * A vCPU in a Worker whose guest places a BAR, and a region manager in this thread that the Worker asks to map it.
 *
 * `deno run --allow-ffi --allow-read=. examples/threads/main.ts`: Deno wants the second for the modules of a Worker.
 *
 * @module
 */

import { GuestMemoryManager, MemoryRange } from "membacking";
import { Kvm, quiesceVcpus, VcpuControl } from "membacking/kvm";
import { RealModeCode, startRealMode } from "../guest/mod.ts";

const CODE = 0x1000;
const BAR = 0xd000_0000;

const controls = new Set<VcpuControl>();
using guest = GuestMemoryManager.create({
  maxAddress: 0x1_0000_0000,
  ram: [{ ranges: [new MemoryRange(0, 0x10_0000)] }],
  quiesce: quiesceVcpus(controls), // holds vCPUs out of the guest while a change needs it
});
using kvm = Kvm.open();
using vm = kvm.createVm();
using _attached = guest.attachPartition(vm);

using vcpu = vm.createVcpu(0);
guest.memory.write(CODE, new RealModeCode().set(BAR).out(0x10, 4).set(42).store(BAR, 4).halt().bytes());
startRealMode(vcpu, CODE);

using control = new VcpuControl(vcpu);
controls.add(control);

const { port1, port2 } = new MessageChannel();
using _served = guest.regions.serve(port1);

const worker = new Worker(new URL("./vcpu.ts", import.meta.url), { type: "module" });
worker.postMessage({ vcpu: control.share(), port: port2 }, [port2]);

const { data } = await new Promise<MessageEvent>((resolve) => worker.onmessage = resolve);
console.log(`The guest wrote ${data} to its BAR`);
