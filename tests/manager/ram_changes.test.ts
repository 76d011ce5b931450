/** RAM that is added, taken away, and restored from files. */
import { assert, assertEquals, assertFalse, assertRejects, assertThrows } from "@std/assert";
import {
  drawMemoryMap,
  GuestMemoryManager,
  type GuestMemoryOptions,
  Mappable,
  MappingError,
  MemoryLockedError,
  RegionOverlapError,
} from "membacking";
import { FAILURE_MODES, Faults, RecordingDmaTarget, RecordingPartition } from "membacking/testing";
import { releaseAddresses, reserveAddresses } from "../../ffi/os/address_space.ts";
import { cString, libc } from "../../ffi/os/libc.ts";
import { PR_SET_VMA, PR_SET_VMA_ANON_NAME } from "../../ffi/os/mman.ts";
import { hasTransparentHugepages } from "../../ffi/files/memory_policy.ts";
import { mappingFlags, mappings, openFds } from "../support/proc.ts";
import { HUGE_PAGE, hugePageTest, kvmTest, testUnless } from "../support/require.ts";
import { PAGE, range } from "../support/units.ts";
import { Witness } from "../vm/witness.ts";

const MIB = 2 ** 20;
const DIMM = range(32 * MIB, 34 * MIB);

function create(options: Partial<GuestMemoryOptions> = {}): GuestMemoryManager {
  return GuestMemoryManager.create({ maxAddress: 64 * MIB, ram: [{ ranges: [range(0, 4 * MIB)] }], ...options });
}

Deno.test("RAM that is added is RAM in every respect, and gone without a trace when it is removed", async () => {
  const fds = openFds();
  {
    using guest = create();
    const [vm, dma] = [new RecordingPartition(), new RecordingDmaTarget()];
    using _attached = guest.attachPartition(vm);
    using _dma = guest.regions.addDmaTarget(dma);
    const dimm = guest.addRam({ name: "dimm", ranges: [DIMM, range(40 * MIB, 41 * MIB)] });
    assertEquals([dimm.name, dimm.ranges.map(String)], ["dimm", ["0x2000000-0x2200000", "0x2800000-0x2900000"]]);
    guest.memory.writeUint32(DIMM.start, 7);
    assertEquals(guest.ramRanges.map(String), ["0x0-0x400000", "0x2000000-0x2200000", "0x2800000-0x2900000"]);
    assertEquals(guest.inspect().ram.map(({ name }) => name), ["ram", "dimm"]);
    assert(drawMemoryMap(guest.inspect()).includes("dimm"));
    assertEquals(vm.accessAt(DIMM.start)?.writable, true);
    assert(dma.mappings.some(({ range }) => range.containsAddress(DIMM.start)));
    guest.setRamVisibility(DIMM, "read-only");
    assertEquals(vm.accessAt(DIMM.start)?.writable, false);
    assertEquals(guest.memory.readUint32(DIMM.start), 7);
    await guest.prefault();

    await dimm.remove();
    assertEquals(guest.memory.find(DIMM.start), null);
    assertEquals([vm.accessAt(DIMM.start), guest.ramRanges.length, guest.inspect().ram.length], [null, 1, 1]);
    assertFalse(dma.mappings.some(({ range }) => range.containsAddress(DIMM.start)));
    dimm[Symbol.dispose]();
    await dimm.remove();
    {
      using _again = guest.addRam({ ranges: [DIMM] });
      assertEquals(guest.memory.readUint32(DIMM.start), 0);
    }
    assertEquals(guest.ramRanges.length, 1);
    // Left to the manager.
    guest.addRam({ ranges: [DIMM] });
  }
  assertEquals(openFds(), fds);
});

Deno.test("RAM that cannot be added or removed leaves everything as it is", () => {
  using guest = create({ overlap: "any" });
  const faults = new Faults();
  using _attached = guest.attachPartition(new RecordingPartition({ faults }));
  const look = () => JSON.stringify([guest.inspect().regions, guest.inspect().ram, guest.ramRanges, openFds()]);
  const before = look();
  assertThrows(() => guest.addRam({ ranges: [range(3 * MIB, 5 * MIB)] }), RegionOverlapError, "must be disjoint");
  assertThrows(() => guest.addRam({ ranges: [DIMM, DIMM] }), RegionOverlapError);
  assertThrows(() => guest.addRam({ ranges: [range(63 * MIB, 65 * MIB)] }), RangeError, "ends beyond maxAddress");
  assertThrows(() => guest.addRam({ ranges: [] }), RangeError);
  for (const mode of FAILURE_MODES) {
    faults.failAfter(0, { mode });
    assertThrows(() => guest.addRam({ ranges: [DIMM] }), MappingError);
    faults.reset();
    assertEquals(look(), before);
  }
  const dimm = guest.addRam({ ranges: [DIMM] });
  const added = look();
  {
    using _lock = guest.memory.lock(range(DIMM.start, DIMM.start + PAGE));
    assertThrows(() => dimm[Symbol.dispose](), MemoryLockedError);
  }
  faults.failAfter(0);
  assertThrows(() => dimm[Symbol.dispose](), MappingError);
  faults.reset();
  assertThrows(() =>
    guest.regions.batch(() => {
      dimm[Symbol.dispose]();
      throw new Error("never mind");
    })
  );
  assertEquals(look(), added);
  dimm[Symbol.dispose]();
  assertEquals(look(), before);
});

Deno.test("remove waits for locks on any of its ranges, refuses new ones, and can be called off", async () => {
  using guest = create();
  const far = range(40 * MIB, 41 * MIB);
  const dimm = guest.addRam({ ranges: [DIMM, far] });
  const lock = guest.memory.lock(range(far.start, far.start + PAGE));
  const controller = new AbortController();
  const called = dimm.remove({ signal: controller.signal });
  assertThrows(() => guest.memory.lock(range(DIMM.start, DIMM.start + PAGE)), Error, "is being torn down");
  controller.abort(new Error("enough"));
  await assertRejects(() => called, Error, "enough");
  guest.memory.lock(range(DIMM.start, DIMM.start + PAGE))[Symbol.dispose]();

  let isGone = false;
  const removed = dimm.remove().then(() => isGone = true);
  await new Promise((resolve) => setTimeout(resolve, 1));
  assertEquals([isGone, guest.memory.isMapped(DIMM.start, 1)], [false, true]);
  lock[Symbol.dispose]();
  await removed;
  assertEquals([guest.memory.isMapped(DIMM.start, 1), guest.memory.isMapped(far.start, 1)], [false, false]);
});

kvmTest("a native guest sees RAM that is added, and none where it was removed", () => {
  using guest = create();
  using witness = new Witness();
  using _attached = guest.attachPartition(witness.vm);
  assertEquals(witness.load(DIMM.start), "mmio");
  const dimm = guest.addRam({ ranges: [DIMM] });
  guest.memory.writeUint32(DIMM.end - 4, 0x77);
  assertEquals(witness.look([DIMM.start, DIMM.end - 4, DIMM.end]), [0, 0x77, "mmio"]);
  assertEquals(witness.store(DIMM.start, 5), "stored");
  assertEquals(guest.memory.readUint32(DIMM.start), 5);
  dimm[Symbol.dispose]();
  assertEquals(witness.look([DIMM.start, DIMM.end - 4]), ["mmio", "mmio"]);
});

Deno.test("blocks of one large file can be RAM one by one", () => {
  using guest = create();
  using file = Mappable.memfd("dimms", 16 * MIB);
  const block = (i: number) => ({
    name: `block ${i}`,
    ranges: [range((8 + 2 * i) * MIB, (10 + 2 * i) * MIB)],
    backing: file,
    fileOffset: 2 * i * MIB,
  });
  const handles = [0, 1, 2, 3].map((i) => guest.addRam(block(i)));
  assertEquals(guest.shareableRegions().map(({ range }) => `${range}`), ["0x0-0x400000", "0x800000-0x1000000"]);
  guest.memory.writeUint8(10 * MIB + 1, 9);
  const back = new Uint8Array(1);
  file.read(2 * MIB + 1, back);
  assertEquals(back[0], 9);
  handles[1]?.[Symbol.dispose]();
  assertEquals(guest.shareableRegions().map(({ range, fileOffset }) => `${range} @${fileOffset / MIB}`), [
    "0x0-0x400000 @0",
    "0x800000-0xa00000 @0",
    "0xc00000-0x1000000 @4",
  ]);
  assertThrows(() => guest.addRam({ ...block(1), fileOffset: 0x800 }), RangeError, "File offset");
  assertThrows(() => guest.addRam({ ...block(1), fileOffset: 15 * MIB }), MappingError, "too short");
  assertThrows(() => guest.addRam({ ranges: [DIMM], fileOffset: 0 }), TypeError, "over a Mappable only");
});

async function hashOf(path: string): Promise<string> {
  const digest = await crypto.subtle.digest("SHA-256", Deno.readFileSync(path));
  return new Uint8Array(digest).toHex();
}

kvmTest(
  "RAM restored from a file leaves the file as it is, whoever writes: accessors, locks, Workers, the guest",
  async () => {
    const path = Deno.makeTempFileSync();
    try {
      const contents = new Uint8Array(4 * MIB).map((_, i) => i * 7);
      Deno.writeFileSync(path, contents);
      const before = await hashOf(path);
      for (const write of [false, true]) {
        using file = Mappable.open(path, { write, fixedSize: true });
        using guest = create({ ram: [{ ranges: [range(0, 4 * MIB)], backing: file, copyOnWrite: true }] });
        using witness = new Witness();
        using _attached = guest.attachPartition(witness.vm);
        const { memory } = guest;
        assertEquals(memory.read(MIB, 100), contents.subarray(MIB, MIB + 100));
        memory.write(MIB, new Uint8Array(2 * PAGE).fill(1));
        memory.storeUint32(MIB + 3 * PAGE, 5);
        {
          using lock = memory.lock(range(2 * MIB, 2 * MIB + PAGE), { write: true });
          lock.bytes.fill(2);
          const address = memory.hostAddress(2 * MIB + 8, 8);
          const source = `new BigUint64Array(Deno.UnsafePointerView.getArrayBuffer(
          Deno.UnsafePointer.create(${address}n), 8))[0] = 7n; postMessage("done");`;
          const worker = new Worker(`data:text/javascript,${encodeURIComponent(source)}`, { type: "module" });
          await new Promise((resolve) => worker.onmessage = resolve);
          worker.terminate();
        }
        assertEquals(witness.store(3 * MIB, 3), "stored");
        assertEquals([memory.readUint8(MIB), memory.readUint8(2 * MIB), memory.readUint32(3 * MIB)], [1, 2, 3]);
        assertEquals([memory.readBigUint64(2 * MIB + 8), witness.load(MIB + 3 * PAGE)], [7n, 5]);
        assertEquals(memory.find(0)?.kind, "copy-on-write");
        guest.setRamVisibility(range(0, 4 * MIB), "read-only");
        guest.setRamVisibility(range(0, 4 * MIB), "read-write");
        assertEquals([memory.readUint8(MIB), witness.load(3 * MIB)], [1, 3]);
        assertEquals(await hashOf(path), before);
      }
    } finally {
      Deno.removeSync(path);
    }
  },
);

Deno.test("a file that RAM cannot be made of is refused with what to do about it", () => {
  const path = Deno.makeTempFileSync();
  try {
    Deno.truncateSync(path, 4 * MIB);
    using file = Mappable.open(path);
    const ram = (more: object) => ({ ram: [{ ranges: [range(0, 4 * MIB)], backing: file, ...more }] });
    assertEquals(
      assertThrows(() => create(ram({})), MappingError).message,
      'The file of RAM backing "ram" is not writable: open it with write: true, or map it with copyOnWrite: true',
    );
    assertThrows(() => create(ram({ copyOnWrite: true })), MappingError, "fixedSize: true");
    assertThrows(
      () => create(ram({ copyOnWrite: 1 })),
      TypeError,
      'copyOnWrite of RAM backing "ram" must be true or false',
    );
    assertThrows(() => create(ram({ fixedSize: true })), TypeError, "pass it to Mappable.open otherwise");
    assertThrows(() => create({ ram: [{ ranges: [DIMM], copyOnWrite: true }] }), TypeError, "over a Mappable only");
    assertThrows(() => create({ ram: [null as never] }), TypeError);
  } finally {
    Deno.removeSync(path);
  }
});

Deno.test("guest RAM is left out of core dumps and forks, and device memory is not advised about", () => {
  using guest = create({
    ram: [
      { ranges: [range(0, MIB)] },
      { ranges: [range(MIB, 2 * MIB)], backing: "private" },
      { ranges: [range(2 * MIB, 3 * MIB)], coreDump: true },
    ],
  });
  const flags = (gpa: number) => mappingFlags(guest.memory.hostAddress(gpa, 1));
  for (const gpa of [0, MIB, 2 * MIB]) assert(flags(gpa).includes("dc"), "not copied by fork");
  assertEquals([0, MIB, 2 * MIB].map((gpa) => flags(gpa).includes("dd")), [true, true, false]);
  guest.setRamVisibility(range(0, MIB), "unmapped");
  guest.setRamVisibility(range(0, MIB), "read-write");
  assert(flags(0).includes("dd") && flags(0).includes("dc"));

  using file = Mappable.memfd("bar", PAGE);
  using bar = guest.newDeviceMemory("bar", PAGE);
  bar.map({ offset: 0, mappable: file, length: PAGE });
  bar.mapToGuest(8 * MIB, true);
  assertFalse(flags(8 * MIB).includes("dd"));
});

testUnless(noNames(), "private RAM has its name in smaps", () => {
  using guest = create({ ram: [{ ranges: [range(0, MIB)], backing: "private", name: "own [ram]" }] });
  const address = guest.memory.hostAddress(0, 1);
  // Without what the kernel does not take in a name.
  assertEquals(mappings(address, address + 1)[0]?.file, "[anon:own ram]");
});

/** Why this kernel gives anonymous memory no names. */
function noNames(): string | undefined {
  const address = reserveAddresses(PAGE, PAGE);
  const name = cString("probe");
  const failed = libc().sys.prctlName(PR_SET_VMA, PR_SET_VMA_ANON_NAME, BigInt(address), BigInt(PAGE), name) === -1;
  releaseAddresses(address, PAGE);
  return failed ? "the kernel has no names for anonymous memory" : undefined;
}

testUnless(
  hasTransparentHugepages() ? undefined : "the kernel has no transparent huge pages",
  "RAM asks for transparent huge pages unless told otherwise",
  () => {
    using guest = create({
      ram: [
        { ranges: [range(0, 2 * MIB)] },
        { ranges: [range(2 * MIB, 4 * MIB)], backing: "private" },
        { ranges: [range(4 * MIB, 6 * MIB)], transparentHugepages: false },
      ],
    });
    const flags = (gpa: number) => mappingFlags(guest.memory.hostAddress(gpa, 1));
    assertEquals([0, 2 * MIB, 4 * MIB].map((gpa) => flags(gpa).includes("hg")), [true, true, false]);
    assert(flags(4 * MIB).includes("nh"));
  },
);

hugePageTest("RAM of huge pages that others have too can be locked if the VMM vouches for them", 1, () => {
  for (const fixedSize of [false, true]) {
    using guest = create({ ram: [{ ranges: [range(0, HUGE_PAGE)], hugepageSize: HUGE_PAGE, fixedSize }] });
    assertEquals(guest.shareableRegions().length, 1);
    const lock = () => guest.memory.lock(range(0, PAGE))[Symbol.dispose]();
    if (fixedSize) lock();
    else assertThrows(lock, MappingError, "fixedSize: true");
  }
});
