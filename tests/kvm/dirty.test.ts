// What KVM says a guest has written, by bitmap and by ring: everything, once, whatever becomes of the slot.

import { assert, assertEquals, assertInstanceOf, assertStrictEquals, assertThrows } from "@std/assert";
import { MappingError, MembackingError, MemoryRange, OsError, PageSet } from "membacking";
import { type CreateVmOptions, type KvmCap, KvmVcpu } from "membacking/kvm";
import { PageMarks } from "../../src/core/page_marks.ts";
import { RingReader } from "../../ffi/kvm/ring_reader.ts";
import { LongModeCode, STOP_PORT, TestMachine, type TestMachineOptions } from "../support/guest.ts";
import { openFds } from "../support/proc.ts";
import { kvmTest } from "../support/require.ts";
import { throwsNearEnd } from "../support/stack.ts";
import { PAGE, range } from "../support/units.ts";

/** Where the guest finds the addresses it shall write. */
const LIST_AT = 0x2_0000;
/** Where the pages are that it writes. */
const DATA_AT = 0x40_0000;

const MODES: readonly { mode: string; cap: keyof typeof KvmCap; vm: CreateVmOptions }[] = [
  { mode: "bitmap", cap: "MANUAL_DIRTY_LOG_PROTECT2", vm: { dirtyLog: "bitmap" } },
  { mode: "ring", cap: "DIRTY_LOG_RING", vm: { dirtyLog: "ring" } },
];

/** Writes one byte to each address in the list, which ends with 0, and stops. */
const WRITER = new LongModeCode()
  .set("rbx", LIST_AT)
  .label("again")
  .load("rsi", "rbx", 8)
  .compare("rsi", 0)
  .jumpIf("equal", "end")
  .store("rsi", "rbx", 1)
  .add("rbx", 8)
  .jump("again")
  .label("end")
  .out(STOP_PORT)
  .bytes();

/** A guest that writes pages, whose program lies in a slot that does not log. */
class Writer extends TestMachine {
  constructor(options: TestMachineOptions, readonly dataEnd: number) {
    super({ memory: 2 ** 22, reserve: 2 ** 30, ...options });
    this.data = this.va;
  }

  readonly data: TestMachine["va"];
  #takes = 0;

  /** Makes a slot at `[start, end)`, backed by private memory. */
  slot(start: number, end: number, logDirty = true, writable = true): MemoryRange {
    this.va.map(start, end, null, 0, true, undefined);
    const made = range(start, end);
    this.vm.mapRange(this.va.base + start, made, { writable, executable: true, logDirty });
    return made;
  }

  /** Has the guest write a byte at each of `addresses`. */
  writes(...addresses: number[]): void {
    const list = new BigUint64Array([...addresses.map(BigInt), 0n]);
    this.ram.write(LIST_AT, new Uint8Array(list.buffer));
    this.longMode(WRITER, [{ start: DATA_AT, end: this.dataEnd, pageSize: 0x1000 }]);
    const end = this.run();
    assert(end.kind === "io" && end.port === STOP_PORT, Deno.inspect(end));
  }

  /** The pages taken from `of`, or from everywhere; by turns as runs, and as bitmaps where there are some. */
  take(of = range(0, 2 ** 30)): PageSet {
    const marks = new PageMarks();
    const byBitmap = this.#takes++ % 2 === 1;
    this.vm.takeDirty(
      of,
      (start, end) => marks.add(start, end),
      byBitmap ? (start, words) => marks.addWords(start / PAGE, words, 0, 2 ** 30) : undefined,
    );
    return marks.take();
  }
}

function pages(...addresses: number[]): PageSet {
  return PageSet.of(addresses.map((at) => MemoryRange.of(at - at % PAGE, PAGE)));
}

function assertPages(actual: PageSet, expected: PageSet): void {
  assertEquals([...actual].map(String), [...expected].map(String));
}

for (const { mode, cap, vm } of MODES) {
  const writer = (options: CreateVmOptions = {}, dataEnd = DATA_AT + 0x40_0000) =>
    new Writer({ vm: { ...vm, ...options } }, dataEnd);

  kvmTest(`KvmVm.takeDirty() by ${mode} has each page written since the last time, once`, () => {
    using guest = writer();
    guest.slot(DATA_AT, DATA_AT + 100 * PAGE);
    assertStrictEquals(guest.take().count, 0);
    const first = [0, 1, 2, 31, 32, 63, 64, 99].map((page) => DATA_AT + page * PAGE + page);
    guest.writes(...first, ...first);
    assertPages(guest.take(), pages(...first));
    assertStrictEquals(guest.take().count, 0);
    guest.writes(DATA_AT + 64 * PAGE, DATA_AT + 5);
    assertPages(guest.take(), pages(DATA_AT + 64 * PAGE, DATA_AT));
    assertStrictEquals(guest.take().count, 0);
  }, cap);

  kvmTest(`KvmVm.takeDirty() by ${mode} of a range leaves the rest for later, for slots of odd sizes`, () => {
    for (const size of [1, 31, 33, 63, 64, 65, 127, 129, 200]) {
      using guest = writer();
      guest.slot(DATA_AT, DATA_AT + size * PAGE);
      const all = Array.from({ length: size }, (_, page) => DATA_AT + page * PAGE);
      for (
        const [from, to] of [[0, 1], [size - 1, size], [size >> 1, (size >> 1) + 1], [size / 3 | 0, size]] as const
      ) {
        guest.writes(...all);
        const part = range(DATA_AT + from * PAGE, DATA_AT + to * PAGE);
        assertPages(guest.take(part), pages(...all).within(part));
        assertStrictEquals(guest.take(part).count, 0);
        // A page taken and written again beside pages that were not taken.
        guest.writes(DATA_AT + from * PAGE);
        assertPages(guest.take(part), pages(DATA_AT + from * PAGE));
        assertPages(guest.take(), pages(...all).difference(PageSet.of([part])));
      }
    }
  }, cap);

  kvmTest(`KvmVm.setDirtyLog() by ${mode} begins with nothing, in place, and ends`, () => {
    using guest = writer();
    const slot = guest.slot(DATA_AT, DATA_AT + 70 * PAGE, false);
    const [a, b, c] = [DATA_AT, DATA_AT + 66 * PAGE, DATA_AT + 69 * PAGE];
    guest.writes(a, b);
    assertStrictEquals(guest.take().count, 0);
    const before = guest.vm.slots;
    guest.vm.setDirtyLog(slot, true);
    assertEquals(guest.vm.slots, before);
    assertStrictEquals(guest.take().count, 0);
    guest.writes(b, c);
    assertPages(guest.take(), pages(b, c));
    guest.vm.setDirtyLog(slot, true);
    guest.writes(a);
    guest.vm.setDirtyLog(slot, false);
    assertStrictEquals(guest.take().count, 0);
    guest.vm.setDirtyLog(slot, true);
    assertStrictEquals(guest.take().count, 0);
    guest.writes(a);
    assertPages(guest.take(), pages(a));
  }, cap);

  kvmTest(`KvmVm by ${mode} hands over what slots had that were deleted, replaced, made read-only`, () => {
    using guest = writer();
    const [a, b] = [DATA_AT, DATA_AT + 10 * PAGE];
    const low = guest.slot(a, b);
    guest.slot(b, b + 10 * PAGE);
    guest.writes(a + PAGE, b + PAGE);
    guest.vm.unmapRange(low);
    // The number is used again, for other pages.
    const high = guest.slot(b + 10 * PAGE, b + 20 * PAGE);
    guest.writes(b + 12 * PAGE);
    guest.vm.mapRange(guest.va.base + a, low, { writable: false, executable: true });
    guest.writes(b + 3 * PAGE);
    guest.vm.unmapRange(high);
    assertPages(guest.take(low), pages(a + PAGE));
    assertPages(guest.take(), pages(b + PAGE, b + 3 * PAGE, b + 12 * PAGE));
    assertStrictEquals(guest.take().count, 0);
  }, cap);

  kvmTest(`KvmVm.takeDirty() by ${mode} that the stack ends in, wherever, loses nothing`, () => {
    using guest = writer();
    const mine = guest.slot(DATA_AT, DATA_AT + 16 * PAGE);
    let interrupted = 0;
    for (const words of [65_536, ...Array.from({ length: 150 }, (_, i) => 900 - 6 * i)]) {
      const short = guest.slot(DATA_AT + 32 * PAGE, DATA_AT + 64 * PAGE);
      const written = [3, 4, 9, 33, 40, 41, 63].map((page) => DATA_AT + page * PAGE);
      guest.writes(...written);
      guest.vm.unmapRange(short);
      const marks = new PageMarks();
      const told = (start: number, end: number) => marks.add(start, end);
      // Of a part, of the rest, and of what is left after all of that.
      for (const part of [mine, short]) {
        if (throwsNearEnd(words, () => guest.vm.takeDirty(part, told))) interrupted++;
      }
      guest.vm.takeDirty(range(0, 2 ** 30), told);
      assertPages(marks.take(), pages(...written));
    }
    assert(interrupted > 10, `${interrupted}`);
  }, cap);

  kvmTest(`KvmVm by ${mode} that is disposed hands its log over afterwards`, () => {
    using guest = writer();
    const slot = guest.slot(DATA_AT, DATA_AT + 10 * PAGE);
    guest.writes(DATA_AT + 3 * PAGE, DATA_AT + 4 * PAGE, DATA_AT + 7 * PAGE);
    guest.vm[Symbol.dispose]();
    assertPages(guest.take(slot), pages(DATA_AT + 3 * PAGE, DATA_AT + 4 * PAGE, DATA_AT + 7 * PAGE));
    assertStrictEquals(guest.take().count, 0);
  }, cap);

  kvmTest(`KvmVm.setDirtyLog() by ${mode} needs exactly a slot`, () => {
    using guest = writer();
    const slot = guest.slot(DATA_AT, DATA_AT + 4 * PAGE);
    assertThrows(() => guest.vm.setDirtyLog(range(slot.start, slot.end - PAGE), false), MappingError);
    assertThrows(() => guest.vm.setDirtyLog(range(slot.end, slot.end + PAGE), true), MappingError);
    guest.writes(DATA_AT);
    assertPages(guest.take(), pages(DATA_AT));
  }, cap);
}

for (const { mode, cap, vm } of MODES) {
  kvmTest(`KvmVm.takeDirty() by ${mode}: thousands of pages all over gigabytes, the upper half first`, () => {
    const [dataEnd, half] = [3 * 2 ** 30, 3 * 2 ** 29];
    using guest = new TestMachine({ memory: 2 ** 22, reserve: 4 * 2 ** 30, vm });
    guest.va.map(DATA_AT, dataEnd, null, 0, true, { transparentHugepages: false });
    const slot = range(DATA_AT, dataEnd);
    guest.vm.mapRange(guest.va.base + DATA_AT, slot, { writable: true, executable: true, logDirty: true });
    const apart = (from: number) => Array.from({ length: 2048 }, (_, i) => from + 150 * PAGE * i);
    const all = [...apart(half), ...apart(DATA_AT), DATA_AT + 151 * PAGE];
    guest.ram.write(LIST_AT, new Uint8Array(new BigUint64Array([...all.map(BigInt), 0n]).buffer));
    guest.longMode(WRITER, [{ start: DATA_AT, end: dataEnd }]);
    assertStrictEquals(guest.run().kind, "io");
    const told = new Set<number>();
    guest.vm.takeDirty(range(0, 2 ** 32), (start, end) => {
      for (let page = start; page < end; page += PAGE) told.add(page);
    });
    assertEquals(all.filter((page) => !told.has(page)), []);
  }, cap);

  kvmTest(`KvmVm.takeDirty() by ${mode}: no slot is changed while one is told, and nothing is lost by trying`, () => {
    using guest = new Writer({ vm }, DATA_AT + 300 * PAGE);
    const slot = guest.slot(DATA_AT, DATA_AT + 100 * PAGE);
    const quiet = guest.slot(DATA_AT + 200 * PAGE, DATA_AT + 300 * PAGE, false);
    const all = [1, 5, 40].map((page) => DATA_AT + page * PAGE);
    guest.writes(...all);
    const told = new PageMarks();
    const refused: string[] = [];
    guest.vm.takeDirty(range(all[0]!, all[0]! + PAGE), (start, end) => {
      told.add(start, end);
      for (
        const change of [
          () => guest.vm.setDirtyLog(quiet, true),
          () => guest.vm.unmapRange(slot),
          () => guest.vm[Symbol.dispose](),
        ]
      ) refused.push(assertThrows(change, MembackingError).message);
    });
    assertEquals(refused.length, 3);
    guest.vm.takeDirty(range(0, 2 ** 30), (start, end) => told.add(start, end));
    assertPages(told.take(), pages(...all));
  }, cap);

  kvmTest(`KvmVm.takeDirty() by ${mode}: who asks again while he is told loses nothing`, () => {
    using guest = new Writer({ vm }, DATA_AT + 96 * PAGE);
    guest.slot(DATA_AT, DATA_AT + 32 * PAGE);
    const other = guest.slot(DATA_AT + 32 * PAGE, DATA_AT + 96 * PAGE);
    const at = (page: number) => DATA_AT + page * PAGE;
    guest.writes(at(3), at(20), at(33), at(90));
    const told = new PageMarks();
    const add = (start: number, end: number) => told.add(start, end);
    let asked = false;
    guest.vm.takeDirty(range(0, 2 ** 30), (start, end) => {
      add(start, end);
      if (asked) return;
      asked = true;
      // Where the other slot has one that was written.
      guest.writes(at(1));
      try {
        guest.vm.takeDirty(other, add);
      } catch (error) {
        assertInstanceOf(error, MembackingError);
      }
    });
    guest.vm.takeDirty(range(0, 2 ** 30), add);
    const expected = pages(at(1), at(3), at(20), at(33), at(90));
    assertPages(told.take().intersection(expected), expected);
  }, cap);
}

kvmTest("KvmVcpu.run() harvests a full ring itself, and nothing is lost or told twice", () => {
  const count = 5000;
  using guest = new Writer({ vm: { dirtyLog: "ring", dirtyRingEntries: 1024 } }, DATA_AT + count * PAGE);
  guest.slot(DATA_AT, DATA_AT + count * PAGE);
  const all = Array.from({ length: count }, (_, page) => DATA_AT + page * PAGE);
  for (let round = 0; round < 3; round++) {
    guest.writes(...all);
    assertPages(guest.take(), pages(...all));
    assertStrictEquals(guest.take().count, 0);
  }
}, "DIRTY_LOG_RING");

kvmTest("KvmVcpu.run() goes on where the owner has emptied the full ring just before, and nothing is lost", () => {
  const count = 5000;
  using guest = new Writer({ vm: { dirtyLog: "ring", dirtyRingEntries: 1024 } }, DATA_AT + count * PAGE);
  guest.slot(DATA_AT, DATA_AT + count * PAGE);
  const all = Array.from({ length: count }, (_, page) => DATA_AT + page * PAGE);
  const taken: PageSet[] = [];
  const { spill } = RingReader.prototype;
  RingReader.prototype.spill = function () {
    taken.push(guest.take());
    return spill.call(this);
  };
  try {
    guest.writes(...all);
  } finally {
    RingReader.prototype.spill = spill;
  }
  assert(taken.length > 1);
  taken.push(guest.take());
  assertPages(taken.reduce((sum, pages) => sum.union(pages)), pages(...all));
}, "DIRTY_LOG_RING");

kvmTest("a ring that is said to be full, and has had nothing in it since the last time, is not waited for", () => {
  using guest = new Writer({ vm: { dirtyLog: "ring", dirtyRingEntries: 1024 } }, DATA_AT + PAGE);
  guest.slot(DATA_AT, DATA_AT + PAGE);
  const { ring } = guest.vcpu.share();
  assert(ring !== undefined);
  using reader = new RingReader(guest.vcpu.share().fd, ring);
  for (let round = 0; round < 2; round++) {
    guest.writes(DATA_AT);
    assert(reader.spill());
    assert(!reader.spill());
  }
  assertPages(guest.take(), pages(DATA_AT));
}, "DIRTY_LOG_RING");

kvmTest("Kvm.createVm() refuses rings of lengths that there are not", () => {
  using machine = new TestMachine();
  for (const dirtyRingEntries of [0, 1, 128, 1000, 2 ** 21, NaN, 0.5]) {
    assertThrows(() => machine.kvm.createVm({ dirtyLog: "ring", dirtyRingEntries }), RangeError);
  }
  assertThrows(() => machine.kvm.createVm({ dirtyLog: "ring", dirtyRingEntries: 2 ** 20 }), MembackingError, "at most");
  // @ts-expect-error what a JavaScript caller can do
  assertThrows(() => machine.kvm.createVm({ dirtyLog: "on" }), TypeError);
}, "DIRTY_LOG_RING");

kvmTest("a ring that another thread makes longer than it is, is an error and no signal", () => {
  using machine = new TestMachine();
  using vm = machine.kvm.createVm({ dirtyLog: "ring", dirtyRingEntries: 1024 });
  using vcpu = vm.createVcpu(0);
  const shared = vcpu.share();
  assert(shared.ring !== undefined);
  const { ring } = shared;
  const before = openFds();
  KvmVcpu.attach(shared)[Symbol.dispose]();
  assertThrows(() => KvmVcpu.attach({ ...shared, ring: { ...ring, entries: 65_536 } }), OsError, "madvise");
  for (const entries of [0, NaN, 1000, 2 ** 40]) {
    assertThrows(() => KvmVcpu.attach({ ...shared, ring: { ...ring, entries } }), RangeError, "power of two");
  }
  assertThrows(() => KvmVcpu.attach({ ...shared, ring: { ...ring, vm: -1 } }), RangeError);
  const state = { byteLength: 2 ** 22 } as SharedArrayBuffer;
  assertThrows(() => KvmVcpu.attach({ ...shared, ring: { ...ring, state } }), TypeError);
  assertEquals(openFds(), before);
}, "DIRTY_LOG_RING");

kvmTest("KvmVcpu.attach() takes for a ring what a VM shares, and nothing else", () => {
  using machine = new TestMachine({ vm: { dirtyLog: "ring" } });
  const shared = machine.vcpu.share();
  const { ring } = shared;
  assert(ring !== undefined);
  KvmVcpu.attach(shared)[Symbol.dispose]();
  const bad = [
    { ...ring, entries: 1000 },
    { ...ring, entries: 2 ** 40 },
    { ...ring, vm: -1 },
    { ...ring, vm: NaN },
    { ...ring, state: new SharedArrayBuffer(64) },
  ];
  for (const wrong of bad) assertThrows(() => KvmVcpu.attach({ ...shared, ring: wrong }), Error);
}, "DIRTY_LOG_RING");
