import { assert, assertEquals, assertThrows } from "@std/assert";
import { GuestMemoryManager, type GuestMemoryOptions, Mappable, type SharedRegion } from "membacking";
import { FAILURE_MODES, Faults, RecordingPartition } from "membacking/testing";
import { range } from "../support/units.ts";

const MIB = 2 ** 20;

function create(options: Partial<GuestMemoryOptions> = {}): GuestMemoryManager {
  return GuestMemoryManager.create({
    maxAddress: 64 * MIB,
    ram: [{ ranges: [range(0, 4 * MIB), range(8 * MIB, 10 * MIB)] }],
    ...options,
  });
}

/** Regions as text: range, and file offset. */
function text(regions: readonly SharedRegion[]): string[] {
  return regions.map(({ range, fileOffset }) => `${range} @0x${fileOffset.toString(16)}`);
}

const PAM = range(0xc_0000, 0xc_4000);

Deno.test("the shareable regions are what another process can map to see the same RAM", () => {
  using guest = create();
  const regions = guest.shareableRegions();
  assertEquals(text(regions), ["0x0-0x400000 @0x0", "0x800000-0xa00000 @0x400000"]);
  for (const { range, fd, fileOffset } of regions) {
    guest.memory.writeUint32(range.end - 4, 0x1234);
    using file = Mappable.fromFd(fd);
    const bytes = new Uint8Array(4);
    file.read(fileOffset + range.length - 4, bytes);
    assertEquals([...bytes], [0x34, 0x12, 0, 0]);
  }
});

Deno.test("the ranges that x86 legacy splits are one shareable region while all are RAM", () => {
  using guest = create({ x86Legacy: true });
  assertEquals(text(guest.shareableRegions()), ["0x0-0x400000 @0x0", "0x800000-0xa00000 @0x400000"]);
  guest.setRamVisibility(PAM, "unmapped");
  const split = ["0x0-0xc0000 @0x0", "0xc4000-0x400000 @0xc4000", "0x800000-0xa00000 @0x400000"];
  assertEquals(text(guest.shareableRegions()), split);
  guest.setRamVisibility(PAM, "read-only");
  assertEquals(text(guest.shareableRegions()), split);
});

Deno.test("private memory and device memory are not shareable, RAM added later is", () => {
  using guest = create({
    ram: [{ ranges: [range(0, MIB)], backing: "private" }, { ranges: [range(MIB, 2 * MIB)] }],
  });
  using file = Mappable.memfd("more", MIB);
  const device = guest.newDeviceMemory("device", MIB);
  device.map({ offset: 0, mappable: file, length: MIB });
  device.mapToGuest(16 * MIB, true);
  assertEquals(text(guest.shareableRegions()), ["0x100000-0x200000 @0x100000"]);

  const more = guest.regions.newRegion({ name: "dimm", range: range(4 * MIB, 5 * MIB), priority: 255, type: "ram" });
  more.addMapping({ rangeInRegion: range(0, MIB), mappable: file });
  more.map();
  assertEquals(text(guest.shareableRegions()), ["0x100000-0x200000 @0x100000", "0x400000-0x500000 @0x0"]);
});

Deno.test("neighbours of different files, or of one file at other offsets, stay apart", () => {
  using guest = create({ ram: [{ ranges: [range(0, MIB)] }, { ranges: [range(MIB, 2 * MIB)] }] });
  using file = Mappable.memfd("more", 2 * MIB);
  const more = guest.regions.newRegion({ name: "dimm", range: range(2 * MIB, 4 * MIB), priority: 255 });
  more.addMapping({ rangeInRegion: range(0, MIB), mappable: file, fileOffset: MIB });
  more.addMapping({ rangeInRegion: range(MIB, 2 * MIB), mappable: file, fileOffset: 0 });
  more.map();
  assertEquals(text(guest.shareableRegions()), [
    "0x0-0x100000 @0x0",
    "0x100000-0x200000 @0x100000",
    "0x200000-0x300000 @0x100000",
    "0x300000-0x400000 @0x0",
  ]);
});

Deno.test("a listener is told of the new list once per request that changed it, and of no other", () => {
  using guest = create({ x86Legacy: true });
  const told: string[][] = [];
  const watching = guest.watchShareableRegions((regions) => told.push(text(regions)));
  guest.setRamVisibility(PAM, "unmapped");
  assertEquals(told.splice(0), [text(guest.shareableRegions())]);
  guest.setRamVisibility(PAM, "read-only");
  guest.setRamVisibility(PAM, "read-only");
  assertEquals(told, []);
  guest.setRamVisibility(PAM, "read-write");
  assertEquals(told.splice(0).length, 1);

  guest.regions.batch(() => {
    guest.setRamVisibility(PAM, "unmapped");
    guest.setRamVisibility(range(0xc_4000, 0xc_8000), "unmapped");
  });
  assertEquals(told.splice(0).length, 1);
  guest.regions.batch(() => {
    guest.setRamVisibility(PAM, "read-write");
    guest.setRamVisibility(PAM, "unmapped");
  });
  using file = Mappable.memfd("device", MIB);
  const device = guest.newDeviceMemory("device", MIB);
  device.map({ offset: 0, mappable: file, length: MIB });
  device.mapToGuest(16 * MIB, true);
  using _attached = guest.attachPartition(new RecordingPartition());
  assertEquals(told, []);

  watching[Symbol.dispose]();
  watching[Symbol.dispose]();
  guest.setRamVisibility(PAM, "read-write");
  assertEquals(told, []);
});

Deno.test("a request that fails is not announced", () => {
  using guest = create({ x86Legacy: true });
  const faults = new Faults();
  using _attached = guest.attachPartition(new RecordingPartition({ faults }));
  let told = 0;
  using _watching = guest.watchShareableRegions(() => told++);
  for (const mode of FAILURE_MODES) {
    faults.failAfter(0, { mode });
    assertThrows(() => guest.setRamVisibility(PAM, "unmapped"));
    faults.reset();
  }
  assertThrows(() =>
    guest.regions.batch(() => {
      guest.setRamVisibility(PAM, "unmapped");
      throw new Error("never mind");
    })
  );
  assertEquals(told, 0);
  guest.setRamVisibility(PAM, "unmapped");
  assertEquals(told, 1);
});

Deno.test("a listener may make requests, which are announced in their turn", () => {
  using guest = create({ x86Legacy: true });
  const told: [string, number][] = [];
  using _first = guest.watchShareableRegions((regions) => {
    told.push(["first", regions.length]);
    if (regions.length === 3) guest.setRamVisibility(range(0xc_4000, 0xc_8000), "unmapped");
    if (regions.length === 3) guest.setRamVisibility(range(0xd_0000, 0xd_4000), "unmapped");
  });
  using _second = guest.watchShareableRegions((regions) => told.push(["second", regions.length]));
  guest.setRamVisibility(PAM, "unmapped");
  assertEquals(told, [["first", 3], ["second", 4], ["first", 4], ["second", 4]]);
});

Deno.test("what a listener throws is logged, and hinders neither the request nor other listeners", async () => {
  const logged: unknown[] = [];
  const log = () => {};
  using guest = create({
    x86Legacy: true,
    logger: {
      debug: log,
      info: log,
      warn: log,
      error(_msg, error) {
        logged.push(error);
        throw new Error("so does the logger");
      },
    },
  });
  using _sync = guest.watchShareableRegions(() => {
    throw new Error("sync");
  });
  using _async = guest.watchShareableRegions((() => Promise.reject(new Error("async"))) as () => void);
  let told = 0;
  using _last = guest.watchShareableRegions(() => told++);
  guest.setRamVisibility(PAM, "unmapped");
  await new Promise((resolve) => setTimeout(resolve, 0));
  assertEquals([logged.map((error) => error instanceof Error && error.message), told], [["sync", "async"], 1]);
  assertThrows(() => guest.watchShareableRegions(undefined as never), TypeError);
});

Deno.test("a listener may stop listening, or dispose the manager, while it is told", () => {
  const guest = create({ x86Legacy: true });
  let told = 0;
  const watching = guest.watchShareableRegions(() => {
    told++;
    watching[Symbol.dispose]();
  });
  guest.setRamVisibility(PAM, "unmapped");
  guest.setRamVisibility(PAM, "read-write");
  assertEquals(told, 1);
  guest.watchShareableRegions(() => guest[Symbol.dispose]());
  guest.watchShareableRegions(() => told++);
  guest.setRamVisibility(PAM, "unmapped");
  assert(guest.regions.disposed);
});
