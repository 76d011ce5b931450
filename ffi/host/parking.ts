/**
 * Where memory lives that is in no file, while guest memory does not show it: anonymous memory, and the pages of
 * copy-on-write mappings that were written.
 *
 * ```
 *   guest memory   [ a | b | c ]            [ a | . | c ]      mremap(MREMAP_DONTUNMAP): the pages go, the addresses
 *   parking        [           ]     ->     [     b     ]      stay taken on either side
 * ```
 *
 * Why it is safe: addresses on this side are reserved here and told no one, and given back only when nothing is parked
 * there. Those on the side of guest memory are the caller's to check. MREMAP_DONTUNMAP leaves an empty mapping behind, so
 * that no address becomes free on the way. What is parked is written down in the statement after the system call that
 * moved it, without a call in between: an exception from anywhere finds the truth.
 *
 * @module
 */

import { PAGE_SIZE } from "../../src/core/memory_range.ts";
import { RangeMap } from "../../src/core/range_map.ts";
import { gaps } from "../../src/core/span.ts";
import type { HostMemory } from "../../src/core/targets.ts";
import { releaseAddresses, RESERVE_FLAGS, reserveAddresses } from "../os/address_space.ts";
import { libc } from "../os/libc.ts";
import { MAP_FIXED, MREMAP_DONTUNMAP, MREMAP_FIXED, MREMAP_MAYMOVE, PROT_NONE } from "../os/mman.ts";
import { Errno, OsError } from "../os/os_error.ts";
import { noteUse } from "./mapping_budget.ts";

/** Moves of whole large pages move page tables instead of pages. */
const LARGE_PAGE = 2 ** 21;

/** The place for one memory. */
interface Place {
  /** The host address of its offset 0, which may lie outside of the place. */
  readonly base: number;
  readonly address: number;
  readonly length: number;
  /** The offsets that are parked. */
  held: RangeMap<true>;
  /** How many kernel mappings it was said to consist of. */
  mappings: number;
}

/** What is parked of one guest memory. */
export class Parking implements Disposable {
  readonly #places = new Map<HostMemory, Place>();

  /**
   * Parks `length` bytes from the host address `from`, which are those of `memory` from `offset` on. What of them is
   * parked already stays where it is.
   *
   * @throws {OsError} If the kernel refuses, or there is no address range left. A part of it may be parked then.
   */
  park(from: number, length: number, memory: HostMemory, offset: number): void {
    const place = this.#placeFor(memory);
    for (const { start, end } of gaps(offset, offset + length, place.held.overlapping(offset, offset + length))) {
      this.#move(from + start - offset, place.base + start, start, end, place, true);
    }
  }

  /**
   * Brings back to the host address `to` what is parked of `length` bytes of `memory` from `offset` on. What is not parked
   * is left alone. The place goes with the last of it.
   *
   * @throws {OsError} If the kernel refuses. A part may have come back, and at others nothing be mapped.
   */
  restore(to: number, length: number, memory: HostMemory, offset: number): void {
    const place = this.#places.get(memory);
    if (place === undefined) return;
    for (const entry of place.held.overlapping(offset, offset + length)) {
      const start = Math.max(entry.start, offset);
      const end = Math.min(entry.end, offset + length);
      this.#move(place.base + start, to + start - offset, start, end, place, false);
    }
    if (!place.held.isEmpty) return;
    try {
      this.#giveUp(memory, place);
    } catch (error) {
      // Addresses that have become one kernel mapping with others cannot be cut out of it where no more mappings may be.
      // All has come back, and the place is there for what is parked next, or given up with everything.
      if (!(error instanceof OsError)) throw error;
    }
  }

  /** Where offset `offset` of `memory` is, `undefined` where it is not parked. */
  addressOf(memory: HostMemory, offset: number): number | undefined {
    const place = this.#places.get(memory);
    return place?.held.entryAt(offset) === undefined ? undefined : place.base + offset;
  }

  /**
   * Gives up what is parked at the offsets `[start, end)` of `memory`, and its place with the last of it.
   *
   * @throws {OsError} If the kernel refuses.
   */
  discard(memory: HostMemory, start: number, end: number): void {
    const place = this.#places.get(memory);
    if (place === undefined) return;
    const held = place.held.delete(start, end);
    if (held.isEmpty) return this.#giveUp(memory, place);
    const { sys, errno } = libc();
    const flags = RESERVE_FLAGS | MAP_FIXED;
    // SAFETY: inside the place, whose addresses are known here alone.
    const failed = sys.mmap(BigInt(place.base + start), BigInt(end - start), PROT_NONE, flags, -1, 0n) === -1
      ? errno[0]
      : undefined;
    if (failed !== undefined) throw new OsError("mmap", failed, "parked memory");
    place.held = held;
    count(place);
  }

  /** Gives up everything: places too that nothing is parked in any more. */
  [Symbol.dispose](): void {
    for (const [memory, place] of this.#places) this.#giveUp(memory, place);
  }

  #giveUp(memory: HostMemory, { address, length, mappings }: Place): void {
    releaseAddresses(address, length);
    this.#places.delete(memory);
    noteUse(-mappings);
  }

  #placeFor(memory: HostMemory): Place {
    const known = this.#places.get(memory);
    if (known !== undefined) return known;
    // Congruent to its offsets, as guest memory is as a rule.
    const ahead = memory.start % LARGE_PAGE;
    const length = ahead + memory.end - memory.start;
    const address = reserveAddresses(length, LARGE_PAGE);
    const base = address + ahead - memory.start;
    const place = { base, address, length, held: RangeMap.EMPTY, mappings: 1 };
    this.#places.set(memory, place);
    noteUse(place.mappings);
    return place;
  }

  /** Moves pages and notes that their offsets `[start, end)` are parked now, or are not. */
  #move(from: number, to: number, start: number, end: number, place: Place, parks: boolean): void {
    const { sys, errno } = libc();
    const size = BigInt(end - start);
    const [source, target] = [BigInt(from), BigInt(to)];
    const held = parks ? place.held.set(start, end, true) : place.held.delete(start, end);
    const flags = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP;
    // SAFETY: from addresses of the caller to those of the place, or the other way round; see the top.
    const failed = sys.mremap(source, size, size, flags, target) === -1 ? errno[0] : undefined;
    if (failed === undefined) {
      place.held = held;
      count(place);
    } else if (failed === Errno.EFAULT && end - start > PAGE_SIZE) {
      // It moves one kernel mapping at a time, and there are several.
      const middle = halfway(from, start, end);
      this.#move(from, to, start, middle, place, parks);
      this.#move(from + middle - start, to + middle - start, middle, end, place, parks);
    } else {
      throw new OsError("mremap", failed, "memory that is in no file");
    }
  }
}

/** Says how many kernel mappings the place consists of at most. */
function count(place: Place): void {
  const mappings = 1 + 2 * place.held.size;
  noteUse(mappings - place.mappings);
  place.mappings = mappings;
}

/** A place to divide `[start, end)` at, whose first byte is at the host address `from`: between large pages if possible. */
function halfway(from: number, start: number, end: number): number {
  const middle = start + Math.floor((end - start) / 2 / PAGE_SIZE) * PAGE_SIZE;
  const large = middle - (from + middle - start) % LARGE_PAGE;
  return large > start ? large : middle;
}
