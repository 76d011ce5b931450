/**
 * What a region manager has told of the mappings that a back end is given.
 *
 * @module
 */

import { fileOf, type Mappable } from "../../ffi/files/mappable.ts";
import type { OpenFile } from "../../ffi/files/open_file.ts";
import type { DmaRequest } from "../targets/targets.ts";
import type { Run } from "./memory_table.ts";

/** One mapping that the back end is given. */
export interface Piece extends Run<OpenFile> {
  /** A handle of the file. */
  readonly mappable: Mappable;
}

/** Without overlaps, in ascending order. */
export type Pieces = readonly Piece[];

/** Whether a back end is given it. They map what they are given for writing, so they are given nothing else. */
export function isGiven(request: DmaRequest): request is DmaRequest & { readonly mappable: Mappable } {
  return request.type === "ram" && request.mappable !== null && request.mappable.writable;
}

/** What is given by such a request. */
export function pieceOf(request: DmaRequest & { readonly mappable: Mappable }): Piece {
  const { range: { start, end }, mappable, fileOffset } = request;
  return { start, end, fileOffset, file: fileOf(mappable), mappable };
}

/** What a back end is given: the table that comes of it outlives the handles of the files. */
export function runsOf(pieces: Pieces): Run<OpenFile>[] {
  return pieces.map(({ start, end, file, fileOffset }) => ({ start, end, file, fileOffset }));
}

/** The piece that begins at `start`. */
export function pieceAt(pieces: Pieces, start: number): Piece | undefined {
  return pieces.find((piece) => piece.start === start);
}

/** The same without that one. */
export function without(pieces: Pieces, start: number): Pieces {
  return pieces.filter((piece) => piece.start !== start);
}

/** The same with `added`, in place of what begins where it does. */
export function withPiece(pieces: Pieces, added: Piece): Pieces {
  const at = pieces.findIndex(({ start }) => start >= added.start);
  if (at < 0) return [...pieces, added];
  return pieces.toSpliced(at, pieces[at]!.start === added.start ? 1 : 0, added);
}
