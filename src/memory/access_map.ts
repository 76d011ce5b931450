import { fileOf, type Mappable } from "../../ffi/files/mappable.ts";
import { GuestMemoryError, MappingError } from "../core/errors.ts";
import { checkNumber, MemoryRange, PAGE_SIZE } from "../core/memory_range.ts";
import type { HostBytes } from "../core/targets.ts";
import type { LockedMemory } from "./locked_memory.ts";
import type { MemoryPiece } from "./memory_piece.ts";
import type { WriteMarks } from "./write_marks.ts";

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
  /** The host address of GPA 0. */
  readonly base: number;
  /** Whether there is memory at host addresses, which the kernel can be given. */
  readonly hasAddresses: boolean;
  /** What backs `gpa`; `undefined` where nothing can be accessed. */
  find(gpa: number): Backed | undefined;
  /** What shows in `[start, end)`, cut to it, in order. */
  pieces(start: number, end: number): IterableIterator<MemoryPiece>;
  /** What shows at `gpa`, as far as it reaches; `null` for nothing. */
  piece(gpa: number): MemoryPiece | null;
  /** The host's own bytes from `gpa` on, as far as they are backed in the same way. Kept until the map changes. */
  bytesAt(gpa: number): HostBytes;
  /** Holds `range`, which is accessible throughout; with `write`, whoever holds it may write it. */
  lock(range: MemoryRange, pieces: readonly Backed[], write: boolean): LockedMemory;
  /** Where writes are marked, `null` while nobody tracks them. Asked anew after each `invalidate`. */
  readonly marks: WriteMarks | null;
}

/** A part of an access, and the piece that serves it. */
export interface Part {
  readonly piece: Backed;
  readonly start: number;
  readonly end: number;
}

/**
 * The parts of an access, in order. Those of a write are marked as written, which is early enough: nobody asks what was
 * written before the access is over.
 *
 * @throws {GuestMemoryError} If the memory map does not allow it.
 */
export function partsOf(map: AccessMap, gpa: number, length: number, write: boolean): Part[] {
  checkNumber(gpa, "Guest-physical address");
  if (gpa + length > map.length) throw new GuestMemoryError("out-of-range", gpa, length, map.length);
  const parts: Part[] = [];
  for (let at = gpa; at < gpa + length;) {
    const piece = map.find(at);
    if (piece === undefined) throw new GuestMemoryError("not-mapped", gpa, length, at);
    if (write && !piece.writable) throw new GuestMemoryError("read-only", gpa, length, at);
    const end = Math.min(piece.end, gpa + length);
    parts.push({ piece, start: at, end });
    at = end;
  }
  // One transfer is whole or an error by itself. Of several, none may begin if another cannot be whole.
  if (write && parts.length > 1) { for (const part of parts) checkFileSize(gpa, length, part); }
  if (write) map.marks?.mark(gpa, gpa + length);
  return parts;
}

/** Whether an access would find what it needs, whatever the caller passes. */
export function isAccessible(map: AccessMap, gpa: number, length: number, write: boolean): boolean {
  if (!Number.isSafeInteger(gpa) || !Number.isSafeInteger(length) || gpa < 0 || length < 0) return false;
  if (gpa + length > map.length) return false;
  for (let at = gpa; at < gpa + length;) {
    const piece = map.find(at);
    if (piece === undefined || (write && !piece.writable)) return false;
    at = piece.end;
  }
  return true;
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
function checkFileSize(gpa: number, length: number, { piece, start, end }: Part): void {
  if (piece.file === null) return;
  const fileEnd = piece.file.mappable.size - piece.file.offset + piece.start;
  if (end > fileEnd) throw new GuestMemoryError("not-mapped", gpa, length, Math.max(start, fileEnd));
}

/**
 * Throws where memory is reached through its file; `what` says what it cannot have.
 *
 * @throws {MappingError} Saying why, and what to do about it.
 */
export function checkSteady({ piece, start, end }: Part, what: string): void {
  if (piece.file === null) return;
  const why = fileOf(piece.file.mappable).whyUnsteady;
  throw new MappingError(`This memory ${what}, since ${why}`, MemoryRange.bounding(start, end));
}
