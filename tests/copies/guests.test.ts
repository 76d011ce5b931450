import { assert, assertEquals } from "@std/assert";
import { GuestMemoryManager, PageSet } from "membacking";
import { Kvm } from "membacking/kvm";
import { crc32 } from "node:zlib";
import { nativeSubject } from "../../examples/clones/native.ts";
import { AT } from "../../examples/clones/warm_guest.ts";
import { startLongMode, touchForever, VcpuThread } from "../support/guest.ts";
import { mappings, openFds } from "../support/proc.ts";
import { kvmTest } from "../support/require.ts";
import { PAGE, range } from "../support/units.ts";

const MIB = 2 ** 20;
const TABLES = PageSet.of([range(0x1_0000, 0x2_0000)]);
const SMALL = { ram: 8 * MIB, pages: 16, rounds: 2, written: 3 };

kvmTest("a guest that is rolled back ten thousand times with its vCPU is each time where it was", () => {
  using kvm = Kvm.open();
  using subject = nativeSubject(kvm, SMALL);
  using guest = subject.template.clone();
  using machine = subject.machine(kvm, guest);
  const checksum = () => crc32(guest.memory.read(AT.input, 4 * PAGE)) + crc32(guest.memory.read(AT.table, 16 * PAGE));
  const before = checksum();
  for (let i = 1; i <= 10_000; i++) {
    assertEquals(machine.ask(i), subject.answer(i));
    // Some processors note in the guest's page tables what it has used.
    assertEquals(guest.rollback().difference(TABLES).count, SMALL.written);
    machine.rewind();
    assertEquals(checksum(), before);
  }
});

kvmTest("a hundred clones of a warm guest answer each its own question, and leave nothing behind", () => {
  using kvm = Kvm.open();
  using subject = nativeSubject(kvm, SMALL);
  const before = {
    fds: openFds(),
    maps: mappings().length,
    left: mappings().filter(({ file }) => /memfd|kvm/.test(file)).length,
  };
  {
    using all = new DisposableStack();
    const clones = Array.from({ length: 100 }, () => {
      const guest = all.use(subject.template.clone());
      return all.use(subject.machine(kvm, guest));
    });
    for (const [i, clone] of clones.entries()) assertEquals(clone.ask(i + 1), subject.answer(i + 1));
  }
  assertEquals(openFds(), before.fds);
  const left = mappings().filter(({ file }) => /memfd|kvm/.test(file)).length;
  // One mapping a clone, whatever it is of, would be a hundred.
  assert(left <= before.left && mappings().length < before.maps + 100, `${left} ${mappings().length}`);
});

kvmTest("a template of a running guest is one moment of it, and the guest goes on without an exit", async () => {
  const [start, end] = [4 * MIB, 5 * MIB];
  using kvm = Kvm.open();
  const controls = new Set<{ pause(): Disposable }>();
  using guest = GuestMemoryManager.create({
    maxAddress: 8 * MIB,
    ram: [{ ranges: [range(0, 8 * MIB)], transparentHugepages: false }],
    quiesce: () => {
      using held = new DisposableStack();
      for (const control of controls) held.use(control.pause());
      return held.move();
    },
  });
  using vm = kvm.createVm();
  using _attached = guest.attachPartition(vm);
  using vcpu = vm.createVcpu(0);
  vcpu.setCpuid2(kvm.getSupportedCpuid());
  const program = touchForever(start, end, PAGE);
  const write = (gpa: number, bytes: Uint8Array) => guest.memory.write(gpa, bytes);
  startLongMode(vcpu, { write, tables: 0x1_0000, code: 0x1000, program, ranges: [{ start: 0, end: 8 * MIB }] });
  const thread = await VcpuThread.start(vcpu);
  controls.add(thread);
  let last = -1;
  for (let i = 0; i < 40; i++) {
    while (guest.memory.readUint32(start) <= last + 1) await new Promise((resolve) => setTimeout(resolve, 0));
    using template = guest.freeze();
    using clone = template.clone();
    // The guest adds one to each page in turn: what it has passed in this sweep is one ahead of the rest.
    const counts = Array.from(
      { length: (end - start) / PAGE },
      (_, page) => clone.memory.readUint32(start + page * PAGE),
    );
    const first = counts[0]!;
    const ahead = counts.findIndex((count) => count !== first);
    const rest = ahead < 0 ? [] : counts.slice(ahead);
    assert(rest.every((count) => count === first - 1), `${first}, and then ${[...new Set(rest)]}`);
    assert(first > last);
    last = first;
    clone[Symbol.dispose]();
    template[Symbol.dispose]();
    if (i % 2 === 0) guest.thaw();
  }
  const { end: how, exits } = await thread.stop();
  assertEquals(how, "asked");
  const { interrupted: _, ...unexpected } = exits;
  assertEquals(unexpected, {});
});

kvmTest("the clones example shows both guests and every answer is right", async () => {
  const { success, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", "--no-check", "examples/clones/main.ts", "--count", "3"],
    cwd: new URL("../../", import.meta.url),
    env: { NO_COLOR: "1" },
  }).output();
  const printed = new TextDecoder().decode(stdout);
  assert(success, printed + new TextDecoder().decode(stderr));
  assert(printed.includes("a native guest with a warm table: 64 MiB of RAM, 3 clones, each answer right"), printed);
  assert(/\d+ questions a second, with rollback/.test(printed), printed);
});
