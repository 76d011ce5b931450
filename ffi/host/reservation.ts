/**
 * A reserved range of host addresses, kept for as long as anything may look at it.
 *
 * Why it is safe: the range is given back to the process once, and not before the last holder has let go; what is to be
 * kept stays inaccessible for good.
 * The holders are the `VaMapper` that made it, region managers, and every virtual machine with a memory slot over it:
 * without that rule V8 or libc could get an address that a guest still writes to.
 *
 * @module
 */

import { DisposedError } from "../../src/core/errors.ts";
import { gaps, normalize, type Span } from "../../src/core/span.ts";
import { releaseAddresses, reserveAddresses } from "../os/address_space.ts";
import { Errno, OsError } from "../os/os_error.ts";
import { measureBudget, noteUse } from "./mapping_budget.ts";
import { forgetLocks } from "./page_locks.ts";
import { Parking } from "./parking.ts";
import { giveBackOldest, retire } from "./retired_addresses.ts";

const live = new Set<Reservation>();

/** A reserved range of host addresses with counted holders. Made with one holder, its maker. */
export class Reservation {
  /** The first address. */
  readonly base: number;
  /** The length in bytes. */
  readonly length: number;
  #holders = 1;
  /** Where memory of it is that is in no file, and does not show. */
  readonly parking: Parking = new Parking();
  // An empty reservation is one mapping.
  #mappings = 1;
  #kept: readonly Span[] = [];
  readonly #alignment: number;

  /**
   * Reserves `length` bytes at a multiple of `alignment`.
   *
   * @throws {RangeError} If a number is not as `reserveAddresses` wants it.
   * @throws {OsError} If the address space is used up.
   */
  constructor(length: number, alignment: number) {
    measureBudget();
    this.base = reserved(length, alignment);
    this.length = length;
    this.#alignment = alignment;
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

  /** Keeps `[start, end)` from ever being given back: offsets from the base, rounded outward so as to cut no page. */
  keep(start: number, end: number): void {
    const from = start - start % this.#alignment;
    const to = Math.min(Math.ceil(end / this.#alignment) * this.#alignment, this.length);
    this.#kept = normalize([...this.#kept, { start: from, end: to }]);
  }

  /** Counts one holder less. The last one unmaps the range. */
  release(): void {
    if (--this.#holders > 0) return;
    live.delete(this);
    noteUse(-this.#mappings);
    forgetLocks(this.base, this.length);
    for (const { start, end } of this.#kept) retire(this.base + start, end - start);
    for (const { start, end } of gaps(0, this.length, this.#kept)) releaseAddresses(this.base + start, end - start);
    this.parking[Symbol.dispose]();
  }
}

/** The reservation of this thread that `[address, address + length)` overlaps, if any. */
export function reservationAt(address: number, length: number): Reservation | undefined {
  for (const reservation of live) {
    if (address < reservation.base + reservation.length && reservation.base < address + length) return reservation;
  }
  return undefined;
}

/** Reserves addresses, those that were retired long ago if there are no others. */
function reserved(length: number, alignment: number): number {
  while (true) {
    try {
      return reserveAddresses(length, alignment);
    } catch (error) {
      if (!(error instanceof OsError) || error.errno !== Errno.ENOMEM || !giveBackOldest(1)) throw error;
    }
  }
}
