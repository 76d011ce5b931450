import { MemoryRange } from "membacking";

/** The base page, in bytes. */
export const PAGE = 0x1000;

/** A range by its ends, in bytes. */
export function range(start: number, end: number): MemoryRange {
  return new MemoryRange(start, end);
}
