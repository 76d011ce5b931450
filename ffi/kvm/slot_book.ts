/**
 * Which memory slots a virtual machine has.
 *
 * KVM knows slots by number and cannot be asked what they are, so this book is the only record. It is kept so that
 * making and deleting a slot costs little besides the ioctl: found by first GPA in a hash table, numbered from a stack of
 * numbers that were given back.
 *
 * Why it is safe: it keeps records only.
 *
 * @module
 */

import { MappingError } from "../../src/core/errors.ts";
import { hex } from "../../src/core/hex.ts";
import type { MemoryRange } from "../../src/core/memory_range.ts";
import type { Reservation } from "../host/reservation.ts";

/** A memory slot, as `KvmVm.slots` shows it. */
export interface SlotInfo {
  /** The slot's number. */
  readonly slot: number;
  /** The guest-physical addresses it covers, in bytes. */
  readonly range: MemoryRange;
  /** The host address behind the first of them. */
  readonly hva: number;
  /** Whether the guest may write; where it may not, a write is an MMIO exit. */
  readonly writable: boolean;
}

/** A memory slot, and what it keeps alive. */
export interface Slot extends SlotInfo {
  /** What keeps the host addresses reserved; `undefined` for memory that is not of a `VaMapper`. */
  readonly reservation: Reservation | undefined;
  /** Whether KVM notes what the guest writes. */
  readonly logDirty: boolean;
}

/** A part of guest memory that lies in one slot. */
export interface HostPiece {
  /** Its first GPA. */
  readonly gpa: number;
  /** The host address behind that. */
  readonly hva: number;
  /** Its length in bytes. */
  readonly length: number;
  /** Whether the guest may write. */
  readonly writable: boolean;
}

/** The slots of one virtual machine. */
export class SlotBook {
  #byStart = new Map<number, Slot>();
  #free: number[] = [];
  #next = 0;

  /** The number the next slot gets. */
  get nextNumber(): number {
    return this.#free.at(-1) ?? this.#next;
  }

  /** All slots, in no order. */
  get all(): Iterable<Slot> {
    return this.#byStart.values();
  }

  /** All slots in the order of their GPAs. */
  get ordered(): Slot[] {
    return [...this.#byStart.values()].sort((a, b) => a.range.start - b.range.start);
  }

  /** Notes a slot that was made with `nextNumber`. */
  add(slot: Slot): void {
    if (slot.slot === this.#next) this.#next++;
    else this.#free.pop();
    this.#byStart.set(slot.range.start, slot);
  }

  /** The slot that covers exactly `range`. */
  exactly(range: MemoryRange): Slot | undefined {
    const slot = this.#byStart.get(range.start);
    return slot !== undefined && slot.range.end === range.end ? slot : undefined;
  }

  /** Notes a slot anew, of the same number and range. */
  replace(slot: Slot): void {
    this.#byStart.set(slot.range.start, slot);
  }

  /** The slots that log written pages, as far as they have some of `range`, in the order of their GPAs. */
  logging(range: MemoryRange): readonly Slot[] {
    const exact = this.exactly(range);
    if (exact !== undefined) return exact.logDirty ? [exact] : [];
    return this.ordered.filter((slot) => slot.logDirty && slot.range.overlaps(range));
  }

  /** Strikes a slot that was deleted; its number is used again. */
  remove(slot: Slot): void {
    this.#byStart.delete(slot.range.start);
    this.#free.push(slot.slot);
  }

  /**
   * The host memory behind `range`, slot by slot. Fast where it lies in the slot that begins where it does.
   *
   * @throws {MappingError} If slots do not cover all of it.
   */
  pieces(range: MemoryRange): HostPiece[] {
    const first = this.#byStart.get(range.start);
    const slots = first !== undefined && first.range.end >= range.end
      ? [first]
      : this.ordered.filter((slot) => slot.range.overlaps(range));
    const pieces: HostPiece[] = [];
    let gpa = range.start;
    for (const { range: { start, end }, hva, writable } of slots) {
      if (start > gpa) break;
      const stop = Math.min(end, range.end);
      pieces.push({ gpa, hva: hva + gpa - start, length: stop - gpa, writable });
      gpa = stop;
    }
    if (gpa < range.end) throw new MappingError(`There is no memory slot at ${hex(gpa)}, map ${range} first`, range);
    return pieces;
  }
}
