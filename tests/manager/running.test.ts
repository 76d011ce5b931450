import { assert, assertEquals, assertThrows } from "@std/assert";
import { GuestMemoryManager, Mappable, MemoryLockedError } from "membacking";
import { Kvm, type KvmVcpu } from "membacking/kvm";
import { pollForever, startLongMode, touchForever, VcpuThread } from "../support/guest.ts";
import { kvmTest } from "../support/require.ts";
import { PAGE, range } from "../support/units.ts";

const MIB = 2 ** 20;
const TABLES = 0x1_0000;
const CODE = 0x1000;
const COUNTER = 0x8000;

/** A PC with 8 MiB of RAM and a vCPU set to a long-mode program. */
class Runner implements Disposable {
  readonly guest: GuestMemoryManager;
  readonly vcpu: KvmVcpu;
  readonly #stack: DisposableStack;

  constructor() {
    using stack = new DisposableStack();
    using kvm = Kvm.open();
    const vm = stack.use(kvm.createVm());
    this.vcpu = stack.use(vm.createVcpu(0));
    this.vcpu.setCpuid2(kvm.getSupportedCpuid());
    this.guest = stack.use(GuestMemoryManager.create({
      maxAddress: 64 * MIB,
      ram: [{ ranges: [range(0, 8 * MIB)] }],
      x86Legacy: true,
    }));
    stack.use(this.guest.attachPartition(vm));
    this.#stack = stack.move();
  }

  run(program: Uint8Array): Promise<VcpuThread> {
    const { memory } = this.guest;
    startLongMode(this.vcpu, {
      write: (gpa, bytes) => memory.write(gpa, bytes),
      tables: TABLES,
      code: CODE,
      program,
      ranges: [{ start: 0, end: 64 * MIB }],
    });
    return VcpuThread.start(this.vcpu);
  }

  /** Waits until the guest has counted `more` further values. */
  async counted(more: bigint): Promise<void> {
    const until = this.guest.memory.readBigUint64(COUNTER) + more;
    while (this.guest.memory.readBigUint64(COUNTER) < until) await new Promise((resolve) => setTimeout(resolve, 0));
  }

  [Symbol.dispose](): void {
    this.#stack.dispose();
  }
}

kvmTest("a guest that runs from RAM notices nothing of legacy ranges switched and BARs moved elsewhere", async () => {
  using runner = new Runner();
  const { guest } = runner;
  guest.memory.fill(4 * MIB, 2 * MIB, 0x11);
  const expected = [0x1111_1111_1111_1111n];
  await using thread = await runner.run(
    pollForever({ start: 4 * MIB, end: 6 * MIB, step: 64, expected, counter: COUNTER }),
  );
  await runner.counted(1000n);
  using file = Mappable.memfd("bar", MIB);
  const bar = guest.newDeviceMemory("bar", MIB);
  bar.map({ offset: 0, mappable: file, length: MIB });
  for (let i = 0; i < 100; i++) {
    for (const to of ["read-only", "unmapped", "read-write"] as const) {
      guest.setRamVisibility(range(0xc_0000, 0xc_4000), to);
      guest.setRamVisibility(range(0xf_0000, MIB), to);
    }
    bar.mapToGuest((16 + i % 8) * MIB, true);
  }
  await guest.prefault();
  await runner.counted(1000n);
  const { end, exits, mmio, portWrites } = await thread.stop();
  assertEquals([end, mmio, portWrites], ["asked", [], []]);
  assertEquals(Object.keys(exits).filter((kind) => kind !== "interrupted"), []);
});

kvmTest("a lock shows what a running guest writes, as it writes it, and holds the memory for it", async () => {
  using runner = new Runner();
  const { guest } = runner;
  using file = Mappable.memfd("ring", PAGE);
  const ring = guest.newDeviceMemory("ring", PAGE);
  ring.map({ offset: 0, mappable: file, length: PAGE });
  ring.mapToGuest(16 * MIB, true);
  await using thread = await runner.run(touchForever(16 * MIB, 16 * MIB + PAGE, 8));
  const locked = guest.memory.lock(range(16 * MIB, 16 * MIB + PAGE), { write: true });
  const words = new BigUint64Array(locked.bytes.buffer);
  const [first = 0n] = words;
  for (const until = performance.now() + 5000; words[0] === first && performance.now() < until;);
  assert((words[0] ?? 0n) > first, "the guest's stores show");
  assertThrows(() => ring.unmapFromGuest(), MemoryLockedError);
  assertThrows(() => ring.mapToGuest(32 * MIB, true), MemoryLockedError);
  // An atomic addition of the host's is not lost among the guest's.
  const before = guest.memory.compareExchangeUint32(16 * MIB + PAGE - 4, 0xffff_ffff, 0);
  assert(before < 0xffff_ffff);
  locked[Symbol.dispose]();
  const report = await thread.stop();
  assertEquals([report.end, report.mmio], ["asked", []]);
  ring.unmapFromGuest();
});
