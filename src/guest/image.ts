import { copyFilePart, punchHole } from "../../ffi/files/file_parts.ts";
import { fileOf, Mappable } from "../../ffi/files/mappable.ts";
import { mappableOf } from "../memory/file_backing.ts";
import type { RegionInternals } from "../regions/region_internals.ts";
import { copyOwnPages, ownPlaces } from "./own_pages.ts";
import type { RamBlock } from "./ram.ts";

/** A file that has, or is going to have, all the memory of a block at one moment. */
export interface NewImage extends Disposable {
  readonly file: Mappable;
  /** Whether pages that are in no file have to be moved away to make place for it. */
  readonly movesPages: boolean;
  /** Whether `complete` writes over what the file had, which cannot be gone back to from then on. */
  readonly writesOver?: boolean;
  /** Brings the file to what memory is now. Memory must not change meanwhile. */
  complete(): void;
}

/**
 * The image of a block: its own file, to which the pages are added that are in no file, if nobody else needs it as it is
 * (`isExclusive`) or there are none; otherwise a new file.
 */
export function imageOf(internals: RegionInternals, block: RamBlock, isExclusive: boolean): NewImage {
  const entries = block.pieces.flatMap((piece) =>
    internals.mappings(piece.region).map((entry) => ({ ...entry, delta: piece.fileOffset - piece.region.range.start }))
  );
  const files = [...new Set(entries.map(({ value }) => mappableOf(value)).filter((file) => file !== null))];
  const own = files[0];
  if (entries.every(({ value }) => value.kind === "shared") && own !== undefined) {
    return { ...ownFile(own), movesPages: false, complete() {} };
  }
  const places = block.pieces.flatMap(({ region, fileOffset }) =>
    ownPlaces(internals, region).map((place) => ({ place, delta: fileOffset - region.range.start }))
  );
  const isSame = files.every((file) => own !== undefined && fileOf(file) === fileOf(own));
  if (isExclusive && own !== undefined && isSame && fileOf(own).isOpenForWriting) {
    return { ...ownFile(own), movesPages: true, writesOver: true, complete: () => write(fileOf(own).fd, false) };
  }
  const file = Mappable.memfd(block.backing.name, block.layout.fileSize);
  return {
    file,
    movesPages: true,
    complete: () => write(fileOf(file).fd, true),
    [Symbol.dispose]: () => file[Symbol.dispose](),
  };

  function write(fd: number, isNew: boolean): void {
    for (const { start, end, value, delta } of entries) {
      const base = value.kind === "private" ? null : mappableOf(value);
      if (!isNew && base === null) punchHole(fd, start + delta, end - start);
      if (isNew && base !== null) copyFilePart(fileOf(base).fd, start + value.delta, fd, start + delta, end - start);
    }
    for (const { place, delta } of places) copyOwnPages(place, fd, delta);
  }
}

/** A handle of its own: that of the mapping goes with it. */
function ownFile(file: Mappable): Pick<NewImage, "file" | typeof Symbol.dispose> {
  const own = file.clone();
  return { file: own, [Symbol.dispose]: () => own[Symbol.dispose]() };
}
