/**
 * Which pages of a mapping are in memory, and which of them are this process's own rather than those of the file behind
 * it.
 *
 * Why it is safe: the kernel is asked about addresses and writes into buffers made here, as many entries as they have
 * room for. What is given up or written to a file is memory that the caller names as its own.
 *
 * @module
 */

import { PAGE_SIZE } from "../../src/core/memory_range.ts";
import type { Span } from "../../src/core/span.ts";
import { adviseHost } from "../os/advise.ts";
import { cString, libc } from "../os/libc.ts";
import { MADV_DONTNEED, O_CLOEXEC, O_RDONLY } from "../os/mman.ts";
import { Errno, OsError, unwrap } from "../os/os_error.ts";
import { hostView, revokeView } from "../os/view.ts";
import { outcome } from "../os/uninterrupted.ts";
import { transferWhole } from "../os/whole_transfer.ts";

/** `_IOWR('f', 16, struct pm_scan_arg)` of <linux/fs.h>, since Linux 6.7. */
const PAGEMAP_SCAN = 0xc060_6610;

/** `struct pm_scan_arg`, in 64-bit words. */
const ARG = {
  size: 0,
  start: 2,
  end: 3,
  walk_end: 4,
  vec: 5,
  vec_len: 6,
  category_inverted: 8,
  category_mask: 9,
  category_anyof_mask: 10,
  return_mask: 11,
  words: 12,
} as const;

const PAGE_IS_FILE = 1n << 2n;
const PAGE_IS_PRESENT = 1n << 3n;
const PAGE_IS_SWAPPED = 1n << 4n;
const PAGE_IS_PFNZERO = 1n << 5n;

/** `struct page_region`: start, end, categories. */
const REGION_WORDS = 3;
const REGIONS = 512;

/** The bits of an entry of /proc/PID/pagemap, in its high half. */
const ENTRY = { present: 1 << 31, swapped: 1 << 30, file: 1 << 29 } as const;
/** How many entries are read at once. */
const ENTRIES = 1 << 16;

/** Which pages are wanted, in the words of PAGEMAP_SCAN and in those of /proc/PID/pagemap. */
interface Wanted {
  /** Categories that all have to be so. */
  readonly mask: bigint;
  /** Those of them that have not to be so. */
  readonly inverted: bigint;
  /** Categories of which one has to be so. */
  readonly any: bigint;
  /** The same of the high half of an entry. */
  readonly isEntry: (bits: number) => boolean;
}

const PRIVATE: Wanted = {
  // The page of zeros, which anonymous memory shows until it is written, is nobody's own.
  mask: PAGE_IS_FILE | PAGE_IS_PFNZERO,
  inverted: PAGE_IS_FILE | PAGE_IS_PFNZERO,
  any: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
  isEntry: (bits) => (bits & (ENTRY.present | ENTRY.swapped)) !== 0 && (bits & ENTRY.file) === 0,
};

const RESIDENT: Wanted = {
  mask: PAGE_IS_PRESENT | PAGE_IS_PFNZERO,
  inverted: PAGE_IS_PFNZERO,
  any: PAGE_IS_PRESENT,
  isEntry: (bits) => (bits & ENTRY.present) !== 0,
};

/** Whether this kernel can be asked by PAGEMAP_SCAN; `undefined` until it was. */
let canScan: boolean | undefined;

/**
 * The pages in `[address, address + length)` that are private: written since they were mapped from their file, or
 * anonymous and touched. As host addresses, in order, runs joined.
 *
 * @throws {OsError} If the kernel does not say, for want of /proc or of memory.
 */
export function privatePages(address: number, length: number, how: "scan" | "read" | "any" = "any"): Span[] {
  return pagesOf(PRIVATE, address, length, how);
}

/**
 * The pages in `[address, address + length)` that are in memory and in this process's page tables: touched since they
 * were mapped, by this process or by a guest. As host addresses, in order, runs joined.
 *
 * @throws {OsError} If the kernel does not say, for want of /proc or of memory.
 */
export function residentPages(address: number, length: number, how: "scan" | "read" | "any" = "any"): Span[] {
  return pagesOf(RESIDENT, address, length, how);
}

function pagesOf(wanted: Wanted, address: number, length: number, how: "scan" | "read" | "any"): Span[] {
  const { sys, errno } = libc();
  const path = "/proc/self/pagemap";
  const fd = unwrap(sys.open(cString(path), O_RDONLY | O_CLOEXEC, 0), errno[0], "open", () => path);
  try {
    if (how === "scan" || (how === "any" && canScan !== false)) {
      const scanned = scan(fd, wanted, address, address + length);
      canScan = scanned !== null;
      if (scanned !== null) return scanned;
      if (how === "scan") throw new OsError("PAGEMAP_SCAN", Errno.ENOTTY, "it came with Linux 6.7");
    }
    return read(fd, wanted, address, address + length);
  } finally {
    sys.close(fd);
  }
}

/**
 * Gives up the private pages in `[address, address + length)`, which then shows the file behind it again, or zeros.
 *
 * @throws {OsError} If the kernel refuses, as it does for memory that is locked by mlock (EINVAL).
 */
export function dropPages(address: number, length: number): void {
  adviseHost(address, length, MADV_DONTNEED);
}

/**
 * Writes `length` bytes of memory from `address` on into a file at `offset`.
 *
 * @throws {OsError} If the file cannot be written. A part may have been.
 */
export function writeBack(address: number, length: number, fd: number, offset: number): void {
  const { sys, errno } = libc();
  transferWhole("pwrite", length, (done, size) => {
    // SAFETY: the caller's own memory, which the kernel only reads; it answers EFAULT where it is not there.
    return outcome(sys.pwriteAt(fd, BigInt(address + done), BigInt(size), BigInt(offset + done)), errno[0]);
  });
}

/** Fills `length` bytes of memory from `address` on, which the caller has mapped for writing, with zeros. */
export function writeZeros(address: number, length: number): void {
  const view = hostView(address, length);
  new Uint8Array(view).fill(0);
  revokeView(view);
}

/** By PAGEMAP_SCAN, which takes the time of what it finds; `null` on kernels that do not have it. */
function scan(fd: number, wanted: Wanted, start: number, end: number): Span[] | null {
  const { sys, errno } = libc();
  const regions = new BigUint64Array(REGIONS * REGION_WORDS);
  const arg = new BigUint64Array(ARG.words);
  const bytes = new Uint8Array(arg.buffer);
  arg[ARG.size] = BigInt(bytes.length);
  arg[ARG.end] = BigInt(end);
  arg[ARG.vec] = Deno.UnsafePointer.value(Deno.UnsafePointer.of(regions));
  arg[ARG.vec_len] = BigInt(REGIONS);
  arg[ARG.category_inverted] = wanted.inverted;
  arg[ARG.category_mask] = wanted.mask;
  arg[ARG.category_anyof_mask] = wanted.any;
  arg[ARG.return_mask] = PAGE_IS_PRESENT;
  const found: { start: number; end: number }[] = [];
  // The kernel may stop early, and says where.
  for (let at = start; at < end; at = Number(arg[ARG.walk_end])) {
    arg[ARG.start] = BigInt(at);
    // SAFETY: one struct pm_scan_arg, whose vector has room for as many regions as it says.
    const count = sys.ioctl(fd, PAGEMAP_SCAN, bytes);
    if (count === -1) {
      const code = errno[0] ?? 0;
      if (code === Errno.EINTR) continue;
      if (code === Errno.ENOTTY) return null;
      throw new OsError("PAGEMAP_SCAN", code);
    }
    for (let i = 0; i < count; i++) {
      append(found, Number(regions[i * REGION_WORDS]), Number(regions[i * REGION_WORDS + 1]));
    }
  }
  return found;
}

/** By reading an entry for each page. */
function read(fd: number, { isEntry }: Wanted, start: number, end: number): Span[] {
  const { sys, errno } = libc();
  const found: { start: number; end: number }[] = [];
  const buffer = new Uint8Array(8 * ENTRIES);
  const high = new DataView(buffer.buffer);
  for (let at = start; at < end;) {
    const wanted = Math.min(ENTRIES, (end - at) / PAGE_SIZE);
    // SAFETY: the kernel writes at most as many bytes as are asked for, which the buffer has.
    const count = sys.pread(fd, buffer, BigInt(8 * wanted), BigInt(at / PAGE_SIZE * 8));
    const code = count === -1 ? errno[0] ?? 0 : 0;
    if (code === Errno.EINTR) continue;
    if (count < 8) throw new OsError("pread", code, "/proc/self/pagemap");
    for (let i = 0; i < count / 8; i++, at += PAGE_SIZE) {
      const bits = high.getUint32(8 * i + 4, true);
      if (isEntry(bits)) append(found, at, at + PAGE_SIZE);
    }
  }
  return found;
}

function append(found: { start: number; end: number }[], start: number, end: number): void {
  const last = found.at(-1);
  if (last?.end === start) last.end = end;
  else found.push({ start, end });
}
