import { assert, assertEquals } from "@std/assert";
import { Mappable, MemoryRange, RegionManager, VaMapper } from "membacking";
import { Kvm, quiesceVcpus, VcpuControl } from "membacking/kvm";
import { RealModeCode, startRealMode } from "../support/guest.ts";
import { kvmTest } from "../support/require.ts";
import type { ExitJob } from "./exit_worker.ts";

const CPUS = [{ code: 0x1000, at: 0x10_0000 }, { code: 0x2000, at: 0x20_0000 }] as const;
const EXITS = 150;

kvmTest(
  "vCPUs change the memory map in the middle of their exits, each holding the other out of the guest",
  async () => {
    const controls = new Set<VcpuControl>();
    let holds = 0;
    const quiesce = quiesceVcpus(controls);
    using stack = new DisposableStack();
    const va = stack.use(VaMapper.reserve(0x100_0000));
    const kvm = stack.use(Kvm.open());
    const vm = stack.use(kvm.createVm());
    const regions = stack.use(
      new RegionManager(va, {
        quiesce: () => {
          holds++;
          return quiesce();
        },
      }),
    );
    stack.use(regions.addPartition(vm));
    const file = stack.use(Mappable.memfd("ram", 0x1_0000));
    const ram = regions.newRegion({ name: "ram", range: new MemoryRange(0, 0x1_0000), priority: 0 });
    ram.addMapping({ rangeInRegion: new MemoryRange(0, 0x1_0000), mappable: file });
    ram.map();

    const ended = CPUS.map(({ code, at }, index) => {
      const vcpu = stack.use(vm.createVcpu(index));
      regions.memory.write(code, new RealModeCode().load(at, 4).out(0x20, 4).repeat().bytes());
      startRealMode(vcpu, code);
      const control = new VcpuControl(vcpu);
      controls.add(control);
      const worker = new Worker(new URL("./exit_worker.ts", import.meta.url), { type: "module" });
      const { port1, port2 } = new MessageChannel();
      regions.serve(port1);
      const job: ExitJob = { vcpu: control.share(), port: port2, at, exits: EXITS };
      const { promise, resolve, reject } = Promise.withResolvers<string[]>();
      worker.onmessage = ({ data }) => resolve(data);
      worker.onerror = (event) => {
        event.preventDefault();
        reject(new Error(event.message));
      };
      worker.postMessage(job, [port2]);
      return promise.finally(() => worker.terminate());
    });
    assertEquals(await Promise.all(ended), [[], []]);
    assert(holds >= 2 * EXITS, `${holds} holds`);
  },
);
