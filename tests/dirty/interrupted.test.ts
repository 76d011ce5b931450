// Written pages, where the stack ends in the middle: an exception from where none is expected loses no page either.

import { assert, assertEquals, assertGreater } from "@std/assert";
import { type DirtyTracker, GuestMemoryManager, Mappable, PageSet } from "membacking";
import { throwsNearEnd } from "../support/stack.ts";
import { PAGE } from "../support/units.ts";
import { DirtyRig, pages } from "./rig.ts";

/** How many words before the end of the stack each act is tried: far from it first, and fast code takes less than new. */
const PLACES = [
  65_536,
  ...Array.from({ length: 400 }, (_, i) => 3000 - 7 * i),
  ...Array.from({ length: 300 }, (_, i) => 900 - 3 * i),
];

/** Which of `written` are not in `found`, by number. */
function missing(found: PageSet, written: readonly number[]): number[] {
  return written.filter((page) => !found.has(page * PAGE));
}

Deno.test("a take that the stack ends in, wherever, loses no page of any tracker", () => {
  const outcomes = { interrupted: 0, done: 0 };
  for (const words of PLACES) {
    using rig = new DirtyRig({ overlap: "any" });
    const vm = rig.partition();
    rig.region(0, 32);
    const twice = rig.manager.newRegion({ name: "twice", range: pages(40, 72), priority: 0 });
    const file = rig.file();
    for (const at of [0, 16]) {
      twice.addMapping({ rangeInRegion: pages(at, at + 16), mappable: file, fileOffset: 0 });
    }
    twice.map();
    const { memory } = rig.manager;
    using first = rig.manager.trackDirty();
    using second = rig.manager.trackDirty();
    memory.writeUint8(5 * PAGE, 1);
    memory.writeUint8(20 * PAGE, 1);
    memory.writeUint8(41 * PAGE, 1);
    vm.write(pages(9));
    vm.write(pages(60, 62));
    let early = PageSet.EMPTY;
    const isInterrupted = throwsNearEnd(words, () => early = first.take());
    outcomes[isInterrupted ? "interrupted" : "done"]++;
    // Beside what was written before, and where something else was.
    memory.writeUint8(6 * PAGE, 1);
    memory.writeUint8(20 * PAGE, 1);
    const late = [6, 20];
    const all = [5, 6, 9, 20, 41, 44, 45, 57, 60, 61];
    assertEquals(missing(second.take(), all), [], `${words} words from the end, by the other tracker`);
    const rest = first.take();
    assertEquals(missing(rest, late), [], `${words} words from the end`);
    assertEquals(missing(early.union(rest), all), [], `${words} words from the end`);
    memory.writeUint8(7 * PAGE, 1);
    assertEquals(missing(first.take(), [7]), []);
    assertEquals(first.take().count, 0);
  }
  assertGreater(outcomes.interrupted, 20);
  assertGreater(outcomes.done, 20);
});

Deno.test("a lock whose release the stack ends in, wherever, counts as written", () => {
  let count = 0;
  for (const words of PLACES) {
    using rig = new DirtyRig();
    rig.region(0, 32);
    using tracker = rig.manager.trackDirty();
    using lock = rig.manager.memory.lock(pages(3), { write: true });
    tracker.take();
    lock.bytes[0] = 1;
    if (throwsNearEnd(words, () => lock[Symbol.dispose]())) count++;
    assertEquals(missing(tracker.take(), [3]), [], `${words} words from the end`);
  }
  assertGreater(count, 3);
});

/** Reads the first byte of each of 64 pages; -1 where there is nothing. */
function look(guest: GuestMemoryManager): number[] {
  return Array.from({ length: 64 }, (_, page) => {
    return guest.memory.isMapped(page * PAGE, 1) ? guest.memory.readUint8(page * PAGE) : -1;
  });
}

const REQUESTS: readonly { name: string; act: (guest: GuestMemoryManager, file: Mappable) => void }[] = [
  { name: "a discard", act: (guest) => guest.discard(pages(4, 8)) },
  { name: "a rollback", act: (guest) => void guest.rollback() },
  { name: "a switch", act: (guest) => guest.setRamVisibility(pages(16, 24), "unmapped") },
  {
    name: "a mapping",
    act: (guest, file) => {
      const bar = guest.newDeviceMemory("bar", 8 * PAGE);
      bar.map({ offset: 0, length: 8 * PAGE, mappable: file, fileOffset: 0 });
      bar.mapToGuest(40 * PAGE, true);
    },
  },
];

for (const { name, act } of REQUESTS) {
  Deno.test(`${name} that the stack ends in, wherever, has all that it changed among the written pages`, () => {
    using file = Mappable.memfd("bar", 8 * PAGE);
    file.write(0, new Uint8Array(8 * PAGE).fill(9));
    let count = 0;
    for (const words of PLACES) {
      using guest = GuestMemoryManager.create({
        maxAddress: 64 * PAGE,
        ram: [{ ranges: [pages(0, 16), pages(16, 24), pages(24, 32)] }],
      });
      const fill = (value: number) => {
        for (let page = 0; page < 32; page++) guest.memory.writeUint8(page * PAGE, value);
      };
      fill(1);
      if (name === "a rollback") guest.freeze()[Symbol.dispose]();
      guest.memory.writeUint8(2 * PAGE, 2);
      guest.memory.writeUint8(17 * PAGE, 2);
      using tracker: DirtyTracker = guest.trackDirty();
      guest.memory.writeUint8(3 * PAGE, 2);
      tracker.take();
      const before = look(guest);
      if (throwsNearEnd(words, () => act(guest, file))) count++;
      const after = look(guest);
      const changed = after.flatMap((value, page) => value === before[page] ? [] : [page]);
      assertEquals(missing(tracker.take(), changed), [], `${words} words from the end`);
    }
    assert(count > 10, `${count}`);
  });
}
