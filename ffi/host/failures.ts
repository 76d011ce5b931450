/**
 * What a call that failed may have done to guest memory.
 *
 * Why it is safe: the one mapping made here takes free addresses of a reservation back, and never replaces anything.
 *
 * @module
 */

import { MembackingError } from "../../src/core/errors.ts";
import { MemoryRange } from "../../src/core/memory_range.ts";
import { RESERVE_FLAGS } from "../os/address_space.ts";
import { libc } from "../os/libc.ts";
import { MAP_FIXED_NOREPLACE, MS_ASYNC, PROT_NONE } from "../os/mman.ts";
import { Errno } from "../os/os_error.ts";

/**
 * A part of the reservation is gone: replacing a mapping failed in a way that took the old one with it, and the
 * addresses could not be taken back, since something else in the process got them first.
 *
 * Whoever gets this must see to it that nothing uses the range any more: delete the memory slots over it, and never map
 * there again.
 */
export class ReservationLostError extends MembackingError {
  /** The class name, which is also what a stack trace shows. */
  override name = "ReservationLostError";
  /** What was lost: GPAs, that is, offsets into the reservation, in bytes. */
  readonly range: MemoryRange;

  /** Builds the error; `cause` is what failed first. */
  constructor(range: MemoryRange, cause: unknown) {
    super(`The host addresses of guest memory ${range} are lost, and nothing may be mapped there again`, { cause });
    this.range = range;
  }
}

/**
 * Makes sure that a call that failed with `cause` left no hole at `[start, end)` of the reservation at `base`, and says
 * whether it may have.
 *
 * @throws {ReservationLostError} If something else is in it by now.
 */
export function plugHole(base: number, start: number, end: number, cause: unknown): boolean {
  const { sys, errno } = libc();
  const at = BigInt(base + start);
  const size = BigInt(end - start);
  // With MS_ASYNC, msync does nothing but walk the mappings, and reports ENOMEM if there are gaps between them.
  const gap = sys.msync(at, size, MS_ASYNC) === -1 ? errno[0] : 0;
  if (gap === Errno.ENOMEM) {
    // SAFETY: takes free addresses of the reservation back, and never replaces a mapping.
    const plugged = sys.mmap(at, size, PROT_NONE, RESERVE_FLAGS | MAP_FIXED_NOREPLACE, -1, 0n) !== -1;
    if (!plugged) throw new ReservationLostError(new MemoryRange(start, end), cause);
  }
  return gap !== 0;
}

const withoutEffect = new WeakSet<Error>();

/** Says that the call that failed with `error` left host memory as it was. */
export function noteNoEffect(error: Error): void {
  withoutEffect.add(error);
}

/**
 * Whether a call failed with `error` and left host memory as it was: then there is nothing to put back, and trying to
 * might fail for the same reason.
 */
export function hadNoEffect(error: unknown): boolean {
  return error instanceof Error && withoutEffect.has(error);
}
