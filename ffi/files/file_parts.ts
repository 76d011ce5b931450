/**
 * Parts of files: copied from one to another, and given back.
 *
 * Why it is safe: descriptors and offsets are the caller's to vouch for, and the kernel checks them. What is read is
 * mapped for just that long.
 *
 * @module
 */

import { FileMapping } from "../os/address_space.ts";
import { libc } from "../os/libc.ts";
import { FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, PROT_READ } from "../os/mman.ts";
import { outcome, uninterrupted } from "../os/uninterrupted.ts";
import { dataIn } from "./disk_file.ts";

/** The most that is mapped at once. */
const CHUNK = 2 ** 26;

/**
 * Copies `length` bytes of `from` at `offset` to `to` at `toOffset`, all page-aligned. What is a hole in the one stays as it is in the
 * other, which is to be new.
 *
 * @throws {OsError} If the kernel refuses.
 */
export function copyFilePart(from: number, offset: number, to: number, toOffset: number, length: number): void {
  const { sys, errno } = libc();
  for (
    let data = dataIn(from, offset, offset + length);
    data !== null;
    data = dataIn(from, data.end, offset + length)
  ) {
    for (let at = data.start; at < data.end; at += CHUNK) {
      using mapping = new FileMapping(from, at, Math.min(CHUNK, data.end - at), PROT_READ);
      for (let done = 0; done < mapping.length;) {
        const [address, size] = [BigInt(mapping.address + done), BigInt(mapping.length - done)];
        const target = BigInt(toOffset + at - offset + done);
        // SAFETY: the kernel reads the mapping, which is that long; it answers EFAULT where the file has become shorter.
        done += uninterrupted("pwrite", () => outcome(sys.pwriteAt(to, address, size, target), errno[0]));
      }
    }
  }
}

/**
 * Gives `length` bytes of a file at `offset` back: they read as zeros.
 *
 * @throws {OsError} If the kernel refuses, as it does for files that are sealed against writing (EPERM).
 */
export function punchHole(fd: number, offset: number, length: number): void {
  const { sys, errno } = libc();
  const [at, size] = [BigInt(offset), BigInt(length)];
  const mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
  uninterrupted("fallocate", () => outcome(sys.fallocate(fd, mode, at, size), errno[0]));
}
