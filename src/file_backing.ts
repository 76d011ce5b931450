import type { Mappable } from "../ffi/mappable.ts";
import type { OpenFile } from "../ffi/open_file.ts";
import type { Backing, Mapping, PieceCount } from "./core/state.ts";

/**
 * The manager's own handle of the file behind a mapping, shared by all pieces that the mapping has been cut into.
 *
 * The core passes it through untouched. `pieces` counts how many entries of how many regions refer to it; the last
 * one that goes closes the handle.
 */
export class FileBacking implements Backing {
  readonly mappable: Mappable;
  readonly file: OpenFile;
  readonly pageSize: number;
  readonly mayFailLate: boolean;
  pieces = 0;

  /** Takes over `mappable`, a handle of `file`. */
  constructor(mappable: Mappable, file: OpenFile) {
    this.mappable = mappable;
    this.file = file;
    this.pageSize = file.pageSize;
    this.mayFailLate = file.mayFailLate;
  }
}

/** The file behind a mapping, `null` for private memory. */
export function mappableOf(mapping: Mapping): Mappable | null {
  // SAFETY: the manager puts nothing but its own FileBacking into a state.
  return mapping.backing === null ? null : (mapping.backing as FileBacking).mappable;
}

/** Counts the pieces that a request added and took away, and closes the files whose last piece went. */
export function settleFiles(counts: readonly PieceCount[]): void {
  // All counts first: a batch may take the last piece of a mapping away before it adds another.
  for (const { mapping, by } of counts) {
    if (mapping.backing !== null) (mapping.backing as FileBacking).pieces += by;
  }
  for (const { mapping, by } of counts) {
    if (by <= 0) closeUnused(mapping);
  }
}

/** Closes the file of a mapping that no region uses. */
export function closeUnused(mapping: Mapping): void {
  if (mapping.backing === null) return;
  const backing = mapping.backing as FileBacking;
  if (backing.pieces === 0) backing.mappable[Symbol.dispose]();
}
