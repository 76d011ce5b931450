import { assert, assertEquals, assertThrows } from "@std/assert";
import { EventFd, Kvm, KvmCap, KvmMpState } from "../../ffi/kvm/mod.ts";
import { OsError } from "../../ffi/os/os_error.ts";
import { DisposedError } from "../../src/core/errors.ts";
import { MemoryRange } from "../../src/core/memory_range.ts";
import { RealModeCode, startRealMode, TestMachine } from "../support/guest.ts";
import { fdFlags } from "../support/proc.ts";
import { kvmTest } from "../support/require.ts";

Deno.test("an eventfd counts, is emptied by taking, never waits, and is close-on-exec", () => {
  const event = new EventFd();
  assertEquals(event.take(), 0);
  event.signal();
  event.signal();
  assertEquals([event.take(), event.take()], [2, 0]);
  const { fd } = event;
  assertEquals(fdFlags(fd), 1);
  event[Symbol.dispose]();
  event[Symbol.dispose]();
  assertEquals(fdFlags(fd), undefined);
  for (const use of [() => event.fd, () => event.signal(), () => event.take()]) assertThrows(use, DisposedError);
});

kvmTest("a guest write to an ioeventfd signals it and does not leave the guest", () => {
  using machine = new TestMachine();
  using event = new EventFd();
  const doorbell = 0xd000_0000;
  using _memory = machine.vm.ioeventfd(event.fd, { address: doorbell, length: 4 });
  using _port = machine.vm.ioeventfd(event.fd, { address: 0x30, length: 1, port: true });
  machine.realMode(
    new RealModeCode().set(1).store(doorbell, 4).store(doorbell, 4).out(0x30, 1).out(0x10, 1).halt().bytes(),
  );
  const exit = machine.vcpu.run();
  assert(exit.kind === "io" && exit.port === 0x10, exit.kind);
  assertEquals(event.take(), 3);
}, "IOEVENTFD");

kvmTest("an ioeventfd may want one value, and other writes leave the guest", () => {
  using machine = new TestMachine();
  using event = new EventFd();
  using _match = machine.vm.ioeventfd(event.fd, { address: 0xd000_0000, length: 4, value: 7n });
  machine.realMode(
    new RealModeCode().set(7).store(0xd000_0000, 4).set(8).store(0xd000_0000, 4).halt().bytes(),
  );
  const exit = machine.vcpu.run();
  assert(exit.kind === "mmio" && exit.isWrite && exit.data[0] === 8);
  assertEquals(event.take(), 1);
}, "IOEVENTFD");

kvmTest("an ioeventfd that was taken back is an exit again; two at one address are EEXIST", () => {
  using machine = new TestMachine();
  using event = new EventFd();
  const where = { address: 0x30, length: 1, port: true };
  const registered = machine.vm.ioeventfd(event.fd, where);
  assertEquals(assertThrows(() => machine.vm.ioeventfd(event.fd, where), OsError, "port 0x30").code, "EEXIST");
  registered[Symbol.dispose]();
  registered[Symbol.dispose]();
  machine.realMode(new RealModeCode().out(0x30, 1).halt().bytes());
  assertEquals(machine.vcpu.run().kind, "io");
  assertEquals(event.take(), 0);
  const late = machine.vm.ioeventfd(event.fd, where);
  machine.vm[Symbol.dispose]();
  late[Symbol.dispose]();
}, "IOEVENTFD");

kvmTest("an irqfd and an interrupt line wake a halted guest through the in-kernel controllers", () => {
  using machine = new TestMachine();
  using kvm = Kvm.open();
  for (const how of ["line", "eventfd"]) {
    using vm = kvm.createVm();
    vm.setTssAddress(0xfffb_d000);
    vm.setIdentityMapAddress(0xfffb_c000);
    vm.createIrqchip();
    vm.createPit2();
    vm.mapRange(machine.va.base, new MemoryRange(0, machine.ram.size), { writable: true, executable: true });
    using vcpu = vm.createVcpu(0);
    vcpu.mpState = KvmMpState.RUNNABLE;
    machine.ram.write(0x24 * 4, new Uint8Array([0x00, 0x80, 0x00, 0x00]));
    machine.ram.write(0x8000, new RealModeCode().set(0x55).out(0x10, 1).bytes());
    // Sets the first PIC up: ICW1, vectors from 0x20, a PIC behind line 2, 8086 mode, all lines open; then waits.
    const init = [[0x20, 0x11], [0x21, 0x20], [0x21, 4], [0x21, 1], [0x21, 0]] as const;
    const code = new RealModeCode();
    for (const [port, value] of init) code.set(value).out(port, 1);
    machine.ram.write(0x1000, code.out(0x11, 1).raw(0xfb).halt().bytes());
    startRealMode(vcpu, 0x1000, { rsp: 0x7000n });
    const ready = vcpu.run();
    assert(ready.kind === "io" && ready.port === 0x11, ready.kind);
    using event = new EventFd();
    if (how === "line") {
      vm.irqLine(4, true);
      vm.irqLine(4, false);
    } else {
      using _irq = vm.irqfd(event.fd, 4);
      event.signal();
    }
    const exit = vcpu.run();
    assert(exit.kind === "io" && exit.port === 0x10 && exit.data[0] === 0x55, `${how}: ${exit.kind}`);
  }
}, "IRQCHIP");

kvmTest("interrupt requests without in-kernel controllers are errors", () => {
  using machine = new TestMachine();
  using event = new EventFd();
  assertThrows(() => machine.vm.irqLine(4, true), OsError, "KVM_IRQ_LINE failed with ENXIO");
  assertThrows(() => machine.vm.irqfd(event.fd, 4), OsError, "KVM_IRQFD failed with EINVAL");
  assertThrows(() => machine.vm.irqLine(-1, true), RangeError);
  assertThrows(() => machine.vm.ioeventfd(-1, { address: 0, length: 1 }), RangeError);
  assertThrows(() => machine.vm.ioeventfd(event.fd, { address: 0, length: 3 }), OsError, "EINVAL");
});

kvmTest("a capability that KVM does not have is EINVAL", () => {
  using machine = new TestMachine();
  assertThrows(() => machine.vm.enableCap(0xffff), OsError, "KVM_ENABLE_CAP failed with EINVAL");
  assertThrows(() => machine.vm.enableCap(KvmCap.DISABLE_QUIRKS2, [0n, 0n, 0n, 0n, 0n]), RangeError);
  assertThrows(() => machine.vm.enableCap(-1), RangeError);
});
