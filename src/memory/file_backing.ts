import { fileOf, lend, type Mappable, takeBack } from "../../ffi/files/mappable.ts";
import type { OpenFile } from "../../ffi/files/open_file.ts";
import type { Backing, Mapping } from "../core/map/region.ts";

/**
 * The manager's own handle of the file behind a mapping, shared by all pieces that the mapping has been cut into.
 *
 * The core passes it through untouched. `pieces` counts the entries that refer to it, one to begin with; the last one
 * that goes closes the handle.
 */
export class FileBacking implements Backing {
  readonly mappable: Mappable;
  readonly file: OpenFile;
  readonly pageSize: number;
  readonly mayFailLate: boolean;
  pieces = 1;
  #isOpen = true;

  /** Borrows a handle, which users get to see and cannot dispose. */
  constructor(mappable: Mappable) {
    const file = fileOf(mappable);
    this.mappable = lend(mappable);
    this.file = file;
    this.pageSize = file.pageSize;
    this.mayFailLate = file.mayFailLate;
  }

  /** Gives the handle back. Does nothing the second time. */
  close(): void {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    takeBack(this.mappable);
  }
}

/** The file behind a mapping, `null` for private memory. */
export function mappableOf(mapping: Mapping): Mappable | null {
  // SAFETY: the manager puts nothing but its own FileBacking into a state.
  return mapping.backing === null ? null : (mapping.backing as FileBacking).mappable;
}

/** The file that holds the memory of a mapping, `null` where the mapping itself does. */
export function sharedFileOf(mapping: Mapping): Mappable | null {
  return mapping.kind === "shared" ? mappableOf(mapping) : null;
}

/**
 * Counts the pieces that a request made of mappings and took away, and closes the files whose last piece went: `gone`
 * are the mappings that lost one, `split` those of which one became two.
 */
export function releaseFiles(gone: readonly Mapping[], split: readonly Mapping[]): void {
  // What was cut first: a batch may cut a mapping and then take one part away.
  for (const { backing } of split) {
    if (backing !== null) (backing as FileBacking).pieces++;
  }
  for (const mapping of gone) {
    if (mapping.backing !== null && --(mapping.backing as FileBacking).pieces === 0) closeFile(mapping);
  }
}

/** Closes the file of a mapping that no region has. */
export function closeFile(mapping: Mapping): void {
  // SAFETY: as above.
  if (mapping.backing !== null) (mapping.backing as FileBacking).close();
}

/** What messages call the file behind a mapping, closed or not; `undefined` for private memory. */
export function labelOf({ backing }: Mapping): string | undefined {
  return backing === null ? undefined : (backing as FileBacking).file.label;
}
