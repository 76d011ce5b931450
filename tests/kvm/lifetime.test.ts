import { assert, assertEquals } from "@std/assert";
import { Kvm } from "../../ffi/kvm/mod.ts";
import { REQUEST } from "../../ffi/kvm/ioctl.ts";
import { libc } from "../../ffi/os/libc.ts";
import { Mappable } from "../../ffi/files/mappable.ts";
import { F_DUPFD_CLOEXEC } from "../../ffi/os/mman.ts";
import { unwrap } from "../../ffi/os/os_error.ts";
import { HostAddresses } from "../../ffi/host/host_addresses.ts";
import { MemoryRange } from "../../src/core/memory_range.ts";
import { pollForever, startLongMode, TestMachine, VcpuThread } from "../support/guest.ts";
import { mappings, openFds } from "../support/proc.ts";
import { RunningVcpu } from "../clients/runner.ts";
import { kvmTest } from "../support/require.ts";

const READ_WRITE = { writable: true, executable: true };

function isReserved(base: number): boolean {
  return mappings(base, base + 0x1000).length > 0;
}

kvmTest("host addresses outlive every slot over them, whatever is disposed first", () => {
  using kvm = Kvm.open();
  for (const order of [["va", "vm", "vcpu"], ["vm", "va", "vcpu"], ["vcpu", "va", "vm"], ["va", "vcpu", "vm"]]) {
    const va = HostAddresses.reserve(2 ** 30);
    const vm = kvm.createVm();
    const vcpu = vm.createVcpu(0);
    vm.mapRange(va.base, new MemoryRange(0, 0x1000), READ_WRITE);
    vm.mapRange(va.base + 0x2000, new MemoryRange(0x2000, 0x3000), READ_WRITE);
    const left = new Set(order);
    for (const name of order) {
      ({ va, vm, vcpu })[name as "va" | "vm" | "vcpu"][Symbol.dispose]();
      left.delete(name);
      assertEquals(isReserved(va.base), left.has("va") || left.has("vm"), `${order}: after ${name}`);
    }
  }
});

kvmTest("deleting the last slot lets go of a mapper that was disposed", () => {
  using kvm = Kvm.open();
  using vm = kvm.createVm();
  const va = HostAddresses.reserve(2 ** 30);
  const [a, b] = [new MemoryRange(0, 0x1000), new MemoryRange(0x2000, 0x3000)];
  vm.mapRange(va.base, a, READ_WRITE);
  vm.mapRange(va.base, b, READ_WRITE);
  va[Symbol.dispose]();
  vm.unmapRange(a);
  assert(isReserved(va.base));
  vm.unmapRange(b);
  assert(!isReserved(va.base));
});

kvmTest("a vCPU that outlives its VM reaches no memory any more", async () => {
  using memory = Mappable.memfd("ram", 2 ** 21);
  using machine = new TestMachine();
  const { vm, va, vcpu } = machine;
  machine.longMode(pollForever({ start: 0x8000, end: 0x9000, step: 8, expected: [], counter: 0x9000 }));
  assertEquals(vcpu.run().kind, "io");
  // In a thread of its own: some KVMs keep a guest without memory inside for good.
  const running = new RunningVcpu(vcpu);
  vm[Symbol.dispose]();
  va[Symbol.dispose]();
  assert(!isReserved(va.base));
  // Something else gets the addresses at once, and must not be written.
  using other = HostAddresses.reserve(2 ** 32);
  other.map(0, 2 ** 21, memory, 0, true, undefined);
  const stopped = running.running.then(() => new Promise((resolve) => setTimeout(resolve, 100))).then(() =>
    running.stop()
  );
  const end = await Promise.race([stopped, running.ended]).catch(String);
  if (typeof end === "string") assert(end.includes("KVM_RUN failed"), end);
  else assertEquals(end.io, undefined, "the guest still reads its old memory");
  const bytes = new Uint8Array(2 ** 21);
  memory.read(0, bytes);
  assert(bytes.every((byte) => byte === 0));
});

kvmTest("a VM whose descriptor was handed out gives its memory back all the same", () => {
  using kvm = Kvm.open();
  using va = HostAddresses.reserve(2 ** 30);
  const vm = kvm.createVm();
  vm.mapRange(va.base, new MemoryRange(0, 0x2000), READ_WRITE);
  const { sys, errno } = libc();
  const copy = unwrap(sys.fcntl(vm.fd, F_DUPFD_CLOEXEC, 0), errno[0], "fcntl");
  vm[Symbol.dispose]();
  // Slot 0 with another size: KVM refuses that for a slot that is still there.
  const region = new BigUint64Array([0n, 0n, 0x1000n, BigInt(va.base)]);
  assertEquals(sys.ioctl(copy, REQUEST.KVM_SET_USER_MEMORY_REGION, region), 0);
  sys.close(copy);
});

kvmTest("a VM can be disposed while its guest runs in another thread", async () => {
  using memory = Mappable.memfd("ram", 2 ** 24);
  const va = HostAddresses.reserve(2 ** 30);
  va.map(0, 2 ** 24, memory, 0, true, undefined);
  using kvm = Kvm.open();
  const vm = kvm.createVm();
  vm.mapRange(va.base, new MemoryRange(0, 2 ** 24), READ_WRITE);
  const vcpu = vm.createVcpu(0);
  vcpu.setCpuid2(kvm.getSupportedCpuid());
  startLongMode(vcpu, {
    write: (gpa, bytes) => memory.write(gpa, bytes),
    tables: 0x1_0000,
    code: 0x1000,
    ranges: [{ start: 0, end: 2 ** 24 }],
    program: pollForever({ start: 0x80_0000, end: 0x90_0000, step: 8, expected: [0], counter: 0x8000 }),
  });
  const thread = await VcpuThread.start(vcpu);
  va[Symbol.dispose]();
  vm[Symbol.dispose]();
  assert(!isReserved(va.base));
  const { end } = await thread.stop();
  vcpu[Symbol.dispose]();
  assert(["asked", "shutdown", "internal-error", "error"].includes(end), end);
});

kvmTest("a thousand VMs with vCPUs and slots leave no descriptor and no mapping behind", () => {
  using kvm = Kvm.open();
  using va = HostAddresses.reserve(2 ** 30);
  const cycle = (i: number) => {
    const vm = kvm.createVm({ zapAllOnSlotDelete: i % 2 === 0 });
    vm.mapRange(va.base, new MemoryRange(0, 0x1000), READ_WRITE);
    const vcpu = vm.createVcpu(0);
    vcpu.getRegs();
    const all = i % 4 < 2 ? [vm, vcpu] : [vcpu, vm];
    for (const one of all) one[Symbol.dispose]();
  };
  for (let i = 0; i < 100; i++) cycle(i);
  const before = openFds();
  const vmasBefore = mappings().length;
  for (let i = 0; i < 1000; i++) cycle(i);
  assertEquals(openFds(), before);
  assert(mappings().length < vmasBefore + 20);
  assertEquals(mappings().filter(({ file }) => file.includes("kvm")), []);
});
