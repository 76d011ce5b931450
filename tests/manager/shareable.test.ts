import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import {
  GuestMemoryManager,
  type GuestMemoryOptions,
  Mappable,
  MappingError,
  MembackingError,
  type RamHandle,
  ReentrancyError,
  type SharedRegion,
} from "membacking";
import { FAILURE_MODES, Faults, RecordingPartition, RecordingVa } from "membacking/testing";
import { fdFlags } from "../support/proc.ts";
import { PAGE, range } from "../support/units.ts";

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
const DIMM = 16 * MIB;

/** A megabyte of RAM at `start` that is plugged in and out. */
class Dimm {
  #handle: RamHandle | null = null;
  constructor(readonly guest: GuestMemoryManager, readonly start: number = DIMM) {}

  plug(): void {
    this.#handle = this.guest.addRam({ name: "dimm", ranges: [range(this.start, this.start + MIB)] });
  }

  unplug(): void {
    this.#handle?.[Symbol.dispose]();
    this.#handle = null;
  }
}

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

Deno.test("the ranges that x86 legacy splits are one shareable region, whatever is visible of them", () => {
  using guest = create({ x86Legacy: true });
  const whole = ["0x0-0x400000 @0x0", "0x800000-0xa00000 @0x400000"];
  const look = () => {
    const [low, high] = guest.shareableRegions();
    assertEquals(text([low!, high!]), whole);
    assertEquals(low?.hva, guest.memory.hostAddress(0, 1));
    assertEquals(high?.hva, guest.memory.hostAddress(8 * MIB, 1));
    return low?.readOnly.map(String);
  };
  assertEquals(look(), []);
  for (const to of ["unmapped", "read-only"] as const) {
    guest.setRamVisibility(PAM, to);
    assertEquals(look(), ["0xc0000-0xc4000"]);
  }
  guest.setRamVisibility(range(0xc_4000, 0xc_8000), "unmapped");
  assertEquals(look(), ["0xc0000-0xc8000"]);
});

Deno.test("copy-on-write RAM is not shareable, and RAM that comes and goes is while it is there", () => {
  using saved = Mappable.memfd("saved", MIB);
  using guest = create({ ram: [{ ranges: [range(0, MIB)], backing: saved, copyOnWrite: true }] });
  assertEquals(guest.shareableRegions(), []);
  const told: string[][] = [];
  using _watching = guest.watchShareableRegions((regions) => told.push(text(regions)));
  const dimm = guest.addRam({ ranges: [range(4 * MIB, 6 * MIB)] });
  guest.setRamVisibility(range(4 * MIB, 6 * MIB), "unmapped");
  guest.setRamVisibility(range(4 * MIB, 6 * MIB), "read-only");
  dimm[Symbol.dispose]();
  const hidden = guest.addRam({ ranges: [range(4 * MIB, 6 * MIB)] });
  guest.setRamVisibility(range(4 * MIB, 6 * MIB), "unmapped");
  hidden[Symbol.dispose]();
  const there = ["0x400000-0x600000 @0x0"];
  assertEquals(told, [there, [], there, []]);
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
  const [dimm, other] = [new Dimm(guest), new Dimm(guest, 20 * MIB)];
  const told: string[][] = [];
  const watching = guest.watchShareableRegions((regions) => told.push(text(regions)));
  dimm.plug();
  assertEquals(told.splice(0), [text(guest.shareableRegions())]);
  for (const to of ["unmapped", "read-only", "read-write"] as const) guest.setRamVisibility(PAM, to);
  assertEquals(told, []);
  dimm.unplug();
  assertEquals(told.splice(0).length, 1);

  guest.regions.batch(() => {
    dimm.plug();
    other.plug();
  });
  assertEquals(told.splice(0).length, 1);
  using file = Mappable.memfd("device", MIB);
  const device = guest.newDeviceMemory("device", MIB);
  device.map({ offset: 0, mappable: file, length: MIB });
  device.mapToGuest(32 * MIB, true);
  using _attached = guest.attachPartition(new RecordingPartition());
  assertEquals(told, []);

  watching[Symbol.dispose]();
  watching[Symbol.dispose]();
  dimm.unplug();
  assertEquals(told, []);
});

Deno.test("a request that fails is not announced", () => {
  using guest = create({ x86Legacy: true });
  const dimm = new Dimm(guest);
  const faults = new Faults();
  using _attached = guest.attachPartition(new RecordingPartition({ faults }));
  let told = 0;
  using _watching = guest.watchShareableRegions(() => told++);
  for (const mode of FAILURE_MODES) {
    faults.failAfter(0, { mode });
    assertThrows(() => dimm.plug());
    faults.reset();
    assertEquals(guest.ramRanges.at(-1)?.end, 10 * MIB);
  }
  assertThrows(() =>
    guest.regions.batch(() => {
      dimm.plug();
      throw new Error("never mind");
    })
  );
  assertEquals([told, guest.ramRanges.at(-1)?.end], [0, 10 * MIB]);
  dimm.plug();
  assertEquals(told, 1);
});

Deno.test("a listener may make requests, which are announced in their turn", () => {
  using guest = create();
  const [dimm, second, third] = [new Dimm(guest), new Dimm(guest, 20 * MIB), new Dimm(guest, 24 * MIB)];
  const told: [string, number][] = [];
  using _first = guest.watchShareableRegions((regions) => {
    told.push(["first", regions.length]);
    if (regions.length === 3) second.plug();
    if (regions.length === 3) third.plug();
  });
  using _second = guest.watchShareableRegions((regions) => told.push(["second", regions.length]));
  dimm.plug();
  assertEquals(told, [["first", 3], ["second", 5], ["first", 5], ["second", 5]]);
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
  new Dimm(guest).plug();
  await new Promise((resolve) => setTimeout(resolve, 0));
  assertEquals([logged.map((error) => error instanceof Error && error.message), told], [["sync", "async"], 1]);
  assertThrows(() => guest.watchShareableRegions(undefined as never), TypeError);
});

Deno.test("a listener may stop listening, or dispose the manager, while it is told", () => {
  const guest = create({ x86Legacy: true });
  const dimm = new Dimm(guest);
  let told = 0;
  const watching = guest.watchShareableRegions(() => {
    told++;
    watching[Symbol.dispose]();
  });
  dimm.plug();
  dimm.unplug();
  assertEquals(told, 1);
  guest.watchShareableRegions(() => guest[Symbol.dispose]());
  guest.watchShareableRegions(() => told++);
  dimm.plug();
  assert(guest.regions.disposed);
});

Deno.test("RAM that is replaced by the same file, or of whose run the first part goes, is told of by a file that is open", () => {
  using guest = GuestMemoryManager.create({ maxAddress: 0x100_0000, ram: [] });
  const told: string[][] = [];
  using _watching = guest.watchShareableRegions((regions) => {
    for (const { fd } of regions) assert(fdFlags(fd) !== undefined);
    told.push(regions.map(({ range, fileOffset }) => `${range} ${fileOffset}`));
  });
  using file = Mappable.memfd("ram", 0x8000);
  const region = guest.regions.newRegion({ name: "ram", range: range(0, 0x8000), priority: 0 });
  region.map();
  const map = (start: number, end: number, fileOffset: number) =>
    region.addMapping({ rangeInRegion: range(start, end), mappable: file, fileOffset });
  map(0, 0x4000, 0);
  map(0x4000, 0x8000, 0x4000);
  map(0, 0x4000, 0); // the same again
  map(0x2000, 0x3000, 0x2000);
  region.removeMappings(range(0, 0x4000));
  map(0x4000, 0x8000, 0x4000);
  region.removeMappings(range(0x5000, 0x6000));
  assertEquals(told, [
    ["0x0-0x4000 0"],
    ["0x0-0x8000 0"],
    ["0x4000-0x8000 16384"],
    ["0x4000-0x5000 16384", "0x6000-0x8000 24576"],
  ]);
});

Deno.test("RAM that an undo could not put back is listed no more, and again once a request has brought it back", () => {
  const MAPPED = range(16 * MIB, 17 * MIB);
  const TOP = { type: "device", priority: 1 } as const;
  for (const watched of [false, true]) {
    const faults = new Faults();
    const va = new RecordingVa<Mappable>(64 * MIB, { faults });
    using guest = create({ va, ram: [], overlap: "any" });
    const { regions } = guest;
    const told: string[][] = [];
    using _watch = watched ? guest.watchShareableRegions((list) => told.push(text(list))) : undefined;
    using file = Mappable.memfd("other", 2 * MIB);
    const other = regions.newRegion({ name: "other", range: MAPPED, priority: 2, type: "ram" });
    other.addMapping({ rangeInRegion: range(0, MIB), mappable: file });
    other.map();
    // A device all around it, which it hides in its middle.
    const device = regions.newRegion({ ...TOP, name: "device", range: range(15 * MIB, 18 * MIB) });
    device.map();
    const all = ["0x1000000-0x1100000 @0x0"];
    const look = () => text(guest.shareableRegions());
    assertEquals(look(), all);
    faults.failAfter(0, { mode: "old-state-destroyed", times: Infinity });
    assertThrows(
      () => other.addMapping({ rangeInRegion: range(0, MIB), mappable: file, fileOffset: MIB }),
      MappingError,
    );
    faults.reset();
    assertEquals(look(), [], `watched: ${watched}`);
    // A request of the device's own brings back what is around it.
    device.addMapping({ rangeInRegion: range(0, PAGE), mappable: file });
    assertEquals(look(), all, `watched: ${watched}`);
    if (watched) assertEquals(told, [all, [], all]);
  }
});

/** The list that watching keeps, beside the one that is looked up anew. */
function both(guest: GuestMemoryManager, watching: Disposable): [string[], string[]] {
  const describe = () =>
    guest.shareableRegions().map(({ range, fileOffset, fd, readOnly }) => `${range} ${fileOffset} ${fd} ${readOnly}`);
  const watched = describe();
  watching[Symbol.dispose]();
  return [watched, describe()];
}

const HIDINGS: Record<string, (guest: GuestMemoryManager, stack: DisposableStack) => void> = {
  "switched off": (guest) => guest.setRamVisibility(range(8 * MIB, 10 * MIB), "unmapped"),
  "hidden by device memory": (guest, stack) => {
    const bar = stack.use(guest.newDeviceMemory("bar", 2 * MIB, { priority: 255 }));
    bar.map({ offset: 0, mappable: stack.use(Mappable.memfd("bar", 2 * MIB)) });
    bar.mapToGuest(8 * MIB, true);
  },
};
for (const [how, hide] of Object.entries(HIDINGS)) {
  Deno.test(`RAM that is ${how} leaves the list when it is frozen, and comes back when it is thawed`, () => {
    using stack = new DisposableStack();
    const guest = stack.use(create({ ramPriority: 10, overlap: "any" }));
    hide(guest, stack);
    let told: string[] = [];
    const watch = () => guest.watchShareableRegions((regions) => told = text(regions));
    let watching = watch();
    const template = guest.freeze();
    assertEquals(both(guest, watching), [[], []]);
    watching = watch();
    template[Symbol.dispose]();
    guest.thaw();
    assertEquals(told, ["0x0-0x400000 @0x0", "0x800000-0xa00000 @0x400000"]);
    const [watched, unwatched] = both(guest, watching);
    assertEquals(watched, unwatched);
  });
}

Deno.test("whoever is told of a freeze gets no descriptor of its files, and its template stays as it is", () => {
  using guest = create();
  guest.memory.writeUint8(0x1000, 1);
  const seen: unknown[] = [];
  using _watching = guest.watchShareableRegions((regions) => {
    seen.push(regions.length);
    try {
      const found = guest.memory.find(0x1000);
      seen.push(found?.mappable?.fd);
    } catch (error) {
      seen.push(error instanceof MembackingError);
    }
  });
  using template = guest.freeze();
  assertEquals(seen, [0, true]);
  using clone = template.clone();
  assertEquals(clone.memory.readUint8(0x1000), 1);
});

Deno.test("whoever is told of a freeze may add RAM, which is none of that moment, but cannot freeze or go back meanwhile", () => {
  using guest = create();
  const refused: unknown[] = [];
  let added: RamHandle | undefined;
  using _watching = guest.watchShareableRegions(() => {
    for (const act of [() => guest.freeze(), () => guest.thaw(), () => guest.rollback()]) {
      if (added === undefined) {
        try {
          act();
        } catch (error) {
          refused.push(error instanceof Error ? error.name : error);
        }
      }
    }
    added ??= guest.addRam({ ranges: [range(DIMM, DIMM + MIB)] });
  });
  using _template = guest.freeze();
  // There is nothing to thaw or to go back to before the freeze is over.
  assertEquals(refused, ["ReentrancyError", "MembackingError"]);
  guest.memory.writeUint8(DIMM, 7);
  guest.memory.writeUint8(0, 7);
  guest.rollback();
  assertEquals([guest.memory.readUint8(DIMM), guest.memory.readUint8(0)], [7, 0]);
  assertEquals(text(guest.shareableRegions()), ["0x1000000-0x1100000 @0x0"]);
});

Deno.test("a batch that fails, and whose undo does, is told of like a request", () => {
  for (const isBatch of [false, true]) {
    const faults = new Faults();
    using guest = create({ va: new RecordingVa<Mappable>(64 * MIB, { faults }), ram: [] });
    using file = Mappable.memfd("more", MIB);
    const more = guest.regions.newRegion({ name: "more", range: range(DIMM, DIMM + MIB), priority: 1 });
    more.addMapping({ rangeInRegion: range(0, MIB), mappable: file });
    more.map();
    const told: number[] = [];
    const watching = guest.watchShareableRegions((regions) => told.push(regions.length));
    faults.failAfter(0, { mode: "old-state-destroyed", times: 2 });
    assertThrows(() => isBatch ? guest.regions.batch(() => more.unmap()) : more.unmap(), MappingError);
    assertEquals(told, [0]);
    const [watched, unwatched] = both(guest, watching);
    assertEquals(watched, unwatched);
  }
});

Deno.test("what the guest cannot write is the RAM that it cannot, whatever shows there instead", () => {
  using guest = create({ x86Legacy: true, ram: [{ ranges: [range(0, 4 * MIB)] }] });
  using vram = Mappable.memfd("vram", 0x2_0000);
  const vga = range(0xa_0000, 0xc_0000);
  guest.setRamVisibility(vga, "unmapped");
  using device = guest.newDeviceMemory("vga", vga.length);
  device.map({ offset: 0, mappable: vram });
  device.mapToGuest(vga.start, true);
  const watching = guest.watchShareableRegions(() => {});
  assertEquals(guest.shareableRegions()[0]?.readOnly.map(String), [`${vga}`]);
  const [watched, unwatched] = both(guest, watching);
  assertEquals(watched, unwatched);
});

Deno.test("a listener is not told any more once another one has disposed it, nor of what was before it came", () => {
  using guest = create();
  const told: string[] = [];
  const second: Disposable[] = [];
  const first = guest.watchShareableRegions(() => {
    told.push("first");
    second[0]?.[Symbol.dispose]();
  });
  second.push(guest.watchShareableRegions(() => told.push("second")));
  new Dimm(guest).plug();
  assertEquals(told, ["first"]);
  first[Symbol.dispose]();

  const last = guest.watchShareableRegions(() => {
    if (told.push("last") > 2) return;
    new Dimm(guest, DIMM + 2 * MIB).plug();
    last[Symbol.dispose]();
  });
  new Dimm(guest, DIMM + 4 * MIB).plug();
  using _later = guest.watchShareableRegions(() => told.push("later"));
  using bar = guest.newDeviceMemory("bar", MIB);
  bar.mapToGuest(32 * MIB, true);
  assertEquals(told, ["first", "last"]);
});

Deno.test("who begins to watch in a batch that fails keeps no list of what did not happen", () => {
  using guest = create();
  const dimm = new Dimm(guest);
  dimm.plug();
  const watching: Disposable[] = [];
  assertThrows(
    () =>
      guest.regions.batch(() => {
        dimm.unplug();
        watching.push(guest.watchShareableRegions(() => {}));
        throw new Error("not today");
      }),
    Error,
    "not today",
  );
  const [watched, unwatched] = both(guest, watching[0]!);
  assertEquals(watched, unwatched);
  assertEquals(watched.length, 3);
});

Deno.test("whoever is told of a second freeze cannot save the moment that is half done", async () => {
  using guest = create();
  guest.freeze()[Symbol.dispose]();
  new Dimm(guest).plug();
  const folder = await Deno.makeTempDir();
  const saves: Promise<unknown>[] = [];
  using _watching = guest.watchShareableRegions(() => saves.push(guest.save(`${folder}/saved`, { live: true })));
  using _template = guest.freeze();
  assertEquals(saves.length, 1);
  await assertRejects(() => saves[0]!, ReentrancyError);
  assertEquals([...Deno.readDirSync(folder)], []);
  await Deno.remove(folder, { recursive: true });
});
