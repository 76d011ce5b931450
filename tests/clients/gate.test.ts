import { assert, assertEquals, assertThrows } from "@std/assert";
import { DisposedError, ReentrancyError } from "membacking";
import { Gate, type Reader } from "../../src/serving/gate.ts";
import { Hold } from "../../src/clients/hold.ts";
import { LockMirror, LockSlots, newLockTable } from "../../src/serving/lock_slots.ts";
import { CLOSED, JOURNAL_LENGTH, LINE, type SharedWords, ThreadWords } from "../../src/serving/shared_words.ts";
import type { Span } from "../../src/core/span.ts";
import { PAGE } from "../support/units.ts";

const LENGTH = 0x1000_0000;

function newReader(isAlive: boolean, deadline: number = 60_000): Reader {
  return { line: new ThreadWords(LINE.words), deadline, isAlive: () => isAlive, gone: false };
}

function newHold(line: SharedWords, options: { alive?: boolean; ownThread?: boolean } = {}): Hold {
  return new Hold(line, () => options.alive ?? true, options.ownThread ?? true);
}

Deno.test("the gate does not wait for ever for a reader whose thread has ended inside", () => {
  const gate = new Gate();
  const reader = newReader(false);
  gate.add(reader);
  Atomics.store(reader.line.words, LINE.reading, 1);
  gate.shut();
  assert(reader.gone);
  gate.open();
  assertEquals(reader.line.words[LINE.sequence], 2);
});

Deno.test("the gate waits for a reader that lives until its deadline, and tells who was late", () => {
  for (const reading of [1, -1, 0x7fff_ffff]) {
    const gate = new Gate();
    const late: Reader[] = [];
    gate.onOverdue = (reader) => late.push(reader);
    const reader = newReader(true, 50);
    gate.add(reader);
    Atomics.store(reader.line.words, LINE.reading, reading);
    const start = performance.now();
    gate.shut();
    assert(performance.now() - start >= 50);
    assertEquals([late, reader.gone], [[reader], true]);
    gate.open();
    gate.shut();
    assertEquals(late.length, 1, "it is waited for once");
  }
});

Deno.test("what a client makes of its words is nothing to the gate, nor to other clients", () => {
  const gate = new Gate();
  const [scribbler, other] = [newReader(true), newReader(true)];
  gate.add(scribbler);
  gate.add(other);
  const hold = newHold(other.line);
  for (const value of [1, -1, 12345, 0]) {
    Atomics.store(scribbler.line.words, LINE.sequence, value);
    Atomics.store(scribbler.line.words, LINE.waiting, value);
    hold.enter();
    hold.leave();
    gate.shut();
    assert(gate.isShut);
    assertThrows(() => hold.enter(), ReentrancyError);
    gate.open();
    assert(!gate.isShut);
  }
});

Deno.test("a client does not wait for ever for an owner whose thread has ended in the middle of a change", () => {
  const gate = new Gate();
  const reader = newReader(true);
  gate.add(reader);
  const hold = newHold(reader.line, { alive: false, ownThread: false });
  hold.enter();
  hold.leave();
  gate.shut();
  assertThrows(() => hold.enter(), DisposedError, "has ended");
  assertEquals(reader.line.words[LINE.reading], 0);
  assert(hold.closed !== null);
});

Deno.test("an exception while a client takes hold leaves nothing held", () => {
  const reader = newReader(true);
  const hold = newHold(reader.line);
  hold.invalidate = () => {
    throw new RangeError("Maximum call stack size exceeded");
  };
  assertThrows(() => hold.enter(), RangeError);
  assertEquals(reader.line.words[LINE.reading], 0);
  let told = 0;
  hold.invalidate = () => told++;
  hold.enter();
  hold.leave();
  assertEquals(told, 1, "it is told again of what it could not be told of");
});

Deno.test("entering tells of each change once, and refuses what would wait for itself", () => {
  const gate = new Gate();
  const reader = newReader(true);
  gate.add(reader);
  const hold = newHold(reader.line);
  let changes = 0;
  hold.invalidate = () => changes++;
  for (let i = 0; i < 3; i++) {
    hold.enter();
    hold.leave();
  }
  assertEquals(changes, 1);
  gate.shut();
  gate.shut();
  assertThrows(() => hold.enter(), ReentrancyError);
  gate.open();
  gate.open();
  hold.enter();
  hold.leave();
  assertEquals(changes, 2);
  gate.shut();
  for (
    const [closed, message] of [[CLOSED.manager, "The region manager has"], [CLOSED.cutOff, "cut off"], [
      77,
      "lost",
    ]] as const
  ) {
    Atomics.store(reader.line.words, LINE.closed, closed);
    assertThrows(() => hold.enter(), DisposedError, message);
  }
});

/** A client's locks, and the owner's idea of them. */
class Locks {
  readonly line = new Int32Array(LINE.words);
  readonly table = newLockTable();
  readonly slots = new LockSlots(this.line, this.table);
  readonly held: string[] = [];
  readonly noted: string[] = [];
  readonly mirror = new LockMirror(this.line, this.table, LENGTH, {
    addForeign: (span) => void this.held.push(Locks.text(span)),
    removeForeign: (span) => void this.held.splice(this.held.indexOf(Locks.text(span)), 1),
    noteForeign: (span) => void this.noted.push(Locks.text(span)),
  });

  static text({ start, end }: Span): string {
    return `${start}-${end}`;
  }
}

Deno.test("the owner learns of a client's locks, however many there were since it looked last", () => {
  for (const count of [1, JOURNAL_LENGTH, JOURNAL_LENGTH + 1, 3000]) {
    const { slots, mirror, held } = new Locks();
    const claimed = Array.from({ length: count }, (_, i) => slots.claim(i * 0x1000, (i + 1) * 0x1000));
    mirror.update();
    assertEquals(held.length, count);
    for (const slot of claimed.slice(1)) slots.release(slot);
    mirror.update();
    assertEquals(held, ["0-4096"]);
    assertEquals([...mirror.locks], [{ start: 0, end: 0x1000 }]);
    // A slot that was released and claimed again between two looks.
    slots.release(claimed[0] ?? -1);
    slots.claim(0x5000, 0x6000);
    mirror.update();
    assertEquals(held, ["20480-24576"]);
    mirror.clear();
    assertEquals([held.length, mirror.count], [0, 0]);
  }
});

Deno.test("looking again finds what was not noted", () => {
  const { slots, mirror, line, held } = new Locks();
  slots.claim(0, 0x1000);
  line[LINE.noted] = 0;
  mirror.update();
  assertEquals(held, []);
  mirror.update(true);
  assertEquals(held, ["0-4096"]);
});

Deno.test("a scribbled lock table is seen as such, and the locks that were known stay", () => {
  const half = PAGE / 2;
  const scribbles: readonly (readonly [start: number, end: number])[] = [
    [NaN, PAGE],
    [0, NaN],
    [-PAGE, PAGE],
    [0, LENGTH + PAGE],
    [0, Infinity],
    [2 * PAGE, PAGE],
    [half, PAGE],
    [0, half],
    [0.5, PAGE + 0.5],
    [0, -1],
  ];
  for (const [start, end] of scribbles) {
    const { slots, mirror, held } = new Locks();
    const slot = slots.claim(0, PAGE);
    assert(mirror.update());
    slots.release(slot);
    slots.claim(start, end);
    assertEquals([mirror.update(), held], [false, ["0-4096"]], `${start}-${end}`);
  }
  for (
    const [noted, count] of [[1, 1e9], [JOURNAL_LENGTH + 1, 0x7fff_ffff], [JOURNAL_LENGTH + 1, -5], [-1, 1], [
      1,
      -1,
    ]] as const
  ) {
    const { slots, mirror, line, held } = new Locks();
    slots.claim(0, PAGE);
    assert(mirror.update());
    line[LINE.noted] = noted;
    line[LINE.slots] = count;
    line[LINE.journal] = count;
    assertEquals([mirror.update(), held], [false, ["0-4096"]], `${noted} ${count}`);
  }
});

Deno.test("the owner learns where a client has locked, though the locks are gone by now", () => {
  const { slots, mirror, held, noted } = new Locks();
  for (const start of [0x4000, 0x8000, 0x2000]) slots.release(slots.claim(start, start + 0x1000, true));
  mirror.update();
  assertEquals([held, noted.at(-1)], [[], `${0x2000}-${0x9000}`]);
});
