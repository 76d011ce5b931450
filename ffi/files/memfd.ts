/**
 * Making memfds.
 *
 * Why it is safe: a descriptor that was made here is closed again if anything goes wrong before it has an owner.
 *
 * @module
 */

import { checkBoolean } from "../../src/core/check_boolean.ts";
import { hex } from "../../src/core/hex.ts";
import { checkAligned, checkNumber, PAGE_SIZE } from "../../src/core/memory_range.ts";
import { FileMapping } from "../os/address_space.ts";
import { cString, libc } from "../os/libc.ts";
import {
  F_ADD_SEALS,
  F_SEAL_GROW,
  F_SEAL_SEAL,
  F_SEAL_SHRINK,
  MFD_ALLOW_SEALING,
  MFD_CLOEXEC,
  MFD_HUGE_SHIFT,
  MFD_HUGETLB,
  MFD_NOEXEC_SEAL,
  PROT_READ,
  PROT_WRITE,
} from "../os/mman.ts";
import { Errno, OsError, unwrap } from "../os/os_error.ts";
import { outcome, uninterrupted } from "../os/uninterrupted.ts";
import { applyPolicy } from "./memory_policy.ts";
import { OpenFile } from "./open_file.ts";

/** How a memfd is made. */
export interface MemfdOptions {
  /**
   * The size of the hugetlb pages to use, in bytes: 2 MiB or 1 GiB, as far as the host has a pool of them. All pages
   * are taken from the pool at once. Left out: ordinary 4 KiB pages, taken when first touched.
   */
  hugepageSize?: number;
  /**
   * The host NUMA node that hugetlb pages are taken from, 0 to 1023. Ordinary pages are taken when first touched, and
   * so follow the policy of the mapping they are touched through.
   */
  hostNumaNode?: number;
  /**
   * Whether its size is sealed, `true` when left out: then no one who gets hold of the descriptor can shorten the file
   * under a mapping (touching it would be SIGBUS), or seal it against writing.
   */
  seal?: boolean;
  /**
   * Vouches that nobody truncates it or punches holes into it, `false` when left out. Of use for hugetlb memory whose
   * descriptor is handed out (to a vhost-user back end, say): such memory is read and written by system calls otherwise,
   * and cannot be locked, since a hole in it is SIGBUS where the pool of huge pages is empty. Also for `seal: false`.
   *
   * The promise is yours to keep: where it is broken, the next access to what is gone ends the process with SIGBUS.
   */
  fixedSize?: boolean;
}

/** The length of the longest memfd name the kernel takes, in bytes. */
const MAX_NAME = 249;

/** Whether the kernel knows MFD_NOEXEC_SEAL, as it does from 6.3 on; `null` before the first memfd. */
let knowsNoexec: boolean | null = null;

/**
 * Makes a memfd as `Mappable.memfd` describes.
 *
 * @throws {OsError} If the kernel refuses, for huge pages with a message that names their pool.
 * @throws {RangeError} If a number is out of its range, or the name too long.
 */
export function makeMemfd(name: string, size: number, options: MemfdOptions): OpenFile {
  const { hugepageSize, hostNumaNode, seal = true, fixedSize = false } = options;
  const cName = cString(name);
  if (cName.length - 1 > MAX_NAME) throw new RangeError(`A memfd name has at most ${MAX_NAME} bytes`);
  if (hugepageSize !== undefined) checkHugepageSize(hugepageSize);
  checkAligned(size, "Size", hugepageSize ?? PAGE_SIZE);
  if (size === 0) throw new RangeError("Size must not be 0");
  checkBoolean(fixedSize, "fixedSize");

  const { sys, errno } = libc();
  const flags = MFD_CLOEXEC | MFD_ALLOW_SEALING |
    (hugepageSize === undefined ? 0 : MFD_HUGETLB | (Math.log2(hugepageSize) << MFD_HUGE_SHIFT));
  const fd = create(
    cName,
    flags,
    () => hugepageSize === undefined ? `memfd "${name}"` : `the host may have no huge pages of ${hex(hugepageSize)}`,
  );
  try {
    const what = () => `memfd "${name}" of ${hex(size)} bytes`;
    const length = BigInt(size);
    uninterrupted("ftruncate", () => outcome(sys.ftruncate(fd, length), errno[0]), what);
    if (hugepageSize !== undefined) {
      if (hostNumaNode !== undefined) bindFile(fd, size, hugepageSize, hostNumaNode);
      // Takes the pages out of the pool. Without it a missing page would be a SIGBUS at first touch. Where a signal
      // interrupts it, the pages that it has taken stay, and the next try goes on behind them.
      uninterrupted(
        "fallocate",
        () => outcome(sys.fallocate(fd, 0, 0n, length), errno[0]),
        (errno) => isShortage(errno) ? poolHint(size, hugepageSize) : what(),
      );
    }
    if (seal) {
      unwrap(sys.fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL), errno[0], "fcntl", what);
    }
  } catch (error) {
    sys.close(fd);
    throw error;
  }
  const label = `memfd "${name}"`;
  if (!seal) return new OpenFile(fd, label, { shared: false, fixedSize });
  return new OpenFile(fd, label, { shared: false, fixedSize, facts: { size, pageSize: hugepageSize ?? PAGE_SIZE } });
}

/** A memfd that cannot be executed and never will be, where the kernel has that. */
function create(cName: Uint8Array<ArrayBuffer>, flags: number, detail: () => string): number {
  const { sys, errno } = libc();
  const make = (flags: number) => () => outcome(sys.memfd_create(cName, flags), errno[0]);
  if (knowsNoexec === false) return uninterrupted("memfd_create", make(flags), detail);
  try {
    const fd = uninterrupted("memfd_create", make(flags | MFD_NOEXEC_SEAL), detail);
    knowsNoexec = true;
    return fd;
  } catch (error) {
    if (knowsNoexec || !(error instanceof OsError) || error.errno !== Errno.EINVAL) throw error;
    // The flag, or something else: if it works without, it was the flag.
    const fd = uninterrupted("memfd_create", make(flags), detail);
    knowsNoexec = false;
    return fd;
  }
}

function checkHugepageSize(size: number): void {
  checkNumber(size, "Huge page size");
  if (size <= PAGE_SIZE || !Number.isInteger(Math.log2(size))) {
    throw new RangeError(`Huge page size ${hex(size)} is not a power of two above ${hex(PAGE_SIZE)}`);
  }
}

/** Says which NUMA node the pages of a file come from. The policy stays with the file when the mapping goes. */
function bindFile(fd: number, size: number, hugepageSize: number, hostNumaNode: number): void {
  try {
    using mapping = new FileMapping(fd, 0, size, PROT_READ | PROT_WRITE, hugepageSize);
    applyPolicy(mapping.address, size, { hostNumaNode });
  } catch (cause) {
    if (!(cause instanceof OsError) || !isShortage(cause.errno)) throw cause;
    throw new OsError("mmap", cause.errno, poolHint(size, hugepageSize), { cause });
  }
}

function poolHint(size: number, hugepageSize: number): string {
  const pool = hugepageSize === 2 ** 21
    ? "/proc/sys/vm/nr_hugepages"
    : `/sys/kernel/mm/hugepages/hugepages-${hugepageSize / 1024}kB/nr_hugepages`;
  return `the pool has fewer than ${size / hugepageSize} free huge pages of ${hex(hugepageSize)}, ` +
    `raise the number in ${pool}`;
}

/** Whether an allocation failed for want of pages. */
function isShortage(errno: number): boolean {
  return errno === Errno.ENOMEM || errno === Errno.ENOSPC;
}
