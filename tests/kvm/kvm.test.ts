import { assert, assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { Kvm, KvmCap } from "../../ffi/kvm/mod.ts";
import type { KvmCpuidEntry } from "../../ffi/kvm/cpuid_msrs.ts";
import { openAdvice } from "../../ffi/kvm/open_error.ts";
import { libc } from "../../ffi/os/libc.ts";
import { Errno, OsError } from "../../ffi/os/os_error.ts";
import { DisposedError } from "../../src/core/errors.ts";
import { openFds, readProc } from "../support/proc.ts";
import { kvmTest, testUnless } from "../support/require.ts";

Deno.test("a KVM device that is not there says how to get one", () => {
  const error = assertThrows(() => Kvm.open("/dev/no-such-kvm"), OsError);
  assertEquals([error.syscall, error.code], ["open", "ENOENT"]);
  assertEquals(
    error.message,
    'open failed with ENOENT (no such file or directory): "/dev/no-such-kvm": there is no such device, ' +
      "KVM is usually /dev/kvm",
  );
  assertEquals(
    openAdvice("/dev/kvm", Errno.ENOENT, () => undefined),
    "load the module kvm_intel or kvm_amd, and allow virtualization in the firmware or the enclosing hypervisor",
  );
});

Deno.test("a KVM device that may not be used says who may", () => {
  const advice = (mode: number, group = "kvm") => openAdvice("/dev/kvm", Errno.EACCES, () => ({ mode, uid: 7, group }));
  assertEquals(advice(0o20660), "add the user to the group kvm, which may use it, and log in again");
  assertEquals(
    advice(0o20600),
    "its mode 0600 lets only its owner (user 7) use it: run as that user, or let a group use it, " +
      'as by a udev rule with GROUP="kvm" and MODE="0660"',
  );
  assertEquals(
    advice(0o20666),
    "its mode 0666 lets everybody use it, so a container's device rules or a security module forbid it",
  );
});

Deno.test("a device that is not KVM is refused and closed", () => {
  const before = openFds();
  const error = assertThrows(() => Kvm.open("/dev/null"), OsError, '"/dev/null" is not KVM');
  assertEquals(error.code, "ENOTTY");
  assertEquals(openFds(), before);
  assertThrows(() => Kvm.open("a\0b"), TypeError);
});

testUnless(
  Deno.uid() === 0 ? undefined : "only root can be somebody else",
  "a device that another user may not open says what its mode is",
  async () => {
    const path = await Deno.makeTempFile();
    try {
      await Deno.chmod(path, 0o600);
      const SYS_SETFSUID = 122n;
      const asUser = (uid: bigint) => libc().sys.syscall3(SYS_SETFSUID, uid, 0n, 0n);
      asUser(65534n);
      try {
        const error = assertThrows(() => Kvm.open(path), OsError);
        assertEquals(error.code, "EACCES");
        assertStringIncludes(error.message, "its mode 0600 lets only its owner (user 0) use it");
      } finally {
        asUser(0n);
      }
    } finally {
      await Deno.remove(path);
    }
  },
);

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

kvmTest("the supported CPUID is the same whichever processor is asked", () => {
  const kvm = new URL("../../ffi/kvm/mod.ts", import.meta.url).href;
  const program = `import { Kvm } from "${kvm}"; console.log(JSON.stringify(Kvm.open().getSupportedCpuid()));`;
  const allowed = /^Cpus_allowed_list:\s*(.+)$/m.exec(readProc("/proc/self/status"))?.[1] ?? "";
  const askedOn = (processor = ""): KvmCpuidEntry[] => {
    const args = ["-c", processor, Deno.execPath(), "eval", "--no-check", program];
    return JSON.parse(
      new TextDecoder().decode(new Deno.Command("taskset", { args, stderr: "inherit" }).outputSync().stdout),
    );
  };
  const processors = allowed.split(/[-,]/);
  const leaves = askedOn(processors[0]);
  assertEquals(askedOn(processors.at(-1)), leaves);
  // Which number a vCPU has is not for KVM to say.
  for (const { function: leaf, ebx, edx } of leaves) {
    if (leaf === 1) assertEquals(ebx >>> 24, 0);
    if (leaf === 0xb || leaf === 0x1f) assertEquals(edx, 0);
  }
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

kvmTest("the example of Kvm runs a guest", async () => {
  const source = Deno.readTextFileSync(new URL("../../ffi/kvm/kvm.ts", import.meta.url));
  const [, example = ""] = /@example Usage\n \* ```ts ignore\n([\s\S]*?) \* ```/.exec(source) ?? [];
  const program = example.replace(/^ \* ?/gm, "") + "console.log(exit.kind, vm.slots.length);\n";
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "--no-prompt", "--allow-ffi", "-"],
    cwd: new URL("../../", import.meta.url),
    ...{ stdin: "piped", stdout: "piped", stderr: "piped" },
  }).spawn();
  const input = child.stdin.getWriter();
  await input.write(new TextEncoder().encode(program));
  await input.close();
  const { stdout, stderr } = await child.output();
  assertEquals([new TextDecoder().decode(stdout), new TextDecoder().decode(stderr)], ["io 1\n", ""]);
});

Deno.test("deno doc shows the accessors of a vCPU", async () => {
  const { stdout } = await new Deno.Command(Deno.execPath(), {
    args: ["doc", "--filter", "KvmVcpu", new URL("../../ffi/kvm/mod.ts", import.meta.url).pathname],
    env: { NO_COLOR: "1" },
  }).output();
  const text = new TextDecoder().decode(stdout);
  for (
    const shown of [
      "immediateExit: boolean",
      "requestInterruptWindow: boolean",
      "readyForInterrupt: boolean",
      "mpState: number",
    ]
  ) {
    assertStringIncludes(text, shown);
  }
});
