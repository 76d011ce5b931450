/**
 * Parts of files: copied from one to another, and given back.
 *
 * Why it is safe: descriptors and offsets are the caller's to vouch for, and the kernel checks them. What is read is
 * mapped for just that long.
 *
 * @module
 */

import { hex } from "../../src/core/hex.ts";
import { PAGE_SIZE } from "../../src/core/memory_range.ts";
import { FileMapping } from "../os/address_space.ts";
import { libc } from "../os/libc.ts";
import { FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, PROT_READ } from "../os/mman.ts";
import { Errno, OsError } from "../os/os_error.ts";
import { outcome, uninterrupted } from "../os/uninterrupted.ts";
import { transferWhole } from "../os/whole_transfer.ts";
import { hostView, revokeView } from "../os/view.ts";
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
      transferWhole("pwrite", mapping.length, (done, size) => {
        const target = BigInt(toOffset + at - offset + done);
        // SAFETY: the kernel reads the mapping, which is that long; it answers EFAULT where the file has become shorter.
        return outcome(sys.pwriteAt(to, BigInt(mapping.address + done), BigInt(size), target), errno[0]);
      });
    }
  }
}

/**
 * The same by the kernel alone, for files that may become shorter meanwhile, or have huge pages.
 *
 * @throws {OsError} If the kernel refuses, or the file is shorter than that.
 */
export function copyData(from: number, offset: number, to: number, toOffset: number, length: number): void {
  const { sys, errno } = libc();
  const buffer = new Uint8Array(Math.min(2 ** 20, length));
  const end = offset + length;
  for (let data = dataIn(from, offset, end); data !== null; data = dataIn(from, data.end, end)) {
    for (let at = data.start; at < data.end;) {
      const wanted = buffer.subarray(0, Math.min(buffer.length, data.end - at));
      const count = uninterrupted(
        "pread",
        () => outcome(sys.pread(from, wanted, BigInt(wanted.length), BigInt(at)), errno[0]),
      );
      if (count === 0) {
        if (data.end - at < PAGE_SIZE) break;
        throw new OsError("pread", Errno.EIO, `the file ended at ${hex(at)} while it was being read`);
      }
      transferWhole("pwrite", count, (done, size) => {
        const target = BigInt(toOffset + at - offset + done);
        return outcome(sys.pwrite(to, wanted.subarray(done), BigInt(size), target), errno[0]);
      });
      at += count;
    }
  }
}

/**
 * Reads `length` bytes of a file at `offset` into memory at `address`, which the caller has mapped for writing. The rest of the
 * page that the file ends in reads as zeros, as it does in a mapping.
 *
 * Unlike a look through a mapping, this survives a file that becomes shorter, and takes no huge page for a hole.
 *
 * @throws {OsError} If the kernel refuses, or the file is shorter than that.
 */
export function readFilePart(fd: number, offset: number, address: number, length: number): void {
  const { sys, errno } = libc();
  for (let done = 0; done < length;) {
    const [to, size, at] = [BigInt(address + done), BigInt(length - done), BigInt(offset + done)];
    // SAFETY: the caller's own memory, of which the kernel writes at most as much as it is told.
    const count = uninterrupted("pread", () => outcome(sys.preadAt(fd, to, size, at), errno[0]));
    if (count === 0) {
      if (length - done >= PAGE_SIZE || done === 0) {
        throw new OsError("pread", Errno.EIO, `the file ended at ${hex(offset + done)} while it was being read`);
      }
      return fillZeros(address + done, length - done);
    }
    done += count;
  }
}

function fillZeros(address: number, length: number): void {
  const view = hostView(address, length);
  new Uint8Array(view).fill(0);
  revokeView(view);
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
