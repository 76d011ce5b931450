import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import {
  GuestMemoryManager,
  Mappable,
  MappingError,
  MembackingError,
  OsError,
  type SaveOptions,
  type Snapshot,
} from "membacking";
import { RecordingDmaTarget, RecordingVa } from "membacking/testing";
import { HUGE_PAGE, moreHugePages, noHugePages, testUnless } from "../support/require.ts";
import { range } from "../support/units.ts";

const MIB = 2 ** 20;

/** A temporary directory, until disposed. */
function folder() {
  const path = Deno.makeTempDirSync();
  return { path, [Symbol.dispose]: () => Deno.removeSync(path, { recursive: true }) };
}

/** How much of a memfd has memory, in bytes; looked up by name, since asking for its descriptor would hand it out. */
function allocated(name: string): number {
  let bytes = 0;
  for (const { name: fd } of Deno.readDirSync("/proc/self/fd")) {
    try {
      if (!Deno.readLinkSync(`/proc/self/fd/${fd}`).startsWith(`/memfd:${name} `)) continue;
      bytes = (Deno.statSync(`/proc/self/fd/${fd}`).blocks ?? 0) * 512;
    } catch {
      // The descriptor of the directory itself is gone by now.
    }
  }
  return bytes;
}

Deno.test("RAM that was plugged into a frozen guest is saved as it was at the moment of the call, though it goes meanwhile", async () => {
  using disk = folder();
  using guest = GuestMemoryManager.create({ maxAddress: 64 * MIB, ram: [{ ranges: [range(0, 40 * MIB)] }] });
  guest.memory.fill(0, 40 * MIB, 1);
  guest.freeze()[Symbol.dispose]();
  const plugged = guest.addRam({ ranges: [range(40 * MIB, 48 * MIB)] });
  guest.memory.fill(40 * MIB, 4 * MIB, 3);
  const saving = guest.save(`${disk.path}/a`, { live: true });
  guest.memory.fill(40 * MIB, 8 * MIB, 4);
  plugged[Symbol.dispose]();
  using snapshot = await saving;
  using restored = GuestMemoryManager.restore(snapshot);
  const at = [0, 40 * MIB, 44 * MIB - 1, 44 * MIB, 48 * MIB - 1];
  assertEquals(at.map((gpa) => restored.memory.readUint8(gpa)), [1, 3, 3, 0, 0]);
  assertEquals(snapshot.storedBytes, 44 * MIB);
});

Deno.test("to compare memory with a base takes no memory for its holes, and finds what has become a hole", async () => {
  using disk = folder();
  const ram = range(0, 256 * MIB);
  using guest = GuestMemoryManager.create({
    maxAddress: ram.end,
    ram: [{ name: "mostly holes", ranges: [ram], transparentHugepages: false }],
  });
  for (const gpa of [0, 64 * MIB, 128 * MIB]) guest.memory.fill(gpa, 0x3000, 1);
  using base = await guest.save(`${disk.path}/base`);
  guest.memory.fill(64 * MIB, 0x1000, 2);
  guest.discard(range(128 * MIB, 128 * MIB + 0x2000));
  using tracker = guest.trackDirty();
  const all = await guest.save(`${disk.path}/all`, { base });
  tracker.giveBack(tracker.take());
  guest.discard(range(0, 0x1000));
  using some = await guest.save(`${disk.path}/some`, { base: all, pages: tracker.take() });
  all[Symbol.dispose]();
  assertEquals([all.storedBytes, some.storedBytes], [0x1000, 0]);
  using restored = GuestMemoryManager.restore(some);
  const at = [0, 0x1000, 64 * MIB, 64 * MIB + 0x1000, 128 * MIB, 128 * MIB + 0x1000, 128 * MIB + 0x2000];
  assertEquals(at.map((gpa) => restored.memory.readUint8(gpa)), [0, 1, 2, 1, 0, 0, 1]);
  const bytes = allocated("mostly holes");
  assert(bytes > 0 && bytes < 2 * MIB, `${bytes}`);
});

testUnless(
  noHugePages,
  "RAM of huge pages is saved while it is switched off and while something else shows",
  async () => {
    using disk = folder();
    using _pool = moreHugePages(2);
    using guest = GuestMemoryManager.create({
      maxAddress: 16 * MIB,
      ramPriority: 0,
      overlap: "any",
      ram: [{ ranges: [range(0, 2 * HUGE_PAGE)], hugepageSize: HUGE_PAGE }],
    });
    guest.memory.fill(0, 2 * HUGE_PAGE, 7);
    using file = Mappable.memfd("other", HUGE_PAGE);
    using over = guest.regions.newRegion({ name: "over", range: range(0, HUGE_PAGE), priority: 1 });
    over.addMapping({ rangeInRegion: range(0, HUGE_PAGE), mappable: file });
    let saved = 0;
    for (const hide of [() => over.map(), () => guest.setRamVisibility(guest.ramRanges[0]!, "unmapped")]) {
      hide();
      using snapshot = await guest.save(`${disk.path}/${++saved}`);
      assertEquals(snapshot.storedBytes, 2 * HUGE_PAGE);
      using restored = GuestMemoryManager.restore(snapshot);
      restored.setRamVisibility(restored.ramRanges[0]!, "read-write");
      assertEquals([0, 2 * HUGE_PAGE - 1].map((gpa) => restored.memory.readUint8(gpa)), [7, 7]);
    }
  },
);

Deno.test("RAM over a file that somebody has made shorter cannot be saved, which is an error and no SIGBUS", async () => {
  using disk = folder();
  const path = `${disk.path}/ram`;
  Deno.writeFileSync(path, new Uint8Array(4 * MIB).fill(5));
  using backing = Mappable.open(path, { write: true });
  using guest = GuestMemoryManager.create({
    maxAddress: 4 * MIB,
    ram: [{ ranges: [range(0, 4 * MIB)], backing }],
  });
  {
    using whole = await guest.save(`${disk.path}/whole`);
    assertEquals(whole.storedBytes, 4 * MIB);
  }
  Deno.truncateSync(path, MIB);
  // What is beyond the end is a hole to the kernel: to save it as zeros would be a lie about the guest.
  await assertRejects(() => guest.save(`${disk.path}/cut`), MembackingError, "ended");
  assertEquals([...Deno.readDirSync(disk.path)].map(({ name }) => name).sort(), ["ram", "whole"]);
});

/** The descriptor of a file that can be mapped, and neither be sought in nor read, as a dma-buf; negative where there is none. */
function secretMemory(length: number): number {
  const { symbols } = Deno.dlopen("libc.so.6", {
    syscall: { parameters: ["i64", "u32"], result: "i64" },
    ftruncate: { parameters: ["i32", "i64"], result: "i32" },
    close: { parameters: ["i32"], result: "i32" },
  });
  const MEMFD_SECRET = 447n;
  const fd = Number(symbols.syscall(MEMFD_SECRET, 0));
  if (fd >= 0) symbols.ftruncate(fd, BigInt(length));
  if (length === 0 && fd >= 0) symbols.close(fd);
  return fd;
}

testUnless(
  secretMemory(0) < 0 ? "this kernel has no memfd_secret" : undefined,
  "RAM over a file that cannot be read is no RAM of zeros: saving it is an error",
  async () => {
    using disk = folder();
    using backing = Mappable.fromFd(secretMemory(MIB), { fixedSize: true });
    using guest = GuestMemoryManager.create({ maxAddress: 4 * MIB, ram: [{ ranges: [range(0, MIB)], backing }] });
    guest.memory.fill(0, MIB, 5);
    await assertRejects(() => guest.save(`${disk.path}/secret`), OsError, "pread");
    assertEquals([...Deno.readDirSync(disk.path)], []);
  },
);

Deno.test("a DMA target that pins memory, and host memory that is only recorded, cannot be frozen, cloned into or restored into", async () => {
  using disk = folder();
  const ram = [{ ranges: [range(0, 4 * MIB)] }];
  const create = (va?: RecordingVa) =>
    GuestMemoryManager.create({ maxAddress: 4 * MIB, ram, ...(va !== undefined && { va }) });
  using guest = create();
  const pinning = guest.regions.addDmaTarget(new RecordingDmaTarget(), { pins: true });
  assertThrows(() => guest.freeze(), MappingError, "a DMA target pins it");
  pinning[Symbol.dispose]();
  using template = guest.freeze();
  assertThrows(() => guest.regions.addDmaTarget(new RecordingDmaTarget(), { pins: true }), MappingError, "pins");
  assertThrows(
    () => guest.regions.addDmaTarget(new RecordingDmaTarget(), { needsFd: true }),
    MappingError,
    "needs file",
  );
  using recorded = create(new RecordingVa(4 * MIB));
  assertThrows(() => recorded.freeze(), MembackingError, "only recorded");
  await assertRejects(() => recorded.save(`${disk.path}/a`), MembackingError, "only recorded");
  assertThrows(() => template.clone({ va: new RecordingVa(4 * MIB) }), MembackingError, "only recorded");
  using snapshot = await guest.save(`${disk.path}/b`);
  for (const copyOnWrite of [true, false]) {
    const restore = () => GuestMemoryManager.restore(snapshot, { va: new RecordingVa(4 * MIB), copyOnWrite });
    assertThrows(restore, MembackingError, "only recorded");
  }
});

Deno.test("options of a save are checked before anything is done", async () => {
  using disk = folder();
  let held = 0;
  using guest = GuestMemoryManager.create({
    maxAddress: 4 * MIB,
    ram: [{ ranges: [range(0, 4 * MIB)] }],
    quiesce: () => {
      held++;
      return { [Symbol.dispose]() {} };
    },
  });
  const wrong: unknown[] = [
    { state: { a: "text" } },
    { state: { a: { length: 1e12 } } },
    { state: 7 },
    { pages: [] },
    { base: {} },
    { live: 1 },
    { signal: {} },
    { onProgress: 1 },
    null,
    7,
  ];
  for (const options of wrong) {
    await assertRejects(() => guest.save(`${disk.path}/a`, options as SaveOptions), TypeError);
  }
  for (const path of ["", "a\0b", 5]) await assertRejects(() => guest.save(path as string), TypeError);
  assertEquals([held, [...Deno.readDirSync(disk.path)].length], [0, 0]);
  (await guest.save(`${disk.path}/b/`))[Symbol.dispose]();
  assertEquals([...Deno.readDirSync(disk.path)].map(({ name }) => name), ["b"]);
});

Deno.test("a difference says what is zeros now, in memory too that no file has and nobody has written", async () => {
  using disk = folder();
  const end = MIB;
  const bytesOf = (snapshot: Snapshot) => {
    using restored = GuestMemoryManager.restore(snapshot);
    return Array.from({ length: 4 }, (_, page) => restored.memory.readUint8(page * 0x1000));
  };
  using guest = GuestMemoryManager.create({ maxAddress: end, ram: [{ ranges: [range(0, end)], backing: "private" }] });
  using tracker = guest.trackDirty();
  guest.memory.fill(0, 0x4000, 1);
  using base = await guest.save(`${disk.path}/base`);
  tracker.take();
  guest.discard(range(0x1000, 0x2000));
  const pages = tracker.take();
  using compared = await guest.save(`${disk.path}/compared`, { base });
  using tracked = await guest.save(`${disk.path}/tracked`, { base, pages });
  assertEquals([bytesOf(compared), bytesOf(tracked)], [[1, 0, 1, 1], [1, 0, 1, 1]]);
});

Deno.test("a guest that was restored copy-on-write is the difference to an older snapshot, its zeros included", async () => {
  using disk = folder();
  using guest = GuestMemoryManager.create({ maxAddress: MIB, ram: [{ ranges: [range(0, MIB)] }] });
  guest.memory.fill(0, 0x4000, 1);
  using first = await guest.save(`${disk.path}/first`);
  guest.memory.fill(0x1000, 0x1000, 0);
  using second = await guest.save(`${disk.path}/second`, { base: first });
  using again = GuestMemoryManager.restore(second);
  const progress: number[] = [];
  using third = await again.save(`${disk.path}/third`, { base: first, onProgress: (done) => void progress.push(done) });
  assertEquals(progress.at(-1), MIB);
  using restored = GuestMemoryManager.restore(third);
  assertEquals([restored.memory.readUint8(0), restored.memory.readUint8(0x1000)], [1, 0]);
});

Deno.test("memory is not saved inside a batch, whatever it is and whether it is frozen", async () => {
  using disk = folder();
  const ranges = [range(0, MIB)];
  using shared = GuestMemoryManager.create({ maxAddress: MIB, ram: [{ ranges }] });
  using frozen = GuestMemoryManager.create({ maxAddress: MIB, ram: [{ ranges }] });
  using _template = frozen.freeze();
  using own = GuestMemoryManager.create({ maxAddress: MIB, ram: [{ ranges, backing: "private" }] });
  for (const guest of [shared, frozen, own]) {
    await assertRejects(() => guest.regions.batch(() => ({ saving: guest.save(`${disk.path}/a`) })).saving, TypeError);
    let explained: Promise<unknown> = Promise.resolve();
    guest.regions.explain(() => void (explained = guest.save(`${disk.path}/a`)));
    await assertRejects(() => explained, TypeError);
  }
  assertEquals([...Deno.readDirSync(disk.path)].length, 0);
});

Deno.test("a save that is given up while it tells of the last progress leaves nothing", async () => {
  using disk = folder();
  for (const backing of ["private", "shared"] as const) {
    for (const live of backing === "private" ? [false] : [false, true]) {
      const ram = [{ ranges: [range(0, MIB)], ...(backing === "private" && { backing }) }];
      using guest = GuestMemoryManager.create({ maxAddress: MIB, ram });
      const giveUp = new AbortController();
      const onProgress = (done: number, total: number) => void (done === total && giveUp.abort());
      const saving = () => guest.save(`${disk.path}/a`, { live, signal: giveUp.signal, onProgress });
      await assertRejects(saving, DOMException, "aborted");
    }
  }
  assertEquals([...Deno.readDirSync(disk.path)].length, 0);
});
