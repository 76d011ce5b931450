import { assert, assertEquals, assertThrows } from "@std/assert";
import { Mappable } from "../../ffi/files/mappable.ts";
import { OsError } from "../../ffi/os/os_error.ts";
import { LongModeCode, RealModeCode, TestMachine } from "../support/guest.ts";
import { kvmTest } from "../support/require.ts";

kvmTest("port writes carry port, width and value, and reads take what the VMM fills in", () => {
  using machine = new TestMachine();
  machine.realMode(
    new RealModeCode().set(0x1122_3344).out(0x10, 1).out(0x11, 2).out(0xffff, 4).in(0x20, 4).store(0x8000, 4)
      .halt().bytes(),
  );
  const seen: unknown[] = [];
  machine.run((exit) => {
    assert(exit.kind === "io");
    seen.push([exit.direction, exit.port, exit.size, exit.count, [...exit.data]]);
    if (exit.direction === "in") exit.data.set([1, 2, 3, 4]);
    return true;
  });
  assertEquals(seen.slice(0, 3), [
    ["out", 0x10, 1, 1, [0x44]],
    ["out", 0x11, 2, 1, [0x44, 0x33]],
    ["out", 0xffff, 4, 1, [0x44, 0x33, 0x22, 0x11]],
  ]);
  assertEquals((seen[3] as unknown[]).slice(0, 4), ["in", 0x20, 4, 1]);
  const stored = new Uint8Array(4);
  machine.ram.read(0x8000, stored);
  assertEquals(stored, new Uint8Array([1, 2, 3, 4]));
});

kvmTest("string instructions come as one exit with a count, or as several, with all their bytes in order", () => {
  using machine = new TestMachine();
  const text = new TextEncoder().encode("hello, world");
  machine.ram.write(0x8000, text);
  // cld; mov si, 0x8000; mov cx, 12; mov dx, 0x10; rep outsb
  const rep = [0xfc, 0xbe, 0x00, 0x80, 0xb9, 12, 0, 0xba, 0x10, 0, 0xf3, 0x6e];
  machine.realMode(new RealModeCode().raw(...rep).halt().bytes());
  const out: number[] = [];
  machine.run((exit) => {
    assert(exit.kind === "io" && exit.size === 1);
    assertEquals(exit.data.length, exit.count);
    out.push(...exit.data);
    return true;
  });
  assertEquals(new Uint8Array(out), text);
});

kvmTest("an address without memory is an MMIO exit both ways", () => {
  using machine = new TestMachine();
  machine.realMode(
    new RealModeCode().load(0xd000_0004, 4).store(0x8000, 4).set(0xaabb_ccdd).store(0xd000_1001, 2).halt().bytes(),
  );
  const seen: unknown[] = [];
  machine.run((exit) => {
    assert(exit.kind === "mmio");
    seen.push([exit.gpa, exit.isWrite, exit.length, ...exit.isWrite ? exit.data : []]);
    if (!exit.isWrite) exit.data.set([9, 8, 7, 6]);
    return true;
  });
  assertEquals(seen, [[0xd000_0004, false, 4], [0xd000_1001, true, 2, 0xdd, 0xcc]]);
  const stored = new Uint8Array(4);
  machine.ram.read(0x8000, stored);
  assertEquals(stored, new Uint8Array([9, 8, 7, 6]));
});

kvmTest("MMIO above 4 GiB has its whole address", () => {
  using machine = new TestMachine();
  const start = 0x12_4000_0000;
  machine.longMode(
    new LongModeCode().set("rbx", start + 8).load("rax", "rbx", 8).out(0x10).out(0xf4).bytes(),
    [{ start, end: start + 0x20_0000 }],
  );
  const exit = machine.vcpu.run();
  assert(exit.kind === "mmio");
  assertEquals([exit.gpa, exit.isWrite, exit.length], [start + 8, false, 8]);
  exit.data.set([5, 0, 0, 0, 0, 0, 0, 0]);
  assertEquals(machine.collect(), [5]);
});

kvmTest("read-only memory reads directly, and a write to it is an MMIO exit that changes nothing", () => {
  using machine = new TestMachine();
  const start = 0x4000_0000;
  using rom = Mappable.memfd("rom", 0x1000);
  rom.write(0, new Uint8Array([0x77]));
  machine.va.map(start, start + 0x1000, rom, 0, false, undefined);
  machine.show(start, start + 0x1000, false);
  machine.realMode(
    new RealModeCode().load(start, 1).out(0x10, 1).set(1).store(start, 1).load(start, 1).out(0x10, 1).halt().bytes(),
  );
  const reads: number[] = [];
  const writes: unknown[] = [];
  machine.run((exit) => {
    if (exit.kind === "mmio") writes.push([exit.gpa, exit.isWrite, exit.data[0]]);
    if (exit.kind === "io") reads.push(exit.data[0] ?? -1);
    return true;
  });
  assertEquals(reads, [0x77, 0x77]);
  assertEquals(writes, [[start, true, 1]]);
});

kvmTest("memory missing behind a slot is a fault, and the guest goes on when it is there", () => {
  using machine = new TestMachine();
  const start = 0x4000_0000;
  machine.show(start, start + 0x20_0000);
  machine.longMode(
    new LongModeCode().set("rbx", start).load("rax", "rbx", 8).out(0x10).out(0xf4).bytes(),
    [{ start, end: start + 0x20_0000 }],
  );
  for (let i = 0; i < 3; i++) {
    const exit = machine.vcpu.run();
    assertEquals(exit.kind, "fault");
    assert(exit.kind === "fault" && (exit.gpa === undefined || exit.gpa === start));
  }
  using memory = Mappable.memfd("late", 0x20_0000);
  memory.write(0, new Uint8Array([11]));
  machine.va.map(start, start + 0x20_0000, memory, 0, true, undefined);
  assertEquals(machine.collect(), [11]);
});

kvmTest("a halt, a shutdown and an instruction that cannot be emulated are told apart", () => {
  using machine = new TestMachine();
  machine.realMode(new RealModeCode().halt().bytes());
  assertEquals(machine.vcpu.run(), { kind: "hlt" });

  // An undefined instruction with no handlers is a triple fault.
  machine.longMode(new Uint8Array([0x0f, 0x0b]));
  assertEquals(machine.vcpu.run(), { kind: "shutdown" });

  // Code at an address without memory cannot be fetched.
  machine.realMode(new RealModeCode().bytes());
  machine.vcpu.setRegs({ rip: 0n });
  const sregs = machine.vcpu.getSregs();
  machine.vcpu.setSregs({ cs: { ...sregs.cs, base: 0xd000_0000n } });
  const exit = machine.vcpu.run();
  assert(exit.kind === "internal-error", exit.kind);
  assertEquals(exit.suberror, 1);
  assert(exit.data.every((word) => typeof word === "bigint"));
});

kvmTest("immediate exit returns before the guest is entered, until it is cleared", () => {
  using machine = new TestMachine();
  machine.realMode(new RealModeCode().set(1).out(0x10, 1).halt().bytes());
  machine.vcpu.immediateExit = true;
  assert(machine.vcpu.immediateExit);
  assertEquals(machine.vcpu.run(), { kind: "interrupted" });
  assertEquals(machine.vcpu.run(), { kind: "interrupted" });
  machine.vcpu.immediateExit = false;
  assertEquals(machine.vcpu.run().kind, "io");
});

kvmTest("exits of a kind share one object and the data is the vCPU's own", () => {
  using machine = new TestMachine();
  machine.realMode(new RealModeCode().set(1).out(0x10, 1).set(2).out(0x11, 1).halt().bytes());
  const first = machine.vcpu.run();
  assert(first.kind === "io" && first.port === 0x10);
  const { data } = first;
  const second = machine.vcpu.run();
  assert(second === first && second.kind === "io");
  assertEquals([second.port, data[0]], [0x11, 2]);
  machine.vcpu[Symbol.dispose]();
  assertEquals([data.length, data[0]], [0, undefined]);
});

kvmTest("an interrupt is injected where the guest can take it", () => {
  using machine = new TestMachine();
  // Vector 0x21 of the real-mode table: to code that writes a port and halts.
  machine.ram.write(0x21 * 4, new Uint8Array([0x00, 0x80, 0x00, 0x00]));
  machine.ram.write(0x8000, new RealModeCode().set(0x99).out(0x10, 1).halt().bytes());
  // sti; nop; jmp to itself
  machine.realMode(new Uint8Array([0xfb, 0x90, 0xeb, 0xfe]));
  machine.vcpu.setRegs({ rsp: 0x7000n });
  machine.vcpu.requestInterruptWindow = true;
  assertEquals(machine.vcpu.run(), { kind: "irq-window-open" });
  assert(machine.vcpu.readyForInterrupt);
  machine.vcpu.requestInterruptWindow = false;
  machine.vcpu.interrupt(0x21);
  const exit = machine.vcpu.run();
  assert(exit.kind === "io" && exit.data[0] === 0x99);
  for (const vector of [-1, 256, 0.5, NaN]) assertThrows(() => machine.vcpu.interrupt(vector), RangeError);
});

kvmTest("with an in-kernel interrupt controller, interrupts are not injected by hand", () => {
  using machine = new TestMachine();
  using vm = machine.kvm.createVm();
  vm.createIrqchip();
  using vcpu = vm.createVcpu(0);
  assertEquals(assertThrows(() => vcpu.interrupt(0x20), OsError).code, "ENXIO");
});

kvmTest("port exits come without garbage", () => {
  using machine = new TestMachine();
  machine.realMode(new RealModeCode().out(0x10, 1).repeat().bytes());
  const exits = new Set<object>();
  const data = new Set<object>();
  for (let i = 0; i < 5000; i++) {
    const exit = machine.vcpu.run();
    if (exit.kind !== "io") throw new Error("not an io exit");
    exits.add(exit);
    data.add(exit.data);
  }
  assertEquals([exits.size, data.size], [1, 1]);
});
