/**
 * The locks that a client holds, in memory shared with the owner.
 *
 * A slot is two 64-bit numbers, start and end; an end of 0 is a free slot, and one more than the start says that the
 * holder may write. The first slot is no lock: with its end negated, it spans all that the client has ever locked. The
 * client writes while it holds changes off, and notes which slots it has written; the owner reads while clients are held
 * off. So what a client does costs the owner nothing until the next change, and then as much as there were locks taken
 * and released.
 *
 * To the owner all of it is input: it takes nothing for a lock that is none, and says so.
 *
 * @module
 */

import { PAGE_SIZE } from "../core/memory_range.ts";
import type { Span } from "../core/span.ts";
import type { Lock } from "../memory/held_locks.ts";
import { growable, JOURNAL_LENGTH, LINE } from "./shared_words.ts";

/** How large the table of one client may become, in bytes: a million locks. */
export const TABLE_LIMIT: number = 2 ** 24;

/** Makes the table of one client in another thread. */
export function newLockTable(): SharedArrayBuffer {
  return growable(1024, TABLE_LIMIT);
}

/** How many bytes a slot takes. */
const SLOT_BYTES = 16;

/** A table of locks: memory that threads share, which can grow, or numbers that processes share, all there will be. */
export type LockTableMemory = SharedArrayBuffer | Float64Array;

function numbersOf(table: LockTableMemory): Float64Array {
  return table instanceof SharedArrayBuffer ? new Float64Array(table) : table;
}

/** The client's side. Used while changes are held off, unless the manager is gone. */
export class LockSlots {
  readonly #line: Int32Array;
  readonly #table: LockTableMemory;
  #numbers: Float64Array;
  #free: number[] = [];
  #next = 1;
  /** Where there ever was a lock. */
  #from = Infinity;
  #to = 0;

  constructor(line: Int32Array, table: LockTableMemory) {
    this.#line = line;
    this.#table = table;
    this.#numbers = numbersOf(table);
  }

  /**
   * Enters a lock. Returns its slot.
   *
   * @throws {RangeError} If there are as many as the table has room for.
   */
  claim(start: number, end: number, write: boolean = false): number {
    const slot = this.#free.pop() ?? this.#add();
    if (start < this.#from || end > this.#to) this.#span(start, end);
    this.#numbers[2 * slot] = write ? start + 1 : start;
    this.#numbers[2 * slot + 1] = end;
    this.#note(slot);
    return slot;
  }

  /** Takes it out again. */
  release(slot: number): void {
    this.#numbers[2 * slot + 1] = 0;
    this.#free.push(slot);
    this.#note(slot);
  }

  /** Says that locks have been as far as that. */
  #span(start: number, end: number): void {
    this.#numbers[0] = this.#from = Math.min(this.#from, start);
    this.#to = Math.max(this.#to, end);
    this.#numbers[1] = -this.#to;
    this.#note(0);
  }

  #add(): number {
    const slot = this.#next;
    const table = this.#table;
    if ((slot + 1) * 2 > this.#numbers.length) {
      if (table.byteLength >= TABLE_LIMIT || !(table instanceof SharedArrayBuffer)) {
        throw new RangeError(`A client holds ${table.byteLength / SLOT_BYTES} locks at most`);
      }
      table.grow(table.byteLength * 2);
      this.#numbers = numbersOf(table);
    }
    this.#next++;
    this.#line[LINE.slots] = this.#next;
    return slot;
  }

  #note(slot: number): void {
    const noted = this.#line[LINE.noted] ?? 0;
    if (noted < JOURNAL_LENGTH) this.#line[LINE.journal + noted] = slot;
    this.#line[LINE.noted] = noted + 1;
  }
}

/** Who wants to know about the locks of a client: the owner's table of all locks. */
export interface LockListener {
  /** A lock was taken. */
  addForeign(lock: Lock): void;
  /** A lock was released. */
  removeForeign(lock: Lock): void;
  /** There have been locks somewhere in that span, which may be gone by now. */
  noteForeign(span: Span): void;
}

/** The owner's side: tells a listener what a client has locked and released. Used while clients are held off. */
export class LockMirror {
  readonly #line: Int32Array;
  readonly #table: LockTableMemory;
  readonly #length: number;
  readonly #listener: LockListener;
  readonly #known = new Map<number, Lock>();
  #numbers: Float64Array;

  /** For a client of `length` bytes of guest memory. */
  constructor(line: Int32Array, table: LockTableMemory, length: number, listener: LockListener) {
    this.#line = line;
    this.#table = table;
    this.#length = length;
    this.#listener = listener;
    this.#numbers = numbersOf(table);
  }

  /** The locks, as of the last `update`. */
  get locks(): Iterable<Span> {
    return this.#known.values();
  }

  /** How many there are. */
  get count(): number {
    return this.#known.size;
  }

  /**
   * Finds out what has changed; all over again where the client may be writing at the same time.
   *
   * @returns Whether the client has written what a client writes. If not, the locks that were known stay.
   */
  update(again: boolean = false): boolean {
    const noted = again ? JOURNAL_LENGTH + 1 : this.#line[LINE.noted] ?? 0;
    if (noted === 0) return true;
    this.#line[LINE.noted] = 0;
    if (this.#numbers.byteLength < this.#table.byteLength) this.#numbers = numbersOf(this.#table);
    let isRight = true;
    if (noted > 0 && noted <= JOURNAL_LENGTH) {
      for (let i = 0; i < noted; i++) isRight = this.#look(this.#line[LINE.journal + i] ?? 0) && isRight;
    } else {
      const slots = Math.min(this.#line[LINE.slots] ?? 0, this.#numbers.length / 2);
      isRight = noted > 0 && slots === this.#line[LINE.slots] && slots >= 0;
      for (let slot = 0; slot < slots; slot++) isRight = this.#look(slot) && isRight;
    }
    return isRight;
  }

  /** Forgets all locks: the thread that held them is gone, and its views with it. */
  clear(): void {
    this.#look(0);
    for (const span of this.#known.values()) this.#listener.removeForeign(span);
    this.#known.clear();
  }

  #look(slot: number): boolean {
    if (slot < 0 || slot >= this.#numbers.length / 2) return false;
    const known = this.#known.get(slot);
    // Each number is read once: it may be another one the next time.
    const word = this.#numbers[2 * slot] ?? 0;
    const end = this.#numbers[2 * slot + 1] ?? 0;
    if (slot === 0) return this.#lookAtSpan(word, -end);
    const write = word % 2 === 1;
    const start = write ? word - 1 : word;
    if (known !== undefined && known.start === start && known.end === end && (known.write ?? false) === write) {
      return true;
    }
    const isFree = end === 0;
    if (!isFree && !this.#isSpan(start, end)) return false;
    if (known !== undefined) {
      this.#known.delete(slot);
      this.#listener.removeForeign(known);
    }
    if (isFree) return true;
    const span: Lock = write ? { start, end, write } : { start, end };
    this.#known.set(slot, span);
    this.#listener.addForeign(span);
    return true;
  }

  #lookAtSpan(start: number, end: number): boolean {
    // Nothing was locked so far: -0.
    if (end === 0) return true;
    if (!this.#isSpan(start, end)) return false;
    this.#listener.noteForeign({ start, end });
    return true;
  }

  #isSpan(start: number, end: number): boolean {
    return start >= 0 && start < end && end <= this.#length && start % PAGE_SIZE + end % PAGE_SIZE === 0;
  }
}
