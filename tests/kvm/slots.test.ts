import { assert, assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { Kvm, type KvmVm } from "../../ffi/kvm/mod.ts";
import { Mappable } from "../../ffi/files/mappable.ts";
import { OsError } from "../../ffi/os/os_error.ts";
import { lockCount } from "../../ffi/host/page_locks.ts";
import { HostAddresses } from "../../ffi/host/host_addresses.ts";
import { DisposedError, MappingError } from "../../src/core/errors.ts";
import { MemoryRange } from "../../src/core/memory_range.ts";
import { status } from "../support/proc.ts";
import { kvmTest } from "../support/require.ts";
import { PAGE } from "../support/units.ts";

const READ_WRITE = { writable: true, executable: true };
const READ_ONLY = { writable: false, executable: true };

/** A VM, and 1 MiB of memory at the beginning of 4 GiB of addresses. */
class Setup implements Disposable {
  readonly va = HostAddresses.reserve(2 ** 32);
  readonly memory = Mappable.memfd("ram", 2 ** 20);
  readonly vm: KvmVm;

  constructor() {
    using kvm = Kvm.open();
    this.vm = kvm.createVm();
    this.va.map(0, 2 ** 20, this.memory, 0, true, undefined);
  }

  map(start: number, end: number, access = READ_WRITE): void {
    this.vm.mapRange(this.va.base + start, new MemoryRange(start, end), access);
  }

  unmap(start: number, end: number): void {
    this.vm.unmapRange(new MemoryRange(start, end));
  }

  /** The slots as `number: range access`. */
  get slots(): string[] {
    return this.vm.slots.map(({ slot, range, hva, writable }) => {
      assertEquals(hva, this.va.base + range.start);
      return `${slot}: ${range} ${writable ? "rw" : "ro"}`;
    });
  }

  [Symbol.dispose](): void {
    this.vm[Symbol.dispose]();
    this.va[Symbol.dispose]();
    this.memory[Symbol.dispose]();
  }
}

kvmTest("slots show in the order of their addresses, with the access they were made with", () => {
  using host = new Setup();
  host.map(0x8000, 0x9000, READ_ONLY);
  host.map(0, 0x4000);
  assertEquals(host.slots, ["1: 0x0-0x4000 rw", "0: 0x8000-0x9000 ro"]);
});

kvmTest("a slot number that was given back is used again", () => {
  using host = new Setup();
  for (let i = 0; i < 4; i++) host.map(i * PAGE, (i + 1) * PAGE);
  host.unmap(PAGE, 2 * PAGE);
  host.unmap(3 * PAGE, 4 * PAGE);
  host.map(8 * PAGE, 9 * PAGE);
  host.map(9 * PAGE, 10 * PAGE);
  host.map(10 * PAGE, 11 * PAGE);
  assertEquals(host.slots.map((slot) => Number.parseInt(slot)).sort(), [0, 1, 2, 3, 4]);
});

kvmTest("a slot over another is EEXIST, and changes nothing", () => {
  using host = new Setup();
  host.map(0x2000, 0x4000);
  for (const [start, end] of [[0x2000, 0x4000], [0x3000, 0x5000], [0, 0x8000], [0x2000, 0x3000]] as const) {
    const error = assertThrows(() => host.map(start, end), OsError, "another slot overlaps");
    assertEquals([error.syscall, error.code], ["KVM_SET_USER_MEMORY_REGION", "EEXIST"]);
  }
  host.map(0x4000, 0x5000);
  assertEquals(host.slots, ["0: 0x2000-0x4000 rw", "1: 0x4000-0x5000 rw"]);
});

kvmTest("only exactly a mapped range can be unmapped", () => {
  using host = new Setup();
  host.map(0x2000, 0x4000);
  for (const [start, end] of [[0x2000, 0x3000], [0x3000, 0x4000], [0x2000, 0x5000], [0, 0x4000], [0x6000, 0x7000]]) {
    const range = new MemoryRange(start ?? 0, end ?? 0);
    const error = assertThrows(() => host.vm.unmapRange(range), MappingError, `exactly ${range}`);
    assertEquals(error.range, range);
  }
  host.unmap(0x2000, 0x4000);
  assertThrows(() => host.unmap(0x2000, 0x4000), MappingError);
});

kvmTest("bad host addresses and empty ranges are refused before KVM sees them", () => {
  using host = new Setup();
  const range = new MemoryRange(0, PAGE);
  for (const hva of [-PAGE, 1, 0.5, NaN, 2 ** 47, 2 ** 60]) {
    assertThrows(() => host.vm.mapRange(hva, range, READ_WRITE), RangeError);
  }
  // A range of length 0 would delete the slot.
  assertThrows(() => host.vm.mapRange(host.va.base, MemoryRange.EMPTY, READ_WRITE), RangeError, "empty");
  assertEquals(host.slots, []);
});

kvmTest(
  "a range that says now one thing and now another, or what no range can, makes and deletes no slot of others",
  () => {
    using host = new Setup();
    host.map(0, 0x4000);
    host.map(0x8000, 0x9000);
    const slots = host.slots;
    class Changing extends MemoryRange {
      asked = 0;
      override get length(): number {
        return this.asked++ === 0 ? PAGE : 2 ** 50;
      }
    }
    const lie = (start: number, end: number) =>
      Object.create(MemoryRange.prototype, { start: { value: start }, end: { value: end } });
    const lies: unknown[] = [
      { start: 0, end: 0x4000, length: 0x4000 },
      lie(NaN, NaN),
      lie(0, NaN),
      lie(2 ** 60, 2 ** 61),
      lie(1, 0x1000),
      lie(0x2000, 0x1000),
      null,
    ];
    for (const range of lies as MemoryRange[]) {
      for (
        const use of [
          () => host.vm.mapRange(host.va.base, range, READ_WRITE),
          () => host.vm.unmapRange(range),
          () => host.vm.setDirtyLog(range, true),
          () => host.vm.takeDirty(range, () => {}),
          () => host.vm.prefetchRange(range),
          () => host.vm.pinRange(range),
          () => host.vm.unpinRange(range),
        ]
      ) {
        try {
          use();
          throw new Error(`${use} took ${Deno.inspect(range)}`);
        } catch (error) {
          assert(error instanceof TypeError || error instanceof RangeError, String(error));
        }
      }
    }
    // What a subclass says about its length is not asked.
    host.vm.mapRange(host.va.base + 0x1_0000, new Changing(0x1_0000, 0x1_1000), READ_WRITE);
    assertEquals(host.slots, [...slots, "2: 0x10000-0x11000 rw"]);
  },
);

kvmTest("every slot KVM has can be used, and one more is an error", () => {
  using host = new Setup();
  const { vm, va } = host;
  const range = (i: number) => MemoryRange.of(2 * i * PAGE, PAGE);
  for (let i = 0; i < vm.capacity; i++) vm.mapRange(va.base, range(i), READ_WRITE);
  const error = assertThrows(() => vm.mapRange(va.base, range(vm.capacity), READ_WRITE), OsError);
  assertStringIncludes(error.message, `all ${vm.capacity} slots are in use`);
  assertEquals(vm.slots.length, vm.capacity);
  vm.unmapRange(range(5));
  vm.mapRange(va.base, range(vm.capacity), READ_WRITE);
  assertEquals(vm.slots.at(5)?.range, range(6));
  assertEquals(vm.slots.at(-1), { slot: 5, range: range(vm.capacity), hva: va.base, writable: true });
});

/** One past the highest guest-physical address that CPUID 0x80000008 gives a guest. */
function addressLimit(): number {
  using kvm = Kvm.open();
  const sizes = kvm.getSupportedCpuid().find((leaf) => leaf.function === 0x8000_0008);
  assert(sizes !== undefined);
  return 2 ** (sizes.eax & 0xff);
}

kvmTest("addresses above 4 GiB arrive whole, up to the highest that the CPU has", () => {
  using host = new Setup();
  const limit = addressLimit();
  const high = MemoryRange.of(2 ** 33, PAGE);
  host.vm.mapRange(host.va.base, high, READ_WRITE);
  assertThrows(() => host.vm.mapRange(host.va.base, high, READ_WRITE), OsError, "EEXIST");
  host.vm.unmapRange(high);
  host.vm.mapRange(host.va.base, MemoryRange.of(limit - PAGE, PAGE), READ_WRITE);
  assertEquals(host.vm.slots.map(({ range }) => range.end), [limit]);
});

kvmTest("an address that the CPU does not have is an error that says so, where KVM does not take it", () => {
  using host = new Setup();
  const limit = addressLimit();
  for (const range of [MemoryRange.of(limit, PAGE), new MemoryRange(limit - PAGE, limit + PAGE)]) {
    try {
      host.vm.mapRange(host.va.base, range, READ_WRITE);
      // A KVM that builds the page tables itself takes whatever fits them: 52 bits.
      host.vm.unmapRange(range);
    } catch (error) {
      assert(error instanceof OsError && error.code === "EINVAL");
      const bits = Math.log2(limit);
      assertStringIncludes(
        error.message,
        `cannot map ${range}: its end is beyond the ${bits} bits of a guest-physical address on this CPU ` +
          `(CPUID 0x80000008), the highest is 0x${(limit - 1).toString(16)}`,
      );
    }
    assertEquals(host.slots, []);
  }
});

kvmTest("prefetching brings memory in, over several slots too", () => {
  using host = new Setup();
  host.map(0, 0x8000);
  host.map(0x8000, 0x1_0000, READ_ONLY);
  host.vm.prefetchRange(new MemoryRange(0x4000, 0xc000));
  host.vm.prefetchRange(new MemoryRange(0x1000, 0x2000));
  assertThrows(() => host.vm.prefetchRange(new MemoryRange(0xc000, 0x2_0000)), MappingError, "0x10000");
  host.map(2 ** 20, 2 ** 20 + PAGE);
  assertThrows(() => host.vm.prefetchRange(MemoryRange.of(2 ** 20, PAGE)), OsError, "madvise");
});

kvmTest("pinned memory is locked once per VM, however often it is pinned", () => {
  using host = new Setup();
  const before = status("VmLck");
  const locked = () => status("VmLck") - before;
  host.map(0, 0x1_0000);
  const whole = new MemoryRange(0, 0x1_0000);
  host.vm.pinRange(whole);
  host.vm.pinRange(whole);
  host.vm.pinRange(new MemoryRange(0x2000, 0x4000));
  assertEquals([locked(), lockCount(host.va.base + 0x2000)], [64, 1]);
  host.vm.unpinRange(new MemoryRange(0x2000, 0x4000));
  assertEquals([locked(), lockCount(host.va.base + 0x2000)], [56, 0]);
  host.vm.unpinRange(whole);
  assertEquals(locked(), 0);
  host.vm.unpinRange(whole);
});

kvmTest("pinning again takes hold of memory that was replaced", () => {
  using host = new Setup();
  const before = status("VmLck");
  host.map(0, 0x4000);
  const range = new MemoryRange(0, 0x4000);
  host.vm.pinRange(range);
  host.va.map(0, 0x4000, host.memory, 0x8000, true, undefined);
  assertEquals(status("VmLck"), before);
  host.vm.pinRange(range);
  assertEquals(status("VmLck"), before + 16);
});

kvmTest("memory pinned by two VMs stays locked until both have let go", () => {
  using host = new Setup();
  using other = new Setup();
  const before = status("VmLck");
  const range = new MemoryRange(0, 0x4000);
  host.map(0, 0x4000);
  other.vm.mapRange(host.va.base, range, READ_WRITE);
  host.vm.pinRange(range);
  other.vm.pinRange(range);
  host.vm.unpinRange(range);
  assertEquals(status("VmLck"), before + 16);
  other.vm[Symbol.dispose]();
  assertEquals(status("VmLck"), before);
});

kvmTest("a pin outlives the slot, and goes with the VM", () => {
  using host = new Setup();
  const before = status("VmLck");
  host.map(0, 0x4000);
  host.vm.pinRange(new MemoryRange(0, 0x4000));
  host.unmap(0, 0x4000);
  host.map(0, 0x4000, READ_ONLY);
  assertEquals(status("VmLck"), before + 16);
  host.unmap(0, 0x4000);
  host.va[Symbol.dispose]();
  host.vm[Symbol.dispose]();
  assertEquals(status("VmLck"), before);
});

kvmTest("a pin that fails pins nothing", () => {
  using host = new Setup();
  const before = status("VmLck");
  host.map(0, 0x4000);
  host.map(2 ** 20, 2 ** 20 + PAGE);
  host.vm.mapRange(host.va.base + 2 ** 20, new MemoryRange(0x4000, 0x5000), READ_WRITE);
  assertThrows(() => host.vm.pinRange(new MemoryRange(0, 0x5000)), OsError, "mlock");
  assertThrows(() => host.vm.pinRange(new MemoryRange(0, 0x8000)), MappingError, "no memory slot at 0x5000");
  assertEquals([status("VmLck"), lockCount(host.va.base)], [before, 0]);
});

kvmTest("everything on a disposed VM is DisposedError", () => {
  const host = new Setup();
  host.map(0, PAGE);
  const { vm } = host;
  vm[Symbol.dispose]();
  vm[Symbol.dispose]();
  const range = new MemoryRange(0, PAGE);
  const uses = [
    () => vm.fd,
    () => vm.mapRange(host.va.base, range, READ_WRITE),
    () => vm.unmapRange(range),
    () => vm.prefetchRange(range),
    () => vm.pinRange(range),
    () => vm.createVcpu(0),
    () => vm.createIrqchip(),
    () => vm.createPit2(),
    () => vm.setTssAddress(0),
    () => vm.setIdentityMapAddress(0),
    () => vm.irqLine(0, true),
    () => vm.ioeventfd(0, { address: 0, length: 4 }),
    () => vm.irqfd(0, 0),
    () => vm.enableCap(0),
  ];
  for (const use of uses) assertThrows(use, DisposedError, "KVM VM has been disposed");
  assert(vm.disposed);
  assertEquals(vm.slots, []);
  host[Symbol.dispose]();
});
