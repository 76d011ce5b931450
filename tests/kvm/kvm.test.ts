import { assert, assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { Kvm, KvmCap } from "../../ffi/kvm/mod.ts";
import { OsError } from "../../ffi/os/os_error.ts";
import { DisposedError } from "../../src/core/errors.ts";
import { openFds } from "../support/proc.ts";
import { kvmTest } from "../support/require.ts";

Deno.test("a KVM device that is not there says how to get one", () => {
  const error = assertThrows(() => Kvm.open("/dev/no-such-kvm"), OsError);
  assertEquals([error.syscall, error.code], ["open", "ENOENT"]);
  assertStringIncludes(error.message, "load the module kvm_intel or kvm_amd");
});

Deno.test("a device that is not KVM is refused and closed", () => {
  const before = openFds();
  const error = assertThrows(() => Kvm.open("/dev/null"), OsError, '"/dev/null" is not KVM');
  assertEquals(error.code, "ENOTTY");
  assertEquals(openFds(), before);
  assertThrows(() => Kvm.open("a\0b"), TypeError);
});

Deno.test("a device without permission says which group has it", async () => {
  const path = await Deno.makeTempFile();
  try {
    await Deno.chmod(path, 0);
    try {
      Kvm.open(path);
    } catch (error) {
      assert(error instanceof OsError);
      // Root may open it all the same, and then it is not KVM.
      if (error.code === "EACCES") assertStringIncludes(error.message, "add the user to the group");
      else assertEquals(error.code, "ENOTTY");
    }
  } finally {
    await Deno.remove(path);
  }
});

kvmTest("capabilities are numbers, and 0 for one that nobody has", () => {
  using kvm = Kvm.open();
  assert(kvm.checkExtension(KvmCap.NR_MEMSLOTS) >= 32);
  assertEquals(kvm.checkExtension(KvmCap.USER_MEMORY), 1);
  assertEquals(kvm.checkExtension(0xffff), 0);
  assertThrows(() => kvm.checkExtension(-1), RangeError);
  assertThrows(() => kvm.checkExtension(1.5), RangeError);
});

kvmTest("a VM has as many slots as KVM says, and its own name", () => {
  using kvm = Kvm.open();
  using vm = kvm.createVm({ name: "guest 7" });
  assertEquals(vm.capacity, kvm.checkExtension(KvmCap.NR_MEMSLOTS));
  assertEquals([vm.name, vm.disposed], ["guest 7", false]);
  assertEquals(vm.slots, []);
});

kvmTest("dropping all pages when a slot goes can be turned off where KVM has that", () => {
  using kvm = Kvm.open();
  using usual = kvm.createVm();
  assert(usual.zapsAllOnSlotDelete);
  using gentle = kvm.createVm({ zapAllOnSlotDelete: false });
  assertEquals(gentle.zapsAllOnSlotDelete, (kvm.checkExtension(KvmCap.DISABLE_QUIRKS2) & 0x80) === 0);
});

kvmTest("the supported CPUID has leaf 0 with a vendor", () => {
  using kvm = Kvm.open();
  const leaves = kvm.getSupportedCpuid();
  const vendor = leaves.find((leaf) => leaf.function === 0);
  assert(vendor !== undefined && vendor.eax > 0 && vendor.ebx !== 0);
});

kvmTest("a disposed KVM refuses everything, and its VMs go on", () => {
  const kvm = Kvm.open();
  using vm = kvm.createVm();
  kvm[Symbol.dispose]();
  kvm[Symbol.dispose]();
  for (const use of [() => kvm.createVm(), () => kvm.checkExtension(0), () => kvm.getSupportedCpuid()]) {
    assertThrows(use, DisposedError, "Kvm has been disposed");
  }
  using vcpu = vm.createVcpu(0);
  assertEquals(vcpu.getRegs().rip, 0xfff0n);
});
