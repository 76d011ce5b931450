/** RAM that is given back to the host. */
import { assert, assertEquals, assertThrows } from "@std/assert";
import {
  GuestMemoryManager,
  type GuestMemoryOptions,
  Mappable,
  MappingError,
  MemoryLockedError,
  type RamBacking,
} from "membacking";
import {
  FAILURE_MODES,
  Faults,
  RecordingDmaTarget,
  RecordingPartition,
  RecordingVa,
  standIn,
} from "membacking/testing";
import { mappings, openFds, readProc } from "../support/proc.ts";
import { HUGE_PAGE, hugePageTest, kvmTest } from "../support/require.ts";
import { PAGE, range } from "../support/units.ts";
import { Witness } from "../vm/witness.ts";

const MIB = 2 ** 20;
const RAM = range(0, 4 * MIB);
const KINDS = ["shared", "private", "copy-on-write"] as const;

function saved(): Mappable {
  const file = Mappable.memfd("saved", 4 * MIB);
  file.write(0, new Uint8Array(4 * MIB).fill(0x55));
  return file;
}

function create(kind: typeof KINDS[number], options: Partial<GuestMemoryOptions> = {}): GuestMemoryManager {
  using file = saved();
  const backing: RamBacking = kind === "copy-on-write"
    ? { ranges: [RAM], backing: file, copyOnWrite: true }
    : { ranges: [RAM], backing: kind };
  const guest = GuestMemoryManager.create({ maxAddress: 16 * MIB, ram: [backing], ...options });
  guest.memory.fill(0, 4 * MIB, 0xaa);
  return guest;
}

/** What `memory` has of RAM, as runs of equal bytes. */
function runs(guest: GuestMemoryManager): string[] {
  const bytes = guest.memory.read(0, 4 * MIB);
  const found: string[] = [];
  for (let at = 0; at < bytes.length;) {
    let end = at + PAGE;
    while (end < bytes.length && bytes[end] === bytes[at] && bytes[end + PAGE - 1] === bytes[at]) end += PAGE;
    found.push(`${range(at, end)} ${bytes[at]?.toString(16)}`);
    at = end;
  }
  return found;
}

/** How much of the process's memory is in RAM at all, in bytes. */
function resident(guest: GuestMemoryManager): number {
  return guest.inspect().usage?.resident ?? NaN;
}

for (const kind of KINDS) {
  Deno.test(`discarded ${kind} RAM reads as zeros, takes no memory, and is RAM as before`, () => {
    const fds = openFds();
    {
      using guest = create(kind);
      const [vm, dma] = [new RecordingPartition(), new RecordingDmaTarget()];
      using _attached = guest.attachPartition(vm);
      using _dma = guest.regions.addDmaTarget(dma);
      const [slots, before] = [JSON.stringify(vm.ranges), resident(guest)];
      guest.discard(range(MIB, 3 * MIB));
      assertEquals(runs(guest), ["0x0-0x100000 aa", "0x100000-0x300000 0", "0x300000-0x400000 aa"]);
      // Short runs of copy-on-write memory are zeroed in place.
      guest.discard(range(3 * MIB + PAGE, 3 * MIB + 2 * PAGE));
      assertEquals(runs(guest).slice(2), ["0x300000-0x301000 aa", "0x301000-0x302000 0", "0x302000-0x400000 aa"]);
      assertEquals(JSON.stringify(vm.ranges), slots);
      guest.memory.fill(MIB, PAGE, 1);
      assertEquals(guest.memory.readUint8(MIB), 1);
      // The look at it has brought zero pages in, of shared memory real ones.
      if (kind !== "shared") assert(resident(guest) <= before, "nothing was given back");
      assertEquals(guest.memory.find(2 * MIB)?.kind, kind === "copy-on-write" ? "private" : kind);
      guest.setRamVisibility(RAM, "read-only");
      guest.discard(range(0, 2 * PAGE));
      guest.setRamVisibility(RAM, "read-write");
      assertEquals([guest.memory.readUint8(0), guest.memory.readUint8(2 * PAGE)], [0, 0xaa]);
      guest.discard(RAM);
      assertEquals(runs(guest), ["0x0-0x400000 0"]);
      const covered = dma.mappings.reduce((sum, { range }) => sum + range.length, 0);
      assertEquals(covered, 4 * MIB, "a DMA target has all of RAM");
    }
    assertEquals(openFds(), fds);
    assertEquals(mappings().filter(({ file }) => file.includes("memfd:saved")), []);
  });

  kvmTest(`a native guest reads zeros where ${kind} RAM was discarded, and goes on writing`, () => {
    using guest = create(kind);
    using witness = new Witness();
    using _attached = guest.attachPartition(witness.vm);
    const { slots } = witness.vm;
    assertEquals(witness.store(2 * MIB, 7), "stored");
    assertEquals(witness.look([MIB, 2 * MIB]), [0xaaaa_aaaa, 7]);
    guest.discard(range(MIB, 3 * MIB));
    assertEquals(witness.look([MIB - 4, MIB, 2 * MIB, 3 * MIB - 4, 3 * MIB]), [0xaaaa_aaaa, 0, 0, 0, 0xaaaa_aaaa]);
    assertEquals(witness.store(2 * MIB, 8), "stored");
    assertEquals(guest.memory.readUint32(2 * MIB), 8);
    guest.discard(range(0, PAGE));
    assertEquals(witness.load(0), 0);
    assertEquals(witness.vm.slots, slots, "no slot has changed");
  });
}

Deno.test("a file that RAM is made of is punched, a file that it was restored from is not", () => {
  using file = saved();
  {
    using guest = GuestMemoryManager.create({ maxAddress: 16 * MIB, ram: [{ ranges: [RAM], backing: file }] });
    guest.discard(range(0, MIB));
    const head = new Uint8Array(2);
    file.read(MIB - 1, head);
    assertEquals([...head], [0, 0x55]);
  }
  using guest = GuestMemoryManager.create({
    maxAddress: 16 * MIB,
    ram: [{ ranges: [RAM], backing: file, copyOnWrite: true }],
  });
  guest.discard(range(2 * MIB, 4 * MIB));
  assertEquals([guest.memory.readUint8(2 * MIB - 1), guest.memory.readUint8(2 * MIB)], [0x55, 0]);
  const tail = new Uint8Array(1);
  file.read(2 * MIB, tail);
  assertEquals(tail[0], 0x55);
});

Deno.test("memory of the host is really given back", () => {
  using file = Mappable.memfd("given back", 4 * MIB);
  using guest = GuestMemoryManager.create({ maxAddress: 16 * MIB, ram: [{ ranges: [RAM], backing: file }] });
  guest.memory.fill(0, 4 * MIB, 1);
  const blocks = () => Deno.statSync(`/proc/self/fd/${file.fd}`).blocks;
  const before = blocks();
  guest.discard(range(0, 3 * MIB));
  assertEquals([before, blocks()], [4 * MIB / 512, MIB / 512]);
});

Deno.test("what cannot be discarded is refused, and nothing has changed", () => {
  for (const kind of KINDS) {
    using guest = create(kind);
    using bar = guest.newDeviceMemory("bar", MIB);
    using file = Mappable.memfd("bar", MIB);
    bar.map({ offset: 0, mappable: file, length: MIB });
    bar.mapToGuest(8 * MIB, true);
    const untouched = ["0x0-0x400000 aa"];
    for (const outside of [range(3 * MIB, 5 * MIB), range(8 * MIB, 9 * MIB), range(12 * MIB, 13 * MIB)]) {
      assertThrows(() => guest.discard(outside), MappingError, "Only RAM that the guest has can be discarded");
    }
    assertThrows(() => guest.discard(range(0, 0)), RangeError, "not empty");
    assertThrows(() => guest.discard({ start: 0, end: PAGE } as never), TypeError, "discard needs a MemoryRange");
    {
      using _lock = guest.memory.lock(range(MIB, MIB + PAGE));
      assertThrows(() => guest.discard(range(0, 2 * MIB)), MemoryLockedError);
    }
    if (kind !== "copy-on-write") {
      using _pinned = guest.regions.addPartition(new RecordingPartition(), { pin: true });
      assertThrows(() => guest.discard(range(0, PAGE)), MappingError, "pinned");
    }
    if (kind !== "copy-on-write") {
      using _dma = guest.regions.addDmaTarget(new RecordingDmaTarget(), { pins: true });
      assertThrows(() => guest.discard(range(0, PAGE)), MappingError, "pinned");
    }
    assertEquals(runs(guest), untouched);
    if (kind === "shared") {
      guest.setRamVisibility(RAM, "unmapped");
      assertThrows(() => guest.discard(range(0, PAGE)), MappingError, "there is nothing at 0x0");
      guest.setRamVisibility(RAM, "read-write");
      assertEquals(runs(guest), untouched);
    }
  }
});

Deno.test("DMA targets that may hold the old pages are told anew, of exactly what they had", () => {
  for (const kind of KINDS) {
    using guest = create(kind);
    const dma = new RecordingDmaTarget();
    using _dma = guest.regions.addDmaTarget(dma);
    guest.setRamVisibility(RAM, "read-only");
    guest.setRamVisibility(RAM, "read-write");
    dma.calls.splice(0);
    guest.discard(range(MIB, 2 * MIB));
    const told = dma.calls.map(({ method, range }) => `${method} ${range}`);
    assertEquals(told[0], "unmapDma 0x0-0x400000");
    assertEquals(
      told.slice(1),
      kind === "copy-on-write"
        ? ["mapDma 0x0-0x100000", "mapDma 0x100000-0x200000", "mapDma 0x200000-0x400000"]
        : ["mapDma 0x0-0x400000"],
    );
  }
});

Deno.test("a DMA target that fails then is named, and is told at the next request", () => {
  using guest = create("shared");
  const faults = new Faults();
  const dma = new RecordingDmaTarget({ name: "iommu", faults });
  using _dma = guest.regions.addDmaTarget(dma);
  faults.failAfter(0, { times: 3, on: ({ method }) => method === "mapDma" });
  const error = assertThrows(() => guest.discard(range(0, MIB)), MappingError);
  assert(error.message.includes("iommu"), error.message);
  assertEquals(guest.memory.readUint8(0), 0, "the pages are gone all the same");
  assertEquals(dma.mappings.length, 0);
  faults.reset();
  guest.setRamVisibility(RAM, "read-only");
  assertEquals(dma.mappings.map(({ range }) => `${range}`), ["0x0-0x400000"]);
});

Deno.test("copy-on-write memory that fails to become private stays what it was", () => {
  for (const mode of FAILURE_MODES) {
    for (let passes = 0; passes < 3; passes++) {
      using file = standIn("saved", 4 * MIB);
      file.write(0, new Uint8Array([1, 2, 3]));
      const faults = new Faults();
      const va = new RecordingVa<Mappable>(16 * MIB, { faults });
      const ram = [{ ranges: [RAM], backing: file, copyOnWrite: true }];
      using guest = GuestMemoryManager.create({ maxAddress: 16 * MIB, ram, va });
      guest.memory.writeUint8(1, 9);
      faults.failAfter(passes, { mode });
      let failed = false;
      try {
        guest.discard(range(0, MIB));
      } catch (error) {
        failed = true;
        assert(error instanceof MappingError);
      }
      faults.reset();
      assertEquals([...guest.memory.read(0, 3)], failed ? [1, 9, 3] : [0, 0, 0], `${mode} ${passes}`);
      assertEquals(guest.memory.find(0)?.kind, failed ? "copy-on-write" : "private");
    }
  }
});

Deno.test("inside a batch, RAM is discarded once the batch has come true, and not if it fails", () => {
  using guest = create("shared");
  guest.regions.batch(() => {
    guest.discard(range(0, MIB));
    guest.setRamVisibility(RAM, "read-only");
    assertEquals(guest.memory.readUint8(0), 0xaa);
  });
  assertEquals(runs(guest), ["0x0-0x100000 0", "0x100000-0x400000 aa"]);
  assertThrows(() =>
    guest.regions.batch(() => {
      guest.discard(range(MIB, 2 * MIB));
      throw new Error("never mind");
    })
  );
  assertThrows(() => guest.regions.batch(() => guest.discard(range(8 * MIB, 9 * MIB))), MappingError);
  assertEquals(runs(guest), ["0x0-0x100000 0", "0x100000-0x400000 aa"]);

  const logged: string[] = [];
  const log = () => {};
  using other = create("shared", { logger: { debug: log, info: log, warn: log, error: (text) => logged.push(text) } });
  other.regions.batch(() => {
    other.discard(range(0, MIB));
    other.setRamVisibility(RAM, "unmapped");
  });
  assertEquals(logged.length, 1);
  assert(logged[0]?.includes("could not be discarded after a batch"));
});

Deno.test("a discard is a write to trackers, whatever the kind", () => {
  for (const kind of KINDS) {
    using guest = create(kind);
    using tracker = guest.trackDirty();
    tracker.take();
    guest.discard(range(MIB, 2 * MIB));
    const pages = tracker.take();
    assert([...pages].some((run) => run.contains(range(MIB, 2 * MIB))), `${kind}: ${[...pages]}`);
    assertEquals(tracker.take().count, 0);
  }
});

Deno.test("discarding the same again and again makes no mappings", () => {
  for (const kind of KINDS) {
    using guest = create(kind);
    guest.discard(range(MIB, 2 * MIB));
    const before = mappings(guest.memory.hostAddress(0, 1), guest.memory.hostAddress(0, 1) + 4 * MIB).length;
    for (let i = 0; i < 100; i++) {
      guest.memory.fill(MIB, MIB, i);
      guest.discard(range(MIB, 2 * MIB));
      assertEquals(guest.memory.readUint32(MIB + i * PAGE), 0);
    }
    const { length } = mappings(guest.memory.hostAddress(0, 1), guest.memory.hostAddress(0, 1) + 4 * MIB);
    assertEquals(length, before);
  }
});

hugePageTest("huge pages are discarded whole", 2, () => {
  const free = () => Number(readProc("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages"));
  using guest = GuestMemoryManager.create({
    maxAddress: 16 * MIB,
    ram: [{ ranges: [range(0, 2 * HUGE_PAGE)], hugepageSize: HUGE_PAGE }],
  });
  guest.memory.fill(0, 2 * HUGE_PAGE, 3);
  assertThrows(() => guest.discard(range(0, PAGE)), MappingError, "Huge pages of 0x200000 are discarded whole");
  const before = free();
  guest.discard(range(HUGE_PAGE, 2 * HUGE_PAGE));
  assertEquals(free(), before + 1);
  assertEquals(guest.memory.readUint8(0), 3);
});

Deno.test("thousands of discards in a batch are all made, in their order", () => {
  using guest = create("shared");
  const pages = Array.from({ length: 1000 }, (_, page) => page);
  const order: number[] = [];
  using _watching = guest.regions.watchRequests(({ name, changed }) => {
    if (name === "discard") order.push(...changed.map(({ start }) => start / PAGE));
  });
  for (let round = 0; round < 8; round++) {
    guest.memory.fill(0, 4 * MIB, 0xaa);
    order.length = 0;
    guest.regions.batch(() => pages.forEach((page) => guest.discard(range(page * PAGE, (page + 1) * PAGE))));
    assertEquals(order, pages);
    assertEquals(guest.memory.read(0, 1000 * PAGE).some((byte) => byte !== 0), false);
  }
});
