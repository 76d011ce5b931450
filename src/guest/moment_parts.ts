import { copyData } from "../../ffi/files/file_parts.ts";
import { writeBack } from "../../ffi/host/private_pages.ts";
import { fileOf, type Mappable } from "../../ffi/files/mappable.ts";
import type { SavedLayout } from "../core/snapshot_index.ts";
import { gaps } from "../core/span.ts";
import { mappableOf } from "../memory/file_backing.ts";
import type { RegionInternals } from "../regions/region_internals.ts";
import { ownPages, ownPlaces } from "./own_pages.ts";
import type { RamBlock } from "./ram.ts";
import { offsetOf } from "./saved_layout.ts";
import type { SourcePart } from "./saving.ts";

/**
 * What belongs to a moment of the pages that are in no file: they are read where they are; or copied, since they change
 * meanwhile; or nothing of them, since all of the moment was in files, and what is in none was written after it.
 */
export type OwnPages = "in place" | "copied" | "later";

/**
 * Where all RAM of this moment is, in the order of the memory file: in its files, and what is in none where `own` says.
 * `aside` is an empty file, to which is copied what has to be, at the places of the memory file. The files stay open until
 * `handles` are disposed, whatever becomes of the mappings.
 *
 * @throws {OsError} If a file cannot be read.
 * @throws {MembackingError} If one is shorter than its mapping.
 */
export function momentParts(
  internals: RegionInternals,
  blocks: readonly RamBlock[],
  layout: SavedLayout,
  aside: Mappable,
  own: OwnPages,
  handles: DisposableStack,
): SourcePart[] {
  const kept = new Map<object, Mappable>();
  const keep = (file: Mappable): Mappable => {
    const own = kept.get(fileOf(file)) ?? handles.use(file.clone());
    kept.set(fileOf(file), own);
    return own;
  };
  const parts: SourcePart[] = [];
  for (const { pieces } of blocks) {
    for (const { region } of pieces) {
      const delta = offsetOf(layout, region.range.start) - region.range.start;
      const found: SourcePart[] = [];
      for (const place of own === "later" ? [] : ownPlaces(internals, region)) {
        for (const { start, end, address } of ownPages(place)) {
          const offset = start + delta;
          // Each run as it is found: a second look would find more, where somebody writes meanwhile.
          if (own === "copied") writeBack(address, end - start, fileOf(aside).fd, offset);
          const from = own === "copied" ? { file: aside, fileOffset: offset } : { address };
          found.push({ start, end, offset, from });
        }
      }
      found.sort((a, b) => a.start - b.start);
      parts.push(...found);
      for (const { start, end, value: mapping } of internals.mappings(region)) {
        const file = mapping.kind === "private" ? null : mappableOf(mapping);
        for (const gap of gaps(start, end, found)) {
          const fileOffset = gap.start + mapping.delta;
          const offset = gap.start + delta;
          // RAM that came after the freeze is shared, and goes on changing.
          const isCopied = own !== "in place" && file !== null && mapping.kind === "shared";
          if (isCopied) copyShared(file, fileOffset, aside, offset, gap.end - gap.start);
          // What is in no file and has not been written is zeros, as it is in the file aside.
          const isAside = isCopied || file === null;
          const from = isAside ? { file: aside, fileOffset: offset } : { file: keep(file), fileOffset };
          parts.push({ ...gap, offset, from });
        }
      }
    }
  }
  return parts.sort((a, b) => a.offset - b.offset);
}

function copyShared(from: Mappable, fileOffset: number, to: Mappable, offset: number, length: number): void {
  const file = fileOf(from);
  copyData(file.fd, fileOffset, fileOf(to).fd, offset, length);
  // What is beyond the end reads like a hole.
  if (file.truncatable) file.checkReaches(fileOffset, length);
}
