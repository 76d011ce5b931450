import { assert, assertEquals, assertThrows } from "@std/assert";
import { DisposedError, ReentrancyError } from "membacking";
import { currentThread, type ThreadIdentity } from "../../ffi/os/thread.ts";
import { Gate, type Reader } from "../../src/serving/gate.ts";
import { Hold } from "../../src/clients/hold.ts";
import { LockMirror, LockSlots, newLockTable } from "../../src/serving/lock_slots.ts";
import { GATE, JOURNAL_LENGTH, LINE } from "../../src/serving/shared_words.ts";
import type { Span } from "../../src/core/span.ts";

const DEAD: ThreadIdentity = { tid: currentThread().tid, started: "1" };

function newLine(): Int32Array<SharedArrayBuffer> {
  return new Int32Array(new SharedArrayBuffer(LINE.words * 4));
}

function readerOn(thread: ThreadIdentity): Reader {
  return { line: newLine(), thread, gone: false };
}

Deno.test("the gate does not wait for ever for a reader whose thread has ended inside", () => {
  const gate = new Gate();
  const reader = readerOn(DEAD);
  gate.readers.add(reader);
  Atomics.store(reader.line, LINE.reading, 1);
  gate.shut();
  assert(reader.gone);
  gate.open();
  assertEquals(gate.words[GATE.sequence], 2);
});

Deno.test("a client does not wait for ever for an owner whose thread has ended in the middle of a change", () => {
  const gate = new Gate();
  const line = newLine();
  const hold = new Hold(gate.words, line, DEAD, false);
  hold.enter();
  hold.leave();
  gate.shut();
  assertThrows(() => hold.enter(), DisposedError);
  assertEquals(line[LINE.reading], 0);
  assert(!hold.isOpen);
});

Deno.test("entering tells of each change once, and refuses what would wait for itself", () => {
  const gate = new Gate();
  const hold = new Hold(gate.words, newLine(), currentThread(), true);
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
  gate.close();
  assertThrows(() => hold.enter(), DisposedError, "The region manager has");
});

/** A client's locks, and the owner's idea of them. */
class Locks {
  readonly line = newLine();
  readonly table = newLockTable();
  readonly slots = new LockSlots(this.line, this.table);
  readonly held: string[] = [];
  readonly mirror = new LockMirror(this.line, this.table, {
    addForeign: (span) => void this.held.push(Locks.text(span)),
    removeForeign: (span) => void this.held.splice(this.held.indexOf(Locks.text(span)), 1),
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
