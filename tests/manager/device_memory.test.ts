import { assert, assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import {
  DisposedError,
  type GuestMemoryError,
  GuestMemoryManager,
  type GuestMemoryOptions,
  Mappable,
  MappingError,
  MemoryLockedError,
  RegionOverlapError,
} from "membacking";
import { RecordingPartition } from "membacking/testing";
import { openFds } from "../support/proc.ts";
import { kvmTest } from "../support/require.ts";
import { Machine, NOTHING } from "./machine.ts";
import { PAGE, range } from "../support/units.ts";

const MIB = 2 ** 20;
const OPTIONS: GuestMemoryOptions = { maxAddress: 16 * MIB, ram: [{ ranges: [range(0, 2 * MIB)] }] };
const BAR_AT = 8 * MIB;

/** A file of which page n begins with the number `base + n`. */
function numbered(pages: number, base = 0): Mappable {
  const file = Mappable.memfd("numbered", pages * PAGE);
  for (let n = 0; n < pages; n++) file.write(n * PAGE, new Uint8Array(new Uint32Array([base + n]).buffer));
  return file;
}

/** The number at the start of each page, `null` where nothing is mapped. */
function pages(guest: GuestMemoryManager, gpa: number, count: number): (number | null)[] {
  return Array.from({ length: count }, (_, i) => {
    try {
      return guest.memory.readUint32(gpa + i * PAGE);
    } catch (error) {
      assertEquals((error as GuestMemoryError).kind, "not-mapped");
      return null;
    }
  });
}

Deno.test("device memory shows what is mapped in it wherever it is put", () => {
  using guest = GuestMemoryManager.create(OPTIONS);
  using file = numbered(8, 100);
  const bar = guest.newDeviceMemory("bar", 4 * PAGE);
  assertEquals([bar.name, bar.length, bar.gpa, bar.visible.length], ["bar", 4 * PAGE, null, 0]);
  bar.map({ offset: PAGE, mappable: file, fileOffset: 2 * PAGE, length: 2 * PAGE });
  bar.mapToGuest(BAR_AT, true);
  assertEquals(pages(guest, BAR_AT, 4), [null, 102, 103, null]);
  assertEquals([bar.gpa, bar.visible.map(String)], [BAR_AT, ["0x800000-0x804000"]]);
  bar.map({ offset: 0, mappable: file, fileOffset: 7 * PAGE, length: PAGE });
  assertEquals(pages(guest, BAR_AT, 4), [107, 102, 103, null]);
  bar.mapToGuest(BAR_AT + 0x10_0000, true);
  assertEquals(pages(guest, BAR_AT, 4), [null, null, null, null]);
  assertEquals(pages(guest, BAR_AT + 0x10_0000, 4), [107, 102, 103, null]);
  bar.unmapFromGuest();
  bar.unmapFromGuest();
  assertEquals([bar.gpa, ...pages(guest, BAR_AT + 0x10_0000, 1)], [null, null]);
  bar.mapToGuest(BAR_AT, true);
  assertEquals(pages(guest, BAR_AT, 4), [107, 102, 103, null]);
});

Deno.test("overlapping maps replace, and partial unmaps split, whether the guest has the memory or not", () => {
  for (const early of [true, false]) {
    using guest = GuestMemoryManager.create(OPTIONS);
    using a = numbered(8, 100);
    using b = numbered(8, 200);
    const bar = guest.newDeviceMemory("bar", 8 * PAGE);
    if (early) bar.mapToGuest(BAR_AT, true);
    bar.map({ offset: 0, mappable: a, length: 8 * PAGE });
    bar.map({ offset: 2 * PAGE, mappable: b, fileOffset: PAGE, length: 2 * PAGE });
    bar.unmap(3 * PAGE, 2 * PAGE);
    bar.unmap(7 * PAGE, PAGE);
    bar.unmap(7 * PAGE, PAGE);
    if (!early) bar.mapToGuest(BAR_AT, true);
    assertEquals(pages(guest, BAR_AT, 8), [100, 101, 201, null, null, 105, 106, null]);
    assertEquals(bar.inspect().mappings.map(({ range, fileOffset }) => [range, fileOffset]), [
      ["0x0-0x2000", 0],
      ["0x2000-0x3000", 0x1000],
      ["0x5000-0x7000", 0x5000],
    ]);
  }
});

Deno.test("device memory is writable where both the mapping and the guest's view of it are", () => {
  using guest = GuestMemoryManager.create(OPTIONS);
  using file = numbered(2);
  const bar = guest.newDeviceMemory("bar", 2 * PAGE);
  bar.map({ offset: 0, mappable: file, length: PAGE });
  bar.map({ offset: PAGE, mappable: file, fileOffset: PAGE, length: PAGE, writable: false });
  const writable = () =>
    [0, PAGE].map((offset) => {
      try {
        guest.memory.writeUint8(BAR_AT + offset + 8, 1);
        return true;
      } catch {
        return false;
      }
    });
  bar.mapToGuest(BAR_AT, true);
  assertEquals(writable(), [true, false]);
  bar.mapToGuest(BAR_AT, false);
  assertEquals(writable(), [false, false]);
  bar.mapToGuest(BAR_AT, true);
  assertEquals(writable(), [true, false]);
});

Deno.test("device memory keeps files of its own, and closes them with the last piece", () => {
  using guest = GuestMemoryManager.create(OPTIONS);
  const bar = guest.newDeviceMemory("bar", 4 * PAGE);
  const before = openFds();
  const file = numbered(4, 100);
  bar.map({ offset: 0, mappable: file, length: 4 * PAGE });
  file[Symbol.dispose]();
  bar.mapToGuest(BAR_AT, true);
  assertEquals(pages(guest, BAR_AT, 4), [100, 101, 102, 103]);
  bar.unmap(PAGE, 2 * PAGE);
  assertEquals(openFds(), before + 1);
  bar.unmap(0, 4 * PAGE);
  assertEquals(openFds(), before);
});

Deno.test("RAM hides device memory that lies below it", () => {
  using guest = GuestMemoryManager.create(OPTIONS);
  using file = numbered(1, 7);
  const bar = guest.newDeviceMemory("bar", PAGE);
  bar.map({ offset: 0, mappable: file, length: PAGE });
  bar.mapToGuest(MIB, true);
  assertEquals([guest.memory.readUint32(MIB), bar.gpa, bar.visible.length], [0, MIB, 0]);
  bar.mapToGuest(BAR_AT, true);
  assertEquals(guest.memory.readUint32(BAR_AT), 7);
});

Deno.test("a BAR put at a place that is not possible stays where it was", () => {
  using guest = GuestMemoryManager.create(OPTIONS);
  using file = numbered(4, 100);
  const bar = guest.newDeviceMemory("bar", 4 * PAGE);
  const other = guest.newDeviceMemory("other", 4 * PAGE);
  other.mapToGuest(12 * MIB, true);
  bar.map({ offset: 0, mappable: file, length: 4 * PAGE });
  bar.mapToGuest(BAR_AT, true);
  const stays = () => assertEquals([bar.gpa, ...pages(guest, BAR_AT, 4)], [BAR_AT, 100, 101, 102, 103]);

  assertThrows(() => bar.mapToGuest(2 * MIB - PAGE, true), RegionOverlapError, "ram");
  stays();
  assertThrows(() => bar.mapToGuest(12 * MIB + PAGE, true), RegionOverlapError, "other");
  stays();
  for (
    const gpa of [16 * MIB - PAGE, 16 * MIB, 2 ** 52 - PAGE, 2 ** 52, 2 ** 53, -PAGE, 0.5, NaN, Infinity, BAR_AT + 1]
  ) {
    assertThrows(() => bar.mapToGuest(gpa, true), RangeError);
    stays();
  }
  assertThrows(() => bar.mapToGuest("0x800000" as never, true), TypeError);
  assertThrows(() => bar.mapToGuest(9 * MIB, 1 as never), TypeError);
  {
    using _locked = guest.memory.lock(range(BAR_AT, BAR_AT + PAGE));
    assertThrows(() => bar.mapToGuest(9 * MIB, true), MemoryLockedError);
    assertThrows(() => bar.unmapFromGuest(), MemoryLockedError);
    assertThrows(() => bar.unmap(0, PAGE), MemoryLockedError);
    assertThrows(() => bar.map({ offset: 0, mappable: file, fileOffset: PAGE, length: PAGE }), MemoryLockedError);
    assertThrows(() => bar[Symbol.dispose](), MemoryLockedError);
    stays();
  }
  bar.mapToGuest(9 * MIB, true);
  assertEquals(pages(guest, 9 * MIB, 4), [100, 101, 102, 103]);
});

Deno.test("a move over its own old place works, in both directions", () => {
  using guest = GuestMemoryManager.create(OPTIONS);
  using file = numbered(4, 100);
  const bar = guest.newDeviceMemory("bar", 4 * PAGE);
  bar.map({ offset: 0, mappable: file, length: 4 * PAGE });
  for (const gpa of [BAR_AT, BAR_AT + PAGE, BAR_AT + 3 * PAGE, BAR_AT + 2 * PAGE, BAR_AT]) {
    bar.mapToGuest(gpa, true);
    assertEquals(pages(guest, gpa, 4), [100, 101, 102, 103]);
  }
});

Deno.test("whichever step of a move fails, the old place works, and trying again moves it", () => {
  for (let step = 0;; step++) {
    using guest = GuestMemoryManager.create(OPTIONS);
    const vm = new RecordingPartition();
    using _attached = guest.attachPartition(vm);
    using file = numbered(4, 100);
    const bar = guest.newDeviceMemory("bar", 4 * PAGE);
    bar.map({ offset: 0, mappable: file, length: PAGE });
    bar.map({ offset: 2 * PAGE, mappable: file, fileOffset: PAGE, length: 2 * PAGE });
    bar.mapToGuest(BAR_AT, true);
    const before = vm.ranges.map(({ range, hva }) => `${range} ${hva}`);
    vm.faults.failAfter(step);
    let failed = false;
    try {
      bar.mapToGuest(9 * MIB, true);
    } catch (error) {
      assert(error instanceof MappingError);
      failed = true;
    }
    vm.faults.reset();
    if (!failed) {
      assert(step >= 4, "too few steps failed");
      return;
    }
    assertEquals([bar.gpa, ...pages(guest, BAR_AT, 4)], [BAR_AT, 100, null, 101, 102]);
    assertEquals(vm.ranges.map(({ range, hva }) => `${range} ${hva}`), before);
    bar.mapToGuest(9 * MIB, true);
    assertEquals([bar.gpa, ...pages(guest, 9 * MIB, 4)], [9 * MIB, 100, null, 101, 102]);
  }
});

Deno.test("a batch that fails takes back what it did to device memory", () => {
  using guest = GuestMemoryManager.create(OPTIONS);
  using a = numbered(4, 100);
  using b = numbered(4, 200);
  const bar = guest.newDeviceMemory("bar", 4 * PAGE);
  bar.map({ offset: 0, mappable: a, length: 4 * PAGE });
  bar.mapToGuest(BAR_AT, true);
  const fds = openFds();
  const change = () => {
    bar.map({ offset: PAGE, mappable: b, length: PAGE });
    bar.unmap(2 * PAGE, PAGE);
    bar.mapToGuest(9 * MIB, false);
    bar.map({ offset: 0, mappable: b, fileOffset: PAGE, length: PAGE });
  };
  assertThrows(() =>
    guest.regions.batch(() => {
      change();
      throw new Error("never mind");
    })
  );
  assertEquals([bar.gpa, ...pages(guest, BAR_AT, 4)], [BAR_AT, 100, 101, 102, 103]);
  assertThrows(() =>
    guest.regions.batch(() => {
      change();
      bar[Symbol.dispose]();
      throw new Error("never mind");
    })
  );
  assertEquals([bar.gpa, ...pages(guest, BAR_AT, 4)], [BAR_AT, 100, 101, 102, 103]);
  assertEquals(openFds(), fds);

  guest.regions.batch(change);
  assertEquals([bar.gpa, ...pages(guest, 9 * MIB, 4)], [9 * MIB, 201, 200, null, 103]);
});

Deno.test("a request that fails inside a batch leaves no trace in it if the batch goes on", () => {
  using guest = GuestMemoryManager.create(OPTIONS);
  using file = numbered(4, 100);
  const [bar, other] = [guest.newDeviceMemory("bar", 4 * PAGE), guest.newDeviceMemory("other", 4 * PAGE)];
  bar.map({ offset: 0, mappable: file, length: 4 * PAGE });
  bar.mapToGuest(BAR_AT, true);
  guest.regions.batch(() => {
    assertThrows(() => bar.mapToGuest(2 * MIB - PAGE, true), RegionOverlapError);
    other.mapToGuest(9 * MIB, true);
  });
  assertEquals([bar.gpa, other.gpa, ...pages(guest, BAR_AT, 4)], [BAR_AT, 9 * MIB, 100, 101, 102, 103]);
});

Deno.test("two BARs change places in one batch", () => {
  using guest = GuestMemoryManager.create(OPTIONS);
  using file = numbered(2, 100);
  const bars = [0, 1].map((i) => {
    const bar = guest.newDeviceMemory(`bar ${i}`, PAGE);
    bar.map({ offset: 0, mappable: file, fileOffset: i * PAGE, length: PAGE });
    bar.mapToGuest(BAR_AT + i * PAGE, true);
    return bar;
  });
  guest.regions.batch(() => {
    bars[0]?.unmapFromGuest();
    bars[1]?.mapToGuest(BAR_AT, true);
    bars[0]?.mapToGuest(BAR_AT + PAGE, true);
  });
  assertEquals(pages(guest, BAR_AT, 2), [101, 100]);
});

Deno.test("device memory checks offsets, lengths, types and files", () => {
  using guest = GuestMemoryManager.create(OPTIONS);
  using file = numbered(4);
  for (const mapped of [false, true]) {
    const bar = guest.newDeviceMemory("bar", 4 * PAGE);
    if (mapped) bar.mapToGuest(BAR_AT, true);
    for (const bad of [-PAGE, 0.5, NaN, 1, 2 ** 53]) {
      assertThrows(() => bar.map({ offset: bad, mappable: file, length: PAGE }), RangeError);
      assertThrows(() => bar.map({ offset: 0, mappable: file, fileOffset: bad, length: PAGE }), RangeError);
      assertThrows(() => bar.map({ offset: 0, mappable: file, length: bad }), RangeError);
      assertThrows(() => bar.unmap(bad, PAGE), RangeError);
      assertThrows(() => bar.unmap(0, bad), RangeError);
    }
    assertThrows(() => bar.map({ offset: 0, mappable: file, length: 0 }), RangeError);
    assertThrows(() => bar.unmap(0, 0), RangeError);
    assertThrows(() => bar.map({ offset: 3 * PAGE, mappable: file, length: 2 * PAGE }), RangeError, "0x4000");
    assertThrows(() => bar.map({ offset: 5 * PAGE, mappable: file, length: PAGE }), RangeError, "0x5000");
    assertThrows(() => bar.unmap(3 * PAGE, 2 * PAGE), RangeError, "0x4000");
    assertThrows(
      () => bar.map({ offset: 0, mappable: file, fileOffset: 2 * PAGE, length: 3 * PAGE }),
      MappingError,
      "0x4000",
    );
    assertThrows(() => bar.map({ offset: 0, mappable: {} as never, length: PAGE }), TypeError);
    assertThrows(() => bar.map({ offset: 0, mappable: "private" as never, length: PAGE }), TypeError);
    assertThrows(() => bar.map({ offset: 0, mappable: file, length: PAGE, writable: null as never }), TypeError);
    assertEquals(bar.inspect().mappings, []);
    bar[Symbol.dispose]();
    for (
      const use of [
        () => bar.map({ offset: 0, mappable: file, length: PAGE }),
        () => bar.unmap(0, PAGE),
        () => bar.mapToGuest(BAR_AT, true),
        () => bar.unmapFromGuest(),
      ]
    ) {
      assertThrows(use, DisposedError, '"bar"');
    }
    bar[Symbol.dispose]();
  }
  for (const length of [0, -PAGE, 1, NaN, 2 ** 53]) {
    assertThrows(() => guest.newDeviceMemory("bar", length), RangeError);
  }
  assertThrows(() => guest.newDeviceMemory(undefined as never, PAGE), TypeError);
  assertThrows(() => guest.newDeviceMemory("bar", PAGE, { holes: "none" as never }), TypeError);
});

kvmTest("a guest finds a BAR where it was put, an MMIO exit elsewhere, and its own data after a move", () => {
  using machine = new Machine(OPTIONS);
  const { guest } = machine;
  using file = numbered(4, 100);
  const bar = guest.newDeviceMemory("bar", 4 * PAGE);
  bar.map({ offset: 0, mappable: file, length: 2 * PAGE });
  bar.map({ offset: 3 * PAGE, mappable: file, fileOffset: 3 * PAGE, length: PAGE, writable: false });
  bar.mapToGuest(BAR_AT, true);
  assertEquals(machine.read(BAR_AT), { value: 100, exits: [] });
  assertEquals(machine.write(BAR_AT + PAGE, 0x1234), { value: 0, exits: [] });
  assertEquals(machine.read(BAR_AT + 2 * PAGE), { value: NOTHING, exits: ["0x802000 r"] });
  assertEquals(machine.read(BAR_AT + 3 * PAGE), { value: 103, exits: [] });
  assertEquals(machine.write(BAR_AT + 3 * PAGE, 1).exits, ["0x803000 w"]);

  bar.mapToGuest(12 * MIB, true);
  assertEquals(machine.read(BAR_AT), { value: NOTHING, exits: ["0x800000 r"] });
  assertEquals(machine.read(12 * MIB + PAGE), { value: 0x1234, exits: [] });
  assertThrows(() => bar.mapToGuest(2 * MIB - PAGE, true), RegionOverlapError);
  assertEquals(machine.read(12 * MIB + PAGE), { value: 0x1234, exits: [] });
  bar.unmapFromGuest();
  assertEquals(machine.read(12 * MIB + PAGE).exits, ["0xc01000 r"]);
});

kvmTest("mappings of device memory with holes that fault change no slot", () => {
  using machine = new Machine(OPTIONS);
  using file = numbered(8, 100);
  const dax = machine.guest.newDeviceMemory("dax", 8 * PAGE, { holes: "fault" });
  dax.mapToGuest(BAR_AT, true);
  const slots = () => machine.vm.slots.map(({ slot, range }) => `${slot} ${range}`);
  const before = slots();
  for (let i = 0; i < 8; i++) {
    dax.map({ offset: i * PAGE, mappable: file, fileOffset: (7 - i) * PAGE, length: PAGE, writable: i % 2 === 0 });
    assertEquals(machine.read(BAR_AT + i * PAGE), { value: 107 - i, exits: [] });
  }
  dax.unmap(PAGE, 3 * PAGE);
  assertEquals(slots(), before);
  assertEquals(before.length, 2);
});

Deno.test("whatever is mapped, unmapped and moved, device memory shows what an array of pages says", () => {
  const PAGES = 6;
  const place = fc.constantFrom(BAR_AT, BAR_AT + 2 * PAGE, 12 * MIB, 2 * MIB - PAGE, 16 * MIB - PAGE);
  const span = fc.tuple(fc.nat(PAGES - 1), fc.integer({ min: 1, max: PAGES })).map(([from, length]) => ({
    from,
    length: Math.min(length, PAGES - from),
  }));
  const command = fc.oneof(
    fc.record({ kind: fc.constant("map" as const), span, page: fc.nat(PAGES - 1), writable: fc.boolean() }),
    fc.record({ kind: fc.constant("unmap" as const), span }),
    fc.record({ kind: fc.constant("move" as const), place, writable: fc.boolean() }),
    fc.record({ kind: fc.constant("hide" as const) }),
  );
  using file = numbered(2 * PAGES, 100);
  fc.assert(
    fc.property(
      fc.array(command, { maxLength: 25 }),
      fc.array(fc.boolean(), { maxLength: 25 }),
      (commands, batches) => {
        using guest = GuestMemoryManager.create(OPTIONS);
        const bar = guest.newDeviceMemory("bar", PAGES * PAGE);
        let model: { at: number | null; pages: (number | null)[] } = { at: null, pages: Array(PAGES).fill(null) };
        const run = (command: (typeof commands)[number]) => {
          if (command.kind === "map") {
            const { span: { from, length }, page, writable } = command;
            bar.map({
              offset: from * PAGE,
              mappable: file,
              fileOffset: page * PAGE,
              length: length * PAGE,
              writable: writable,
            });
            const pages = model.pages.map((old, i) => i >= from && i < from + length ? 100 + page + i - from : old);
            model = { ...model, pages };
          } else if (command.kind === "unmap") {
            const { from, length } = command.span;
            bar.unmap(from * PAGE, length * PAGE);
            model = { ...model, pages: model.pages.map((old, i) => i >= from && i < from + length ? null : old) };
          } else if (command.kind === "move") {
            const fits = command.place >= 2 * MIB && command.place + PAGES * PAGE <= 16 * MIB;
            if (fits) bar.mapToGuest(command.place, command.writable);
            else assertThrows(() => bar.mapToGuest(command.place, command.writable));
            if (fits) model = { ...model, at: command.place };
          } else {
            bar.unmapFromGuest();
            model = { ...model, at: null };
          }
        };
        commands.forEach((command, i) => {
          const fails = batches[i];
          if (fails === undefined) run(command);
          else {
            const before = model;
            try {
              guest.regions.batch(() => {
                run(command);
                if (fails) throw new Error("never mind");
              });
            } catch {
              model = before;
            }
          }
          assertEquals(bar.gpa, model.at);
          if (model.at !== null) assertEquals(pages(guest, model.at, PAGES), model.pages);
        });
      },
    ),
    { numRuns: 60 },
  );
});
