/**
 * A reserved range of host addresses, kept for as long as anything may look at it.
 *
 * Why it is safe: the range is given back to the process as a whole, once, and not before the last holder has let go.
 * The holders are the `VaMapper` that made it, region managers, and every virtual machine with a memory slot over it:
 * without that rule V8 or libc could get an address that a guest still writes to.
 *
 * @module
 */

import { DisposedError } from "../../src/core/errors.ts";
import { releaseAddresses, reserveAddresses } from "../os/address_space.ts";
import { measureBudget, noteUse } from "./mapping_budget.ts";
import { forgetLocks } from "./page_locks.ts";

const live = new Set<Reservation>();

/** A reserved range of host addresses with counted holders. Made with one holder, its maker. */
export class Reservation {
  /** The first address. */
  readonly base: number;
  /** The length in bytes. */
  readonly length: number;
  #holders = 1;
  // An empty reservation is one mapping.
  #mappings = 1;

  /**
   * Reserves `length` bytes at a multiple of `alignment`.
   *
   * @throws {RangeError} If a number is not as `reserveAddresses` wants it.
   * @throws {OsError} If the address space is used up.
   */
  constructor(length: number, alignment: number) {
    measureBudget();
    this.base = reserveAddresses(length, alignment);
    this.length = length;
    noteUse(this.#mappings);
    live.add(this);
  }

  /** Whether the addresses have been given back. */
  get released(): boolean {
    return this.#holders === 0;
  }

  /** How many kernel mappings it consists of, as far as its user said. */
  get mappings(): number {
    return this.#mappings;
  }

  set mappings(count: number) {
    if (this.released) return;
    noteUse(count - this.#mappings);
    this.#mappings = count;
  }

  /**
   * Counts one more holder.
   *
   * @throws {DisposedError} If the last one has gone.
   */
  retain(): this {
    if (this.released) throw new DisposedError("The address range");
    this.#holders++;
    return this;
  }

  /** Counts one holder less. The last one unmaps the range. */
  release(): void {
    if (--this.#holders > 0) return;
    live.delete(this);
    noteUse(-this.#mappings);
    forgetLocks(this.base, this.length);
    releaseAddresses(this.base, this.length);
  }
}

/** The reservation of this thread that `[address, address + length)` overlaps, if any. */
export function reservationAt(address: number, length: number): Reservation | undefined {
  for (const reservation of live) {
    if (address < reservation.base + reservation.length && reservation.base < address + length) return reservation;
  }
  return undefined;
}
