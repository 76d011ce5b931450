// What callers and other threads say about a vCPU, tampered with.

import { assert, assertEquals, assertNotEquals, assertThrows } from "@std/assert";
import { KvmVcpu, VcpuControl } from "../../ffi/kvm/mod.ts";
import { LimitError } from "../../src/core/errors.ts";
import { until } from "../clients/runner.ts";
import { RealModeCode, TestMachine } from "../support/guest.ts";
import { mappings, openFds, openFiles } from "../support/proc.ts";
import { kvmTest } from "../support/require.ts";

/** How many descriptors of vCPUs are open. */
const vcpuFds = () => openFiles(/kvm-vcpu/).length;

kvmTest("an array that changes while it is read sizes nothing but its own copy", () => {
  using machine = new TestMachine();
  const { vcpu } = machine;
  /** Claims to be longer the second time it is asked. */
  const growing = <T>(entry: T, lengths: readonly number[]): readonly T[] => {
    let asked = 0;
    return new Proxy([entry], {
      get: (target, name, receiver) =>
        name === "length"
          ? lengths[Math.min(asked++, lengths.length - 1)]
          : /^\d+$/.test(String(name))
          ? entry
          : Reflect.get(target, name, receiver),
    });
  };
  const star = 0xc000_0081;
  assertEquals(vcpu.getMsrs(growing(star, [1, 200_000])).length, 1);
  assertEquals(vcpu.getMsrs(growing(star, [2, 0])).length, 2);
  vcpu.setMsrs(growing({ index: star, data: 5n }, [1, 200_000]));
  const [leaf] = machine.kvm.getSupportedCpuid();
  assert(leaf !== undefined);
  vcpu.setCpuid2(growing(leaf, [1, 100_000]));
  for (const length of [1e9, NaN, -1, "5", 2n]) {
    try {
      const read = vcpu.getMsrs(growing(star, [length as number]));
      assert(read.length === 0, `${length}`);
    } catch (error) {
      assert(error instanceof RangeError, `${length}: ${error}`);
    }
  }
  for (const list of [null, "abc", { length: 3 }, 5]) {
    assertThrows(() => vcpu.getMsrs(list as unknown as number[]), TypeError, "MSR indices must be an array");
    assertThrows(() => vcpu.setCpuid2(list as unknown as []), TypeError, "CPUID leaves must be an array");
  }
});

kvmTest("a register that does not fit its field is refused by name, and nothing is set", () => {
  using machine = new TestMachine();
  const { vcpu } = machine;
  const [regs, sregs, fpu] = [vcpu.getRegs(), vcpu.getSregs(), vcpu.getFpu()];
  const number = 5 as unknown as bigint;
  assertThrows(
    () => vcpu.setRegs({ rbx: 1n, rax: number }),
    TypeError,
    "rax must be a bigint, got the number 5: it has 64 bits, write 5n or BigInt(...)",
  );
  assertThrows(
    () => vcpu.setRegs({ rbx: 1n, rip: 1n << 64n }),
    RangeError,
    "rip 18446744073709551616 does not fit 64 bits",
  );
  assertThrows(() => vcpu.setRegs({ rbx: 1n, rip: -1n }), RangeError, "BigInt.asUintN(64, ...) makes it fit");
  assertThrows(
    () => vcpu.setSregs({ cr2: 1n, cs: { ...sregs.cs, dpl: 256 } }),
    RangeError,
    "cs.dpl 256 does not fit 8 bits",
  );
  assertThrows(() => vcpu.setSregs({ cr2: 1n, ds: { ...sregs.ds, selector: NaN } }), RangeError, "ds.selector");
  assertThrows(() => vcpu.setSregs({ cr2: 1n, cr3: number }), TypeError, "cr3 must be a bigint");
  assertThrows(() => vcpu.setFpu({ ...fpu, xmm: new Uint8Array(255) }), RangeError, "xmm has 256 bytes, got 255");
  assertThrows(() => vcpu.setFpu({ ...fpu, fcw: 2 ** 16 }), RangeError, "fcw");
  assertThrows(() => vcpu.setMsrs([{ index: 2 ** 32, data: 0n }]), RangeError, "MSR index");
  assertThrows(() => vcpu.setMsrs([{ index: 0x10, data: number }]), TypeError, "MSR value must be a bigint");
  assertEquals([vcpu.getRegs(), vcpu.getSregs(), vcpu.getFpu()], [regs, sregs, fpu]);
});

kvmTest("what another thread says about a vCPU sizes nothing", () => {
  using machine = new TestMachine();
  const shared = machine.vcpu.share();
  // Beyond its two pages there is nothing behind a mapping of a vCPU, and a touch would be SIGBUS.
  using vcpu = KvmVcpu.attach({ ...shared, runSize: 2 ** 30 });
  machine.realMode(new RealModeCode().set(7).out(0x10, 1).halt().bytes());
  const exit = vcpu.run();
  assert(exit.kind === "io" && exit.value === 7);
  assertEquals(exit.data.buffer.byteLength, 0x2000);
  const before = openFds();
  for (const attachments of [new SharedArrayBuffer(4), {}, 5]) {
    assertThrows(() => KvmVcpu.attach({ ...shared, attachments: attachments as SharedArrayBuffer }));
  }
  assertEquals(openFds(), before);
});

kvmTest("a scribbled table of attachments closes and unmaps nothing that is not a vCPU's", () => {
  using machine = new TestMachine();
  const { attachments } = machine.vcpu.share();
  assert(attachments !== undefined);
  const words = new Int32Array(attachments);
  const base = machine.va.base;
  const memory = () => mappings(base, base + machine.va.length);
  const before = [openFds(), memory()];
  for (let entry = 0; entry < 64; entry++) {
    // Held by a thread that is gone: our own descriptors, and guest memory.
    words.set([2, 2 ** 22 + 1, 0, 0, entry, base | 0, Math.floor(base / 2 ** 32), 0], entry * 8);
  }
  machine.vcpu.share();
  assertEquals([openFds(), memory()], before);
  assert(words.every((word, at) => at % 8 !== 0 || word === 0));
  for (let i = 0; i < words.length; i++) words[i] = 0x5a5a_5a5a;
  assertThrows(() => KvmVcpu.attach(machine.vcpu.share()), LimitError, "attachments to one vCPU");
});

kvmTest("a terminated Worker's attachment is given back", async () => {
  using machine = new TestMachine();
  const held = () => [mappings().filter(({ file }) => file.includes("kvm-vcpu")).length, vcpuFds()].join();
  const attach = async (vcpu: KvmVcpu) => {
    using control = new VcpuControl(vcpu);
    const worker = new Worker(new URL("./attaching_worker.ts", import.meta.url), { type: "module" });
    const attached = new Promise((resolve) => worker.onmessage = resolve);
    worker.postMessage(control.share());
    await attached;
    return worker;
  };
  const before = held();
  for (const give of ["the vCPU is shared again", "another vCPU is made", "time has passed"]) {
    const vcpu = give === "the vCPU is shared again" ? machine.vcpu : machine.vm.createVcpu(id++);
    const worker = await attach(vcpu);
    assertNotEquals(held(), before);
    worker.terminate();
    if (vcpu !== machine.vcpu) vcpu[Symbol.dispose]();
    await until(() => {
      if (vcpu === machine.vcpu) vcpu.share();
      else if (give === "another vCPU is made") machine.vm.createVcpu(id++)[Symbol.dispose]();
      return held() === before;
    }, give);
  }
});

let id = 1;

kvmTest("a vCPU id can be tried again when its page could not be mapped", async () => {
  const { success, stderr, stdout } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", "--no-check", new URL("./children/vcpu_id.ts", import.meta.url).pathname],
  }).output();
  assert(success, new TextDecoder().decode(stderr));
  assertEquals(new TextDecoder().decode(stdout), "refused, made, runs\n");
});
