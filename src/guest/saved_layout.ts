import { memoryOffsets, type SavedLayout } from "../core/snapshot_index.ts";
import type { RamBlock } from "./ram.ts";

/** The layout of RAM as a snapshot knows it. */
export function saveableLayout(
  blocks: readonly RamBlock[],
  { maxAddress, x86Legacy }: { readonly maxAddress: number; readonly x86Legacy: boolean },
): SavedLayout {
  const all = blocks.flatMap(({ backing: { ranges } }) => ranges);
  const offsets = memoryOffsets(all);
  let next = 0;
  const backings = blocks.map(({ backing: { name, ranges } }) => ({
    name,
    ranges: ranges.map(({ start, end }) => ({ start, end, offset: offsets[next++]! })),
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
