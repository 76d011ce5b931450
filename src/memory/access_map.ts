import { GuestMemoryError } from "../core/errors.ts";
import { type MemoryRange, PAGE_SIZE } from "../core/memory_range.ts";
import type { Mappable } from "../../ffi/files/mappable.ts";
import type { LockedMemory } from "./locked_memory.ts";

/** What backs an address, as far as an access needs to know. */
export interface Backed {
  /** The first GPA backed in the same way, in bytes. */
  readonly start: number;
  /** One past the last. */
  readonly end: number;
  /** Whether it may be written. */
  readonly writable: boolean;
  /** Set where the memory is reached through its file, because a mapping of it could be truncated under the access. */
  readonly file: { readonly mappable: Mappable; readonly offset: number } | null;
}

/** The memory map as an access sees it. */
export interface AccessMap {
  /** Where guest memory ends, in bytes. */
  readonly length: number;
  /** What backs `gpa`; `undefined` where nothing can be accessed. */
  find(gpa: number): Backed | undefined;
  /** The host's own bytes of `[start, end)`, backed or not. */
  view(start: number, end: number): ArrayBuffer;
  /** Holds `range`, which is accessible throughout. */
  lock(range: MemoryRange, pieces: readonly Backed[]): LockedMemory;
}

/** A part of an access, and the piece that serves it. */
export interface Part {
  readonly piece: Backed;
  readonly start: number;
  readonly end: number;
}

/** An access through the file, which may have become too short by now. */
export function viaFile(
  gpa: number,
  length: number,
  piece: Backed,
  at: number,
  act: (mappable: Mappable, offset: number) => void,
): void {
  if (piece.file === null) return;
  try {
    act(piece.file.mappable, piece.file.offset + (at - piece.start));
  } catch (cause) {
    throw new GuestMemoryError("not-mapped", gpa, length, at, cause);
  }
}

/** Reads a part of a file; what its last page has beyond its end is zeros, as a guest sees it. */
export function readFile(mappable: Mappable, offset: number, into: Uint8Array): void {
  const { size } = mappable;
  const whole = offset + into.length <= size || offset + into.length > Math.ceil(size / PAGE_SIZE) * PAGE_SIZE;
  const there = whole ? into.length : Math.max(0, size - offset);
  mappable.read(offset, into.subarray(0, there));
  into.fill(0, there);
}

/** Throws if the file is too short for a part of an access, so that a write of several parts is all or nothing. */
export function checkFileSize(gpa: number, length: number, { piece, start, end }: Part): void {
  if (piece.file === null) return;
  const fileEnd = piece.file.mappable.size - piece.file.offset + piece.start;
  if (end > fileEnd) throw new GuestMemoryError("not-mapped", gpa, length, Math.max(start, fileEnd));
}
