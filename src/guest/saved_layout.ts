import { memoryOffsets, type SavedLayout } from "../core/snapshot_index.ts";
import type { RamBlock } from "./ram.ts";

/** The layout of RAM as a snapshot knows it. */
export function saveableLayout(
  blocks: readonly RamBlock[],
  { maxAddress, x86Legacy }: { readonly maxAddress: number; readonly x86Legacy: boolean },
): SavedLayout {
  const offsets = memoryOffsets(blocks.map(({ backing: { ranges } }) => ranges));
  const backings = blocks.map(({ backing: { name, ranges } }, block) => ({
    name,
    ranges: ranges.map(({ start, end }, i) => ({ start, end, offset: offsets[block]![i]! })),
  }));
  return { maxAddress, x86Legacy, backings };
}

/** Where a GPA of RAM is in the memory file. */
export function offsetOf({ backings }: SavedLayout, gpa: number): number {
  for (const { ranges } of backings) {
    for (const { start, end, offset } of ranges) if (start <= gpa && gpa < end) return offset + gpa - start;
  }
  throw new Error(`0x${gpa.toString(16)} is no RAM`);
}
