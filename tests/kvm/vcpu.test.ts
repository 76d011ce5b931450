import { assert, assertEquals, assertThrows } from "@std/assert";
import { Kvm, KvmMpState, type KvmRegs, KvmVcpu } from "../../ffi/kvm/mod.ts";
import { OsError } from "../../ffi/os/os_error.ts";
import { DisposedError, LimitError } from "../../src/core/errors.ts";
import { RunningVcpu, until } from "../clients/runner.ts";
import { LongModeCode, RealModeCode, TestMachine, touchForever } from "../support/guest.ts";
import { fdFlags, mappings, openFds } from "../support/proc.ts";
import { kvmTest } from "../support/require.ts";

/** How many descriptors of vCPUs are open. */
function vcpuFds(): number {
  return [...Deno.readDirSync("/proc/self/fd")].filter(({ name }) => {
    try {
      return Deno.readLinkSync(`/proc/self/fd/${name}`).includes("kvm-vcpu");
    } catch {
      return false;
    }
  }).length;
}

kvmTest("a new vCPU is in the reset state of an x86 processor", () => {
  using machine = new TestMachine();
  const { rip, rflags } = machine.vcpu.getRegs();
  const { cs, cr0, efer } = machine.vcpu.getSregs();
  assertEquals([rip, rflags], [0xfff0n, 2n]);
  assertEquals([cs.base, cs.selector, cs.limit], [0xffff_0000n, 0xf000, 0xffff]);
  assertEquals([cr0 & 1n, efer], [0n, 0n]);
});

kvmTest("every general register is set and read back on its own", () => {
  using machine = new TestMachine();
  const names = Object.keys(machine.vcpu.getRegs()) as (keyof KvmRegs)[];
  assertEquals(names.length, 18);
  const wanted = machine.vcpu.getRegs();
  names.forEach((name, i) => {
    if (name !== "rflags") wanted[name] = 0x8000_0000_0000_0000n + BigInt(i);
  });
  machine.vcpu.setRegs(wanted);
  assertEquals(machine.vcpu.getRegs(), wanted);
});

kvmTest("registers that are left out keep their values", () => {
  using machine = new TestMachine();
  const before = machine.vcpu.getRegs();
  machine.vcpu.setRegs({ rax: 5n });
  assertEquals(machine.vcpu.getRegs(), { ...before, rax: 5n });
  const { cs } = machine.vcpu.getSregs();
  machine.vcpu.setSregs({ cr2: 0x1234n });
  assertEquals([machine.vcpu.getSregs().cr2, machine.vcpu.getSregs().cs], [0x1234n, cs]);
});

kvmTest("special registers come back as they were set", () => {
  using machine = new TestMachine();
  const sregs = machine.vcpu.getSregs();
  sregs.fs.base = 0x1234_5678n;
  sregs.gdt = { base: 0x2000n, limit: 0x57 };
  sregs.idt = { base: 0x3000n, limit: 0xfff };
  machine.vcpu.setSregs(sregs);
  assertEquals(machine.vcpu.getSregs(), sregs);
});

kvmTest("special registers that contradict each other are EINVAL", () => {
  using machine = new TestMachine();
  // Long mode without the paging it needs.
  const error = assertThrows(() => machine.vcpu.setSregs({ efer: 0x500n, cr0: 0x8000_0001n, cr4: 0n }), OsError);
  assertEquals([error.syscall, error.code], ["KVM_SET_SREGS", "EINVAL"]);
});

kvmTest("floating-point registers come back as they were set", () => {
  using machine = new TestMachine();
  const fpu = machine.vcpu.getFpu();
  assertEquals([fpu.fcw, fpu.fpr.length, fpu.xmm.length], [0x37f, 128, 256]);
  fpu.xmm.set([1, 2, 3], 16);
  fpu.fcw = 0x27f;
  machine.vcpu.setFpu(fpu);
  assertEquals(machine.vcpu.getFpu(), fpu);
});

kvmTest("model-specific registers are read and set, and one KVM does not know is named", () => {
  using machine = new TestMachine();
  const [efer, star] = [0xc000_0080, 0xc000_0081];
  machine.vcpu.setMsrs([{ index: star, data: 0x1234_0000_0000n }]);
  assertEquals(machine.vcpu.getMsrs([efer, star]), [
    { index: efer, data: 0n },
    { index: star, data: 0x1234_0000_0000n },
  ]);
  assertThrows(() => machine.vcpu.getMsrs([star, 0x12345]), RangeError, "MSR 0x12345");
  assertThrows(() => machine.vcpu.setMsrs([{ index: 0x12345, data: 0n }]), RangeError, "MSR 0x12345");
  assertEquals(machine.vcpu.getMsrs([]), []);
});

kvmTest("the guest sees the CPUID it was given", () => {
  using machine = new TestMachine();
  const leaves = machine.kvm.getSupportedCpuid();
  const marked = leaves.map((leaf) => leaf.function === 0 ? { ...leaf, ebx: 0x4b4e_5552 } : leaf);
  machine.vcpu.setCpuid2(marked);
  // cpuid; mov eax, ebx
  machine.realMode(new RealModeCode().set(0).raw(0x0f, 0xa2, 0x66, 0x89, 0xd8).out(0x10, 4).halt().bytes());
  assertEquals(machine.collect(), [0x4b4e_5552]);
});

kvmTest("the state of a vCPU is read and set", () => {
  using machine = new TestMachine();
  machine.vm[Symbol.dispose]();
  using kvm = Kvm.open();
  using vm = kvm.createVm();
  vm.createIrqchip();
  using vcpu = vm.createVcpu(0);
  assertEquals(vcpu.mpState, KvmMpState.RUNNABLE);
  vcpu.mpState = KvmMpState.HALTED;
  assertEquals(vcpu.mpState, KvmMpState.HALTED);
  assertThrows(() => vcpu.mpState = 0xffff, OsError, "KVM_SET_MP_STATE failed with EINVAL");
});

kvmTest("two vCPUs cannot have one id", () => {
  using machine = new TestMachine();
  using _second = machine.vm.createVcpu(1);
  assertThrows(() => machine.vm.createVcpu(0), OsError, "EEXIST");
  assertThrows(() => machine.vm.createVcpu(-1), RangeError);
  assertThrows(() => machine.vm.createVcpu(2 ** 31), OsError, "EINVAL");
});

kvmTest("real-mode code runs", () => {
  using machine = new TestMachine();
  machine.ram.write(0x8_0000, new Uint8Array([0x78, 0x56, 0x34, 0x12]));
  machine.realMode(
    new RealModeCode().load(0x8_0000, 4).out(0x10, 4).store(0x8_0010, 2).load(0x8_0010, 1).out(0x10, 1).halt().bytes(),
  );
  assertEquals(machine.collect().map((value) => value & 0xff), [0x78, 0x78]);
  const stored = new Uint8Array(4);
  machine.ram.read(0x8_0010, stored);
  assertEquals(stored, new Uint8Array([0x78, 0x56, 0, 0]));
});

kvmTest("long-mode code runs at user privilege, with arithmetic, memory and loops", () => {
  using machine = new TestMachine();
  const code = new LongModeCode()
    .set("rbx", 0x80_0000).set("r9", 3).set("rcx", 1_000_000)
    .label("again").atomicAdd("rbx", "r9").subtract("rcx", 1).jumpIf("notEqual", "again")
    .load("rax", "rbx", 8).out(0x10)
    .move("r10", "rax").add("r10", -1).compareRegister("r10", "rax").jumpIf("below", "less").out(0x11)
    .label("less").set("rsi", 0x0102_0304_0506_0708n).store("rbx", "rsi", 8, 8).load("rax", "rbx", 1, 8).out(0x10)
    .out(0xf4);
  machine.longMode(code.bytes());
  assertEquals(machine.collect(), [3_000_000, 8]);
  assertEquals(machine.vcpu.getSregs().cs.dpl, 3);
});

kvmTest("small guest pages translate like large ones", () => {
  using machine = new TestMachine({ memory: 2 ** 24 });
  // 4 KiB pages for an address that has no memory yet: the same page tables, one level deeper.
  const start = 0x4000_0000;
  machine.va.map(start, start + 0x2000, machine.ram, 0x80_0000, true, undefined);
  machine.show(start, start + 0x2000);
  machine.ram.write(0x80_1ff8, new Uint8Array([7]));
  machine.longMode(
    new LongModeCode().set("rbx", start + 0x1ff8).load("rax", "rbx", 8).out(0x10).out(0xf4).bytes(),
    [{ start, end: start + 0x2000, pageSize: 0x1000 }],
  );
  assertEquals(machine.collect(), [7]);
});

kvmTest("a disposed vCPU refuses everything, and has closed and unmapped what it had", () => {
  using machine = new TestMachine();
  const { vcpu } = machine;
  const { fd } = vcpu.share();
  vcpu[Symbol.dispose]();
  vcpu[Symbol.dispose]();
  assertEquals(fdFlags(fd), undefined);
  assertEquals(mappings().filter(({ file }) => file.includes("kvm-vcpu")), []);
  const uses: (() => unknown)[] = [
    () => vcpu.run(),
    () => vcpu.share(),
    () => vcpu.getRegs(),
    () => vcpu.setRegs({}),
    () => vcpu.getSregs(),
    () => vcpu.setSregs({}),
    () => vcpu.getFpu(),
    () => vcpu.getMsrs([]),
    () => vcpu.setMsrs([]),
    () => vcpu.setCpuid2([]),
    () => vcpu.mpState,
    () => vcpu.mpState = 0,
    () => vcpu.immediateExit,
    () => vcpu.immediateExit = true,
    () => vcpu.requestInterruptWindow,
    () => vcpu.requestInterruptWindow = true,
    () => vcpu.readyForInterrupt,
    () => vcpu.interrupt(0),
  ];
  for (const use of uses) assertThrows(use, DisposedError, "vCPU has been disposed");
});

kvmTest("a vCPU whose VM has been disposed refuses everything but to be let out of the guest", () => {
  using machine = new TestMachine();
  const { vcpu } = machine;
  using attached = KvmVcpu.attach(vcpu.share());
  machine.vm[Symbol.dispose]();
  const uses: (() => unknown)[] = [
    () => vcpu.run(),
    () => vcpu.share(),
    () => vcpu.getRegs(),
    () => vcpu.setRegs({}),
    () => vcpu.setSregs({}),
    () => vcpu.getMsrs([]),
    () => vcpu.setCpuid2([]),
    () => vcpu.mpState,
    () => vcpu.interrupt(0),
  ];
  for (const use of uses) {
    assertEquals(
      assertThrows(use, DisposedError, undefined, String(use)).message,
      "vCPU belongs to KVM VM, which has been disposed",
    );
  }
  vcpu.immediateExit = true;
  assertEquals(attached.immediateExit, true);
});

kvmTest("attaching to what is no vCPU is refused, and leaves nothing open", () => {
  using machine = new TestMachine();
  const { runSize } = machine.vcpu.share();
  const runPages = () => mappings().filter(({ file }) => file.includes("kvm-vcpu")).length;
  const before = [runPages(), openFds()];
  assertThrows(() => KvmVcpu.attach({ fd: 100_000, runSize }), OsError, "EBADF");
  assertThrows(() => KvmVcpu.attach({ fd: machine.ram.fd, runSize }), OsError, "is no vCPU");
  assertThrows(() => KvmVcpu.attach({ fd: machine.vm.fd, runSize }), OsError, "is no vCPU");
  assertThrows(() => KvmVcpu.attach({ fd: -1, runSize }), RangeError);
  assertThrows(() => KvmVcpu.attach({ fd: machine.vcpu.share().fd, runSize: 5 }), RangeError);
  assertThrows(() => KvmVcpu.attach({ fd: machine.vcpu.share().fd, runSize: NaN }), RangeError);
  assertEquals([runPages(), openFds()], before);
});

kvmTest("an attached vCPU is the same vCPU, and outlives the one it was attached from", () => {
  using machine = new TestMachine();
  using second = KvmVcpu.attach(machine.vcpu.share());
  machine.realMode(new RealModeCode().set(42).out(0x10, 1).halt().bytes());
  machine.vcpu[Symbol.dispose]();
  const exit = second.run();
  assert(exit.kind === "io" && exit.data[0] === 42);
});

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
  machine.longMode(touchForever(0x20_0000, 0x20_0008, 8));
  const runPages = () => mappings().filter(({ file }) => file.includes("kvm-vcpu")).length;
  for (const when of ["the vCPU is shared again", "another vCPU is made"]) {
    const before = [runPages(), vcpuFds()];
    const vcpu = when === "another vCPU is made" ? machine.vm.createVcpu(1) : machine.vcpu;
    const running = new RunningVcpu(vcpu);
    await running.running;
    running.worker.terminate();
    running.control.kick();
    running.control[Symbol.dispose]();
    if (vcpu !== machine.vcpu) vcpu[Symbol.dispose]();
    let id = 2;
    await until(() => {
      if (vcpu === machine.vcpu) vcpu.share();
      else machine.vm.createVcpu(id++)[Symbol.dispose]();
      return runPages() === before[0] && vcpuFds() === before[1];
    }, when);
  }
});

kvmTest("a vCPU id can be tried again when its page could not be mapped", async () => {
  const { success, stderr, stdout } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", "--no-check", new URL("./children/vcpu_id.ts", import.meta.url).pathname],
  }).output();
  assert(success, new TextDecoder().decode(stderr));
  assertEquals(new TextDecoder().decode(stdout), "refused, made, runs\n");
});

kvmTest("port and MMIO data are read and set as one value, by their size", () => {
  using machine = new TestMachine();
  machine.realMode(
    new RealModeCode().set(0x1122_3344).out(0x10, 1).out(0x11, 2).out(0x12, 4).in(0x20, 2).out(0x13, 4)
      .load(0xd000_0000, 4).out(0x13, 4).set(0xaabb_ccdd).store(0xd000_0004, 2).halt().bytes(),
  );
  const seen: unknown[] = [];
  machine.run((exit) => {
    assert(exit.kind === "io" || exit.kind === "mmio");
    if (exit.kind === "io" ? exit.direction === "out" : exit.isWrite) {
      seen.push(exit.value);
    } else {
      assertThrows(() => exit.value = 2 ** 32, RangeError, "4294967296 is no integer of");
      for (const bad of [-1, 0.5, NaN, Infinity]) assertThrows(() => exit.value = bad, RangeError);
      assertThrows(() => exit.value = "1" as unknown as number, TypeError);
      exit.value = exit.kind === "io" ? 0xbeef : 0x0102_0304n as unknown as number;
    }
    return true;
  });
  assertEquals(seen, [0x44, 0x3344, 0x1122_3344, 0x1122_beef, 0x0102_0304, 0xccdd]);
});

kvmTest("MMIO data of eight bytes are a bigint", () => {
  using machine = new TestMachine();
  const at = 0x4000_0000;
  machine.longMode(
    new LongModeCode().set("rbx", at).load("rax", "rbx", 8).store("rbx", "rax", 8, 8).out(0xf4).bytes(),
    [{ start: at, end: at + 0x20_0000 }],
  );
  const seen: unknown[] = [];
  machine.run((exit) => {
    if (exit.kind !== "mmio") return false;
    if (exit.isWrite) seen.push(exit.gpa - at, exit.value);
    else exit.value = 0xf122_3344_5566_7788n;
    return true;
  });
  assertEquals(seen, [8, 0xf122_3344_5566_7788n]);
});
