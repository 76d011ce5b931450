import { assert, assertEquals, assertThrows } from "@std/assert";
import { Kvm, KvmMpState, type KvmRegs, KvmVcpu } from "../../ffi/kvm/mod.ts";
import { OsError } from "../../ffi/os/os_error.ts";
import { DisposedError } from "../../src/core/errors.ts";
import { LongModeCode, RealModeCode, TestMachine } from "../support/guest.ts";
import { fdFlags, mappings, openFds } from "../support/proc.ts";
import { kvmTest } from "../support/require.ts";

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
