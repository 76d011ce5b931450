/**
 * Giving pages of a file back.
 *
 * Why it is safe: pages that are punched out of a file read as zeros afterwards, through whatever mapping; the file keeps
 * its size. Of hugetlb files the caller sees to it that nobody touches them by a mapping where the pool may be empty.
 *
 * @module
 */

import { hex } from "../../src/core/hex.ts";
import { libc } from "../os/libc.ts";
import { FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE } from "../os/mman.ts";
import { outcome, uninterrupted } from "../os/uninterrupted.ts";
import { fileOf, type Mappable } from "./mappable.ts";

/**
 * Gives the pages of `[offset, offset + length)` back: they read as zeros afterwards.
 *
 * @throws {OsError} EOPNOTSUPP if the file system cannot do it, EBADF or EPERM if the file cannot be written.
 */
export function punchHole(mappable: Mappable, offset: number, length: number): void {
  const file = fileOf(mappable);
  if (file.bytes !== null) return void new Uint8Array(file.bytes, offset, length).fill(0);
  const { sys, errno } = libc();
  const [at, size] = [BigInt(offset), BigInt(length)];
  uninterrupted(
    "fallocate",
    () => outcome(sys.fallocate(file.fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, at, size), errno[0]),
    () => `${file.label}, ${hex(length)} bytes at offset ${hex(offset)} cannot be given back`,
  );
}
