/**
 * Host addresses that are used once: for what others may go on writing to when it is gone.
 *
 * Why it is safe: they are taken out of ranges that were reserved here, each address once, and are never given back. A
 * range of some gigabytes serves many uses, so what is left behind is address space, and one kernel mapping.
 *
 * @module
 */

import { reserveAddresses } from "../os/address_space.ts";
import { PAGE_SIZE } from "../../src/core/memory_range.ts";

/** The first range that is reserved, in bytes; each one after is twice as long, up to the last of these. */
const FIRST = 2 ** 30;
const MOST = 2 ** 36;

let next = 0;
let end = 0;
let size = FIRST / 2;

/**
 * `length` bytes of inaccessible addresses at a multiple of `alignment`, never given out before.
 *
 * @throws {OsError} If the kernel has no address range of that length left.
 */
export function freshAddresses(length: number, alignment: number = PAGE_SIZE): number {
  let start = Math.ceil(next / alignment) * alignment;
  if (start + length > end) {
    size = Math.min(2 * size, MOST);
    const room = Math.max(size, length);
    start = reserveAddresses(room, Math.max(alignment, PAGE_SIZE));
    end = start + room;
  }
  next = start + length;
  return start;
}
