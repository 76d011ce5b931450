import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { currentThreadId, EventFd, kickThread, Kvm, KvmCap, KvmMpState } from "../../ffi/kvm/mod.ts";
import { OsError } from "../../ffi/os/os_error.ts";
import { DisposedError } from "../../src/core/errors.ts";
import { MemoryRange } from "../../src/core/memory_range.ts";
import { RealModeCode, startRealMode, STOP_PORT, TestMachine, VcpuThread } from "../support/guest.ts";
import { until } from "../clients/runner.ts";
import { fdFlags, openFds } from "../support/proc.ts";
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
  const first = "create the irqchip first (KvmVm.createIrqchip)";
  const message = (use: () => unknown) => assertThrows(use, OsError).message;
  assertEquals(
    message(() => machine.vm.irqLine(4, true)),
    `KVM_IRQ_LINE failed with ENXIO (no such device or address): line 4: ${first}`,
  );
  assertEquals(
    message(() => machine.vm.irqfd(event.fd, 4)),
    `KVM_IRQFD failed with EINVAL (invalid argument): line 4: ${first}`,
  );
  try {
    machine.vm.createPit2(); // older kernels make a timer that nothing listens to
  } catch (error) {
    assert(error instanceof OsError);
    assertEquals(error.message, `KVM_CREATE_PIT2 failed with ENOENT (no such file or directory): ${first}`);
  }
  assertEquals(
    message(() => machine.vm.createIrqchip()),
    "KVM_CREATE_IRQCHIP failed with EINVAL (invalid argument): create the irqchip before the first vCPU",
  );
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

kvmTest("numbers that a struct of the kernel would cut are refused", () => {
  using machine = new TestMachine();
  using kvm = Kvm.open();
  using vm = kvm.createVm();
  vm.createIrqchip();
  using event = new EventFd();
  const beyond = 2 ** 32;
  const uses: (() => unknown)[] = [
    () => vm.ioeventfd(event.fd, { address: 0x1000, length: beyond + 4 }),
    () => vm.ioeventfd(event.fd + beyond, { address: 0x1000, length: 4 }),
    () => vm.ioeventfd(event.fd, { address: 0x1_0010, length: 1, port: true }),
    () => vm.ioeventfd(event.fd, { address: 0x1000, length: 8, value: 1n << 64n }),
    () => vm.ioeventfd(event.fd, { address: 0x1000, length: 8, value: -1n }),
    () => vm.irqfd(event.fd, beyond + 4),
    () => vm.irqfd(event.fd + beyond, 4),
    () => vm.irqLine(beyond + 4, true),
    () => vm.enableCap(beyond + KvmCap.DISABLE_QUIRKS2, [0n]),
    () => vm.enableCap(KvmCap.DISABLE_QUIRKS2, [1n << 64n]),
    () => vm.createVcpu(beyond),
    () => kvm.checkExtension(beyond + KvmCap.USER_MEMORY),
    () => machine.vcpu.mpState = beyond + KvmMpState.RUNNABLE,
    () => kickThread(beyond + currentThreadId()),
  ];
  for (const use of uses) assertThrows(use, RangeError, undefined, String(use));
  assertThrows(
    () => vm.ioeventfd(event.fd, { address: 0x1000, length: 4, value: 7 as unknown as bigint }),
    TypeError,
    "Value must be a bigint, got the number 7: it has 64 bits, write 7n",
  );
  assertThrows(
    () => vm.ioeventfd(event.fd, { address: 0x1000n as unknown as number, length: 4 }),
    TypeError,
    "Address must be a number, got bigint",
  );
});

kvmTest("an eventfd may be disposed before its ioeventfd and its irqfd, which are then taken back all the same", () => {
  using kvm = Kvm.open();
  using vm = kvm.createVm();
  vm.createIrqchip();
  const before = openFds();
  for (let i = 0; i < 3; i++) {
    const event = new EventFd();
    const bell = vm.ioeventfd(event.fd, { address: 0xd000_0000, length: 4 });
    const irq = vm.irqfd(event.fd, 4);
    event[Symbol.dispose]();
    // Another eventfd gets the number, and must be left alone.
    using other = new EventFd();
    bell[Symbol.dispose]();
    irq[Symbol.dispose]();
    assertEquals(other.take(), 0);
  }
  assertEquals(openFds(), before);
  // Nothing is left in the kernel: the same can be had again, and a VM that is disposed first lets go of it.
  const event = new EventFd();
  const bell = vm.ioeventfd(event.fd, { address: 0xd000_0000, length: 4 });
  event[Symbol.dispose]();
  vm[Symbol.dispose]();
  assertEquals(openFds(), before - 1);
  bell[Symbol.dispose]();
});

Deno.test("EventFd.wait() resolves with the count, one waiter after the other, without looking again and again", async () => {
  const before = openFds();
  {
    using event = new EventFd();
    event.signal();
    assertEquals(await event.wait(), 1);
    const [first, second] = [event.wait(), event.wait()];
    event.signal();
    assertEquals(await first, 1);
    event.signal();
    event.signal();
    assertEquals(await second >= 1, true);
    while (event.take() > 0);
    assertEquals(event.take(), 0);
  }
  await until(() => openFds() === before, "the descriptors of the wait are closed");
});

Deno.test("EventFd.wait() ends with its signal and with the eventfd", async () => {
  const event = new EventFd();
  const controller = new AbortController();
  const aborted = event.wait({ signal: controller.signal });
  const disposed = event.wait();
  controller.abort(new Error("enough"));
  await assertRejects(() => aborted, Error, "enough");
  await assertRejects(() => event.wait({ signal: controller.signal }), Error, "enough");
  event[Symbol.dispose]();
  await assertRejects(() => disposed, DisposedError, "EventFd has been disposed");
  await assertRejects(() => event.wait(), DisposedError);
});

/** What is no signal, and one whose methods are something else. */
const NO_SIGNALS: readonly (() => AbortSignal)[] = [
  () => ({ throwIfAborted() {} }) as unknown as AbortSignal,
  () => ({ throwIfAborted() {}, addEventListener() {} }) as unknown as AbortSignal,
  () => Object.create(AbortSignal.prototype),
];

Deno.test("who waits for an eventfd with what is no signal is refused, and takes no count from others", async () => {
  for (const signal of NO_SIGNALS) {
    const event = new EventFd();
    await assertRejects(() => event.wait({ signal: signal() }), TypeError);
    const waiting = event.wait();
    event.signal();
    assertEquals(await waiting, 1);
    event[Symbol.dispose](); // Nobody is left to be told, by a rejection that nobody handles.
  }
  // The listener is no method that a property can hide.
  using event = new EventFd();
  const controller = new AbortController();
  const signal = Object.assign(controller.signal, { addEventListener: 5, removeEventListener: 5 }) as unknown;
  const waiting = event.wait({ signal: signal as AbortSignal });
  controller.abort(new Error("enough"));
  await assertRejects(() => waiting, Error, "enough");
});

kvmTest("a guest in another thread rings a bell that this thread awaits", async () => {
  using machine = new TestMachine();
  using event = new EventFd();
  using _bell = machine.vm.ioeventfd(event.fd, { address: 0x30, length: 1, port: true });
  machine.realMode(new RealModeCode().set(1).out(0x30, 1).out(0x30, 1).out(STOP_PORT, 1).halt().bytes());
  let rung = 0;
  await using thread = await VcpuThread.start(machine.vcpu);
  while (rung < 2) rung += await event.wait();
  assertEquals(rung, 2);
  assertEquals((await thread.ended).end, "stop-port");
}, "IOEVENTFD");
