import { fileOf, type Mappable } from "../../ffi/files/mappable.ts";
import { PAGE_SIZE } from "../core/memory_range.ts";
import type { SavedLayout } from "../core/snapshot_index.ts";
import { gaps } from "../core/span.ts";
import { mappableOf } from "../memory/file_backing.ts";
import type { RegionInternals } from "../regions/region_manager.ts";
import { copyOwnPages, ownPages, ownPlaces } from "./own_pages.ts";
import type { RamBlock } from "./ram.ts";
import { offsetOf } from "./saved_layout.ts";
import type { SourcePart } from "./saving.ts";

/**
 * Where all RAM of this moment is, in the order of the memory file: in its files, and what is in none in `aside`, to which
 * it is copied at the places of the memory file; without `aside`, where it is now.
 */
export function momentParts(
  internals: RegionInternals,
  blocks: readonly RamBlock[],
  layout: SavedLayout,
  aside: Mappable | null,
): SourcePart[] {
  const parts: SourcePart[] = [];
  for (const { pieces } of blocks) {
    for (const { region } of pieces) {
      const delta = offsetOf(layout, region.range.start) - region.range.start;
      const own: SourcePart[] = [];
      for (const place of ownPlaces(internals, region)) {
        if (aside !== null) copyOwnPages(place, fileOf(aside).fd, delta);
        for (const { start, end, address } of ownPages(place)) {
          const from = aside === null ? { address } : { file: aside, fileOffset: start + delta };
          own.push({ start, end, offset: start + delta, from });
        }
      }
      own.sort((a, b) => a.start - b.start);
      parts.push(...own);
      for (const { start, end, value: mapping } of internals.mappings(region)) {
        const file = mapping.kind === "private" ? null : mappableOf(mapping);
        if (file === null) continue;
        // Huge pages are mapped whole: where they show, they are mapped already.
        const isMapped = file.pageSize > PAGE_SIZE;
        for (const gap of gaps(start, end, own)) {
          const from = isMapped
            ? { address: internals.base + gap.start }
            : { file, fileOffset: gap.start + mapping.delta };
          parts.push({ ...gap, offset: gap.start + delta, from });
        }
      }
    }
  }
  return parts.sort((a, b) => a.offset - b.offset);
}
