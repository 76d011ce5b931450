/**
 * The programmable attribute map of Intel's 440FX host bridge (PAM0-PAM6, configuration bytes 0x59-0x5f): who answers
 * in 13 ranges below 1 MiB, RAM or the ROM and cards on the PCI bus behind it.
 *
 * Each range has two bits: bit 0 lets reads reach RAM, bit 1 writes. PAM0 holds f0000-fffff in its high nibble alone,
 * the others 16 KiB in each nibble, from c0000 up.
 *
 * @module
 */

import { MemoryRange } from "membacking";

/** Where PAM0 is. */
export const PAM_OFFSET = 0x59;
/** How many registers there are. */
export const PAM_COUNT = 7;

/** What a guest finds in a range: RAM, RAM that ignores writes, or whatever is on the bus. */
export type Visibility = "read-write" | "read-only" | "unmapped";

/** One range that changes. */
export interface PamChange {
  /** The addresses. */
  readonly range: MemoryRange;
  /** What RAM is there now. */
  readonly to: Visibility;
}

const KIB = 1024;

/** A range, and where its two bits are: which register, how far up. */
interface PamField {
  readonly range: MemoryRange;
  readonly register: number;
  readonly shift: number;
}

const FIELDS: readonly PamField[] = [
  ...Array.from({ length: 12 }, (_, i) => ({
    range: MemoryRange.of(0xc_0000 + i * 16 * KIB, 16 * KIB),
    register: 1 + (i >> 1),
    shift: 4 * (i & 1),
  })),
  { range: MemoryRange.of(0xf_0000, 64 * KIB), register: 0, shift: 4 },
];

/** The 13 ranges, in order. */
export const PAM_RANGES: readonly MemoryRange[] = FIELDS.map(({ range }) => range);

/** What changes when the seven registers go from `before` to `after`. */
export function pamChanges(before: Uint8Array, after: Uint8Array): PamChange[] {
  return FIELDS.flatMap((field) => {
    const to = visibility(after, field);
    return to === visibility(before, field) ? [] : [{ range: field.range, to }];
  });
}

function visibility(registers: Uint8Array, { register, shift }: PamField): Visibility {
  switch (((registers[register] ?? 0) >> shift) & 3) {
    case 3:
      return "read-write";
    case 1:
      return "read-only";
    // Reads from the bus while writes go to RAM: no memory slot can do that. As in QEMU, it is the bus for both.
    default:
      return "unmapped";
  }
}
