/**
 * Which guest memory a virtual machine holds in place.
 *
 * Pins are a set of pages: pinning twice is pinning once, and any part can be let go. A pin belongs to the host memory
 * and not to the slot, so it stays when a slot is replaced by one of other access over the same memory.
 *
 * Why it is safe: it locks and unlocks pages, which changes no contents.
 *
 * @module
 */

import { paint } from "../../src/core/paint.ts";
import { RangeMap } from "../../src/core/range_map.ts";
import { lockPages, relockPages, unlockPages } from "../host/page_locks.ts";
import type { HostPiece } from "./slot_book.ts";

const same = (a: number, b: number): boolean => a === b;

/** The pinned memory of one virtual machine. */
export class Pins {
  /** By GPA: what has to be added to one for its host address. */
  #deltas: RangeMap<number> = RangeMap.EMPTY;

  /** How many separate stretches are pinned. */
  get size(): number {
    return this.#deltas.size;
  }

  /**
   * Pins `pieces`. Those pinned already are locked anew, in case their memory was replaced.
   *
   * @throws {OsError} If one cannot be locked. Nothing new is pinned then.
   */
  pin(pieces: readonly HostPiece[]): void {
    const before = this.#deltas;
    const locked: { address: number; length: number }[] = [];
    try {
      for (const piece of pieces) {
        for (const part of this.#partsOf(piece)) {
          if (part.pinned) relockPages(part.address, part.length);
          else {
            lockPages(part.address, part.length);
            locked.push(part);
          }
        }
      }
    } catch (error) {
      for (const { address, length } of locked) unlockPages(address, length);
      throw error;
    }
    for (const { gpa, hva, length } of pieces) {
      const end = gpa + length;
      // Pinned at another host address before: that lock goes.
      for (const old of before.overlapping(gpa, end)) if (old.value !== hva - gpa) this.unpin(gpa, end);
      this.#deltas = paint(this.#deltas, gpa, end, [{ start: gpa, end, value: hva - gpa }], same);
    }
  }

  /** Lets go of whatever is pinned in the GPAs `[start, end)`. */
  unpin(start: number, end: number): void {
    for (const entry of this.#deltas.overlapping(start, end)) {
      const from = Math.max(entry.start, start);
      unlockPages(from + entry.value, Math.min(entry.end, end) - from);
    }
    this.#deltas = this.#deltas.delete(start, end);
  }

  /** A piece cut where pinned and not pinned meet. */
  #partsOf({ gpa, hva, length }: HostPiece): { address: number; length: number; pinned: boolean }[] {
    const delta = hva - gpa;
    const end = gpa + length;
    const parts: { address: number; length: number; pinned: boolean }[] = [];
    let at = gpa;
    const push = (to: number, pinned: boolean) => {
      if (to > at) parts.push({ address: at + delta, length: to - at, pinned });
      at = to;
    };
    for (const entry of this.#deltas.overlapping(gpa, end)) {
      if (entry.value !== delta) continue;
      push(Math.max(entry.start, gpa), false);
      push(Math.min(entry.end, end), true);
    }
    push(end, false);
    return parts;
  }
}
