/**
 * What a VMM's own test may do without any permission. Run by `../permissionless.test.ts` with none.
 *
 * @module
 */

import { assert, assertEquals, assertThrows } from "@std/assert";
import {
  drawMemoryMap,
  GuestMemoryError,
  GuestMemoryManager,
  type GuestMemoryOptions,
  type Mappable,
  MembackingError,
  MemoryLockedError,
  MemoryRange,
} from "membacking";
import { Faults, RecordingDmaTarget, RecordingPartition, RecordingVa, standIn } from "membacking/testing";

const MIB = 2 ** 20;

function create(options: Partial<GuestMemoryOptions> = {}): GuestMemoryManager {
  return GuestMemoryManager.create({
    maxAddress: 64 * MIB,
    ram: [
      { name: "low", ranges: [new MemoryRange(0, 8 * MIB)] },
      { name: "own", ranges: [new MemoryRange(16 * MIB, 24 * MIB)], backing: "private", transparentHugepages: false },
    ],
    x86Legacy: false,
    va: new RecordingVa<Mappable>(64 * MIB),
    ...options,
  });
}

Deno.test("a VMM is created, loads a kernel, maps devices and draws its memory", async () => {
  using guest = create({ ram: [{ ranges: [new MemoryRange(0, 8 * MIB)] }], x86Legacy: true });
  const vm = new RecordingPartition();
  const dma = new RecordingDmaTarget();
  using _attached = guest.attachPartition(vm, { aliasOffset: 64 * MIB });
  using _dma = guest.regions.addDmaTarget(dma);
  using kernel = standIn("kernel", 0x4000);
  kernel.write(0x1000, new TextEncoder().encode("vmlinux"));
  guest.memory.readFrom(kernel, 0x1000, 0x10_0000, 0x2000);
  assertEquals(new TextDecoder().decode(guest.memory.read(0x10_0000, 7)), "vmlinux");
  guest.memory.writeTo(kernel, 0, 0x10_0000, 7);
  const back = new Uint8Array(7);
  kernel.read(0, back);
  assertEquals(new TextDecoder().decode(back), "vmlinux");

  using bar = guest.newDeviceMemory("frame buffer", 0x4000);
  using pixels = standIn("pixels", 0x4000);
  bar.map({ offset: 0, mappable: pixels, length: 0x4000 });
  bar.mapToGuest(32 * MIB, true);
  guest.memory.storeUint32(32 * MIB + 8, 0xff_00ff);
  bar.mapToGuest(40 * MIB, true);
  assertEquals(guest.memory.loadUint32(40 * MIB + 8), 0xff_00ff);
  assertEquals(vm.accessAt(40 * MIB)?.writable, true);
  guest.setRamVisibility(new MemoryRange(0xa_0000, 0xc_0000), "unmapped");
  assertEquals(assertThrows(() => guest.memory.readUint8(0xa_0000), GuestMemoryError).kind, "not-mapped");
  using _dimm = guest.addRam({ name: "dimm", ranges: [new MemoryRange(48 * MIB, 50 * MIB)] });
  guest.memory.fill(48 * MIB, 2 * MIB, 7);
  await guest.prefault();
  const picture = drawMemoryMap(guest.inspect());
  for (const name of ["frame buffer", "dimm", "ram"]) assert(picture.includes(name), picture);
  assertThrows(() => guest.shareableRegions(), MembackingError, "has no file descriptor");
  assertThrows(() => pixels.fd, MembackingError, "has no file descriptor");
});

Deno.test("memory of every kind keeps what is written, over pieces and through locks", () => {
  using saved = standIn("saved", 4 * MIB);
  saved.write(0, new Uint8Array([1, 2, 3]));
  using guest = create();
  using _restored = guest.addRam({
    ranges: [new MemoryRange(8 * MIB, 12 * MIB)],
    backing: saved,
    copyOnWrite: true,
  });
  const { memory } = guest;
  assertEquals([...memory.read(8 * MIB, 3)], [1, 2, 3]);
  memory.writeUint32(8 * MIB - 2, 0x4433_2211);
  assertEquals(memory.readUint32(8 * MIB - 2), 0x4433_2211);
  const kept = new Uint8Array(3);
  saved.read(0, kept);
  assertEquals([...kept], [1, 2, 3]);
  memory.writeBigUint64(16 * MIB, 5n);
  assertEquals(memory.compareExchangeBigUint64(16 * MIB, 5n, 6n), 5n);
  {
    using ring = memory.lock(new MemoryRange(16 * MIB, 16 * MIB + 0x1000), { write: true });
    assertEquals(ring.bytes[0], 6);
    ring.bytes[1] = 7;
    assertThrows(() => _restored.ranges.forEach(() => guest.setRamVisibility(ring.range, "unmapped")));
  }
  assertEquals(memory.readUint16(16 * MIB), 0x0706);
  // What is in no file is kept while it is switched off.
  const own = new MemoryRange(16 * MIB, 24 * MIB);
  guest.setRamVisibility(own, "unmapped");
  guest.setRamVisibility(own, "read-write");
  assertEquals(memory.readUint16(16 * MIB), 0x0706);
  guest.discard(new MemoryRange(16 * MIB, 17 * MIB));
  guest.discard(new MemoryRange(8 * MIB, 9 * MIB));
  assertEquals([memory.readUint16(16 * MIB), memory.readUint8(8 * MIB)], [0, 0]);
  const lock = memory.lock(new MemoryRange(8 * MIB, 8 * MIB + 0x1000));
  assertThrows(() => _restored[Symbol.dispose](), MemoryLockedError);
  lock[Symbol.dispose]();
});

Deno.test("a request that fails is undone, contents and all", () => {
  const faults = new Faults();
  using guest = create({ va: new RecordingVa<Mappable>(64 * MIB, { faults }) });
  guest.memory.writeUint32(0x1000, 9);
  using file = standIn("other", MIB);
  using bar = guest.newDeviceMemory("bar", MIB);
  bar.map({ offset: 0, mappable: file, length: MIB });
  for (const mode of ["nothing-done", "done-then-failed", "old-state-destroyed"] as const) {
    faults.failAfter(0, { mode });
    assertThrows(() => bar.mapToGuest(32 * MIB, true));
    faults.reset();
    assertEquals([guest.memory.readUint32(0x1000), guest.memory.find(32 * MIB)], [9, null]);
  }
});
