/**
 * Bytes between files and host memory, moved by the kernel.
 *
 * Why it is safe: the kernel does the copy, from or to addresses that it checks itself: memory that is not there is an
 * error (EFAULT) and never a signal. Which addresses may be read and written is the caller's to know; the file is
 * looked at before anything moves.
 *
 * @module
 */

import { hex } from "../../src/core/hex.ts";
import { FileMapping } from "../os/address_space.ts";
import { libc } from "../os/libc.ts";
import { PROT_READ, PROT_WRITE } from "../os/mman.ts";
import { copyProcessMemory } from "../os/process_memory.ts";
import { outcome } from "../os/uninterrupted.ts";
import { type TransferNotes, transferWhole } from "../os/whole_transfer.ts";
import { word64 } from "../os/word64.ts";
import { fileOf, type Mappable } from "./mappable.ts";
import type { OpenFile } from "./open_file.ts";

/** How far a transfer got. */
export interface Progress {
  /** How many bytes have moved. */
  done: number;
}

/**
 * Reads `length` bytes of the file at `offset` to the host address `address`, all of them; counts what has moved in
 * `progress` as it goes.
 *
 * @throws {OsError} As pread(2) does.
 * @throws {MembackingError} If the file ends before.
 */
export function readToMemory(
  mappable: Mappable,
  offset: number,
  address: number,
  length: number,
  progress: Progress,
): void {
  const file = fileOf(mappable);
  const { sys, errno } = libc();
  transferWhole("pread", length, (done, size) => {
    // SAFETY: the caller owns the memory; the kernel checks that it is there.
    const count = sys.preadAt(file.fd, word64(address + done), word64(size), word64(offset + done));
    return outcome(count, errno[0]);
  }, notesOf(file, offset, progress));
}

/**
 * Writes `length` bytes at the host address `address` to the file at `offset`, all of them; counts what has moved in
 * `progress` as it goes.
 *
 * @throws {OsError} As pwrite(2) does.
 */
export function writeFromMemory(
  mappable: Mappable,
  offset: number,
  address: number,
  length: number,
  progress: Progress,
): void {
  const file = fileOf(mappable);
  if (file.hugetlb) return copyToMapping(file, offset, address, length, progress);
  const { sys, errno } = libc();
  transferWhole("pwrite", length, (done, size) => {
    // SAFETY: the kernel reads what the caller may read, and checks that it is there.
    const count = sys.pwriteAt(file.fd, word64(address + done), word64(size), word64(offset + done));
    return outcome(count, errno[0]);
  }, notesOf(file, offset, progress));
}

/** Hugetlb files know no pwrite: the kernel copies to a mapping instead. */
function copyToMapping(file: OpenFile, offset: number, address: number, length: number, progress: Progress): void {
  if (length === 0) return;
  const start = offset - offset % file.pageSize;
  const end = Math.ceil((offset + length) / file.pageSize) * file.pageSize;
  using mapping = new FileMapping(file.fd, start, end - start, PROT_READ | PROT_WRITE, file.pageSize);
  copyProcessMemory(mapping.address + offset - start, address, length, (count) => progress.done += count);
}

function notesOf(file: OpenFile, offset: number, progress: Progress): TransferNotes {
  return {
    detail: (done) => `${file.label} at offset ${hex(offset + done)}`,
    ended: (done) => file.shortTransfer(offset + done),
    moved: (count) => void (progress.done += count),
  };
}
