import { HostAddresses } from "../../ffi/host/host_addresses.ts";
import { assert, assertEquals, assertLess, assertThrows } from "@std/assert";
import { Mappable, MappingError, RegionManager } from "membacking";
import { Kvm, KvmVcpu } from "membacking/kvm";
import { spareMappings } from "../../ffi/host/mapping_budget.ts";
import { touchForever, VcpuThread } from "../support/guest.ts";
import { mappings, openFds, status } from "../support/proc.ts";
import { kvmTest } from "../support/require.ts";
import { Machine } from "./machine.ts";
import { Witness } from "./witness.ts";
import { range } from "../support/units.ts";

const RESERVED = 2 ** 32;

/** What the process has that could leak. */
interface Holdings {
  readonly fds: number;
  /** The files and devices that are mapped. */
  readonly files: readonly string[];
  /** Locked memory in KiB. */
  readonly locked: number;
  /** How many mappings may still be made, by our own account. */
  readonly spare: number;
  /** Address space that is reserved, in bytes. V8 has some, and takes more or less of it. */
  readonly reserved: number;
}

function holdings(): Holdings {
  const vmas = mappings();
  const sizes = vmas.filter(({ access }) => access === "---p").map(({ start, end }) => end - start);
  return {
    fds: openFds(),
    files: vmas.filter(({ file }) => /^\/memfd:|anon_inode/.test(file)).map(({ file }) => file).sort(),
    locked: status("VmLck"),
    spare: spareMappings(),
    reserved: sizes.reduce((sum, size) => sum + size, 0),
  };
}

/** Throws if the process has more than before, or less. */
function assertKept(before: Holdings): void {
  const { reserved, ...now } = holdings();
  const { reserved: reservedBefore, ...rest } = before;
  assertEquals(now, rest);
  assertLess(Math.abs(reserved - reservedBefore), RESERVED, "a reservation is left");
}

/** One of everything, made and disposed. */
function cycle(kvm: Kvm, i: number): void {
  using va = HostAddresses.reserve(RESERVED);
  using regions = new RegionManager(va, { overlap: "any" });
  using file = Mappable.memfd("leak", 0x1_0000);
  using other = file.clone();
  using vm = kvm.createVm({ zapAllOnSlotDelete: i % 2 === 0 });
  using _vcpu = vm.createVcpu(0);
  const attached = regions.addPartition(vm, { pin: i % 3 === 0, offset: i % 5 * 0x10_0000 });
  const region = regions.newRegion({ name: "ram", range: range(0, 0x1_0000), priority: 1 });
  region.addMapping({ rangeInRegion: range(0, 0x1_0000), mappable: other });
  region.map({ prefetch: i % 7 === 0 });
  region.addMapping({ rangeInRegion: range(0x4000, 0x8000), mappable: file, fileOffset: 0x8000, writable: false });
  region.removeMappings(range(0xc000, 0xd000));
  const top = regions.newRegion({ name: "top", range: range(0x2000, 0x6000), priority: 2, holes: "fault" });
  top.addMapping({ rangeInRegion: range(0x1000, 0x2000), mappable: file });
  top.map({ writable: false });
  regions.newRegion({ name: "private", range: range(0x10_0000, 0x10_4000), priority: 0 })
    .addMapping({ rangeInRegion: range(0, 0x4000), mappable: "private" });

  // What fails leaves nothing either.
  const wrong = { name: "wrong", range: range(0x8000, RESERVED + 0x1000), priority: 1 };
  assertThrows(() => regions.newRegion(wrong), RangeError);
  const tooLong = { rangeInRegion: range(0, 0x1_0000), mappable: file, fileOffset: 0x1000 };
  assertThrows(() => region.addMapping(tooLong), MappingError);
  assertThrows(
    () =>
      regions.batch(() => {
        region.addMapping({ rangeInRegion: range(0, 0x1000), mappable: file });
        throw new Error("never mind");
      }),
    Error,
    "never mind",
  );

  // Not each time: a first access makes a view of a gigabyte, which the garbage collector takes seriously.
  if (i % 16 === 0) regions.memory.writeUint32(0, i);
  using _lock = regions.memory.lock(range(0, 0x2000), { write: true });
  regions.memory.lock(range(0x6000, 0x7000))[Symbol.dispose]();
  if (i % 2 === 0) top[Symbol.dispose]();
  if (i % 4 === 0) attached[Symbol.dispose]();
}

kvmTest("thousands of VMs, managers, regions, mappings and locks leave nothing behind", () => {
  using kvm = Kvm.open();
  for (let i = 0; i < 50; i++) cycle(kvm, i);
  const before = holdings();
  for (let i = 0; i < 2000; i++) cycle(kvm, i);
  assertKept(before);
});

kvmTest("ten thousand regions come and go on one manager and leave nothing behind", () => {
  using machine = new Machine({ length: RESERVED });
  const guest = machine.attached();
  const [file, other] = [machine.file(1), machine.file(2)];
  const change = (i: number) => {
    const start = i % 64 * 0x1_0000;
    using region = machine.backed(start, start + 0x8000, file, { priority: 1 });
    region.addMapping({ rangeInRegion: range(0x2000, 0x4000), mappable: other, writable: i % 2 === 0 });
    if (i % 3 === 0) region.unmap();
  };
  for (let i = 0; i < 100; i++) change(i);
  const before = holdings();
  for (let i = 0; i < 10_000; i++) change(i);
  assertKept(before);
  assertEquals(guest.slots, []);
  const { base, length } = machine.va;
  assertEquals(new Set(mappings(base, base + length).map(({ access, file }) => access + file)), new Set(["---p"]));
  assertEquals(machine.regions.inspect().hostMappings, 1);
});

kvmTest("vCPUs that ran in other threads leave nothing of KVM behind", async () => {
  const run = async () => {
    using machine = new Machine();
    const guest = machine.attached();
    machine.backed(0, 0x10_0000, machine.file(1));
    guest.begin(touchForever(0, 0x10_0000, 0x1000));
    using _attached = KvmVcpu.attach(guest.vcpu.share());
    await using thread = await VcpuThread.start(guest.vcpu);
    assertEquals((await thread.stop()).end, "asked");
  };
  const before = kvmDescriptors();
  for (let i = 0; i < 20; i++) await run();
  assertEquals(kvmDescriptors(), before);
  assertEquals(holdings().files.filter((file) => file.includes("kvm")), []);
});

function kvmDescriptors(): string[] {
  return [...Deno.readDirSync("/proc/self/fd")].flatMap(({ name }) => {
    try {
      const target = Deno.readLinkSync(`/proc/self/fd/${name}`);
      return target.includes("kvm") ? [target] : [];
    } catch {
      return []; // the one that the directory was read through
    }
  });
}

function* permutations<T>(items: readonly T[]): Generator<T[]> {
  if (items.length === 0) yield [];
  for (const [i, item] of items.entries()) {
    for (const rest of permutations(items.toSpliced(i, 1))) yield [item, ...rest];
  }
}

/** The orders of what depends on each other; what is only used while something is made is put somewhere between. */
function* orders(): Generator<string[]> {
  let n = 0;
  for (const order of permutations(["va", "manager", "vm", "vcpu", "partition", "region"])) {
    const between = order.toSpliced(n % 7, 0, "kvm");
    yield between.toSpliced(n * 5 % 8, 0, "file");
    n++;
  }
}

kvmTest("everything can be disposed in every order, and addresses stay as long as someone may look at them", () => {
  const isReserved = (base: number) => mappings(base, base + 0x1000).length > 0;
  const dispose = (order: readonly string[]) => {
    const va = HostAddresses.reserve(RESERVED);
    const manager = new RegionManager(va);
    const kvm = Kvm.open();
    const vm = kvm.createVm();
    const vcpu = vm.createVcpu(0);
    const file = Mappable.memfd("ram", 0x4000);
    const partition = manager.addPartition(vm);
    const region = manager.newRegion({ name: "ram", range: range(0, 0x4000), priority: 0 });
    region.addMapping({ rangeInRegion: range(0, 0x4000), mappable: file });
    region.map();
    const all: Readonly<Record<string, Disposable>> = { va, manager, kvm, vm, vcpu, file, partition, region };
    const left = new Set(order);
    for (const name of order) {
      all[name]?.[Symbol.dispose]();
      left.delete(name);
      const isNeeded = left.has("va") || left.has("manager") || vm.slots.length > 0;
      assertEquals(isReserved(va.base), isNeeded, `${order}: after ${name}`);
      // Whatever is left can be looked at and disposed again.
      all[name]?.[Symbol.dispose]();
      assertEquals(vm.slots.length > 0, ["vm", "manager", "partition", "region"].every((name) => left.has(name)));
    }
  };
  const every = [...orders()];
  assertEquals(every.length, 720);
  for (const order of every.slice(0, 20)) dispose(order);
  const before = holdings();
  for (const order of every) dispose(order);
  assertKept(before);
});

kvmTest("a guest whose memory was disposed in any order finds none, and harms nobody", () => {
  for (const order of permutations(["va", "manager", "file"])) {
    using guest = new Witness();
    const va = HostAddresses.reserve(RESERVED);
    const manager = new RegionManager(va);
    const file = Mappable.memfd("ram", 0x4000);
    manager.addPartition(guest.vm);
    const region = manager.newRegion({ name: "ram", range: range(0, 0x4000), priority: 0 });
    region.addMapping({ rangeInRegion: range(0, 0x4000), mappable: file });
    region.map();
    const all: Readonly<Record<string, Disposable>> = { va, manager, file };
    for (const name of order) {
      const isThere = !manager.disposed;
      assertEquals(guest.store(0x1000, 5), isThere ? "stored" : "mmio", `${order}: before ${name}`);
      all[name]?.[Symbol.dispose]();
    }
    // Someone else may have the addresses by now.
    using next = HostAddresses.reserve(RESERVED);
    next.map(0, 0x4000, null, 0, true, undefined);
    assertEquals([guest.store(0x1000, 6), guest.load(0x1000)], ["mmio", "mmio"]);
    assert(new Uint32Array(next.view(0, 0x4000)).every((word) => word === 0));
  }
});
