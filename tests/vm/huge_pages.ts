/**
 * Huge pages that there are not.
 *
 * @module
 */

import { Mappable } from "membacking";
import { cString, libc } from "../../ffi/os/libc.ts";
import { MFD_CLOEXEC, MFD_HUGE_SHIFT, MFD_HUGETLB } from "../../ffi/os/mman.ts";
import { unwrap } from "../../ffi/os/os_error.ts";
import { readProc } from "../support/proc.ts";

/** The size of the huge pages, in bytes. */
export const HUGE_PAGE = 2 ** 21;

/** A number of huge pages that the host does not have, not even if somebody adds some to the pool meanwhile. */
export function tooManyHugePages(): number {
  const free = Number(/^HugePages_Free:\s*(\d+)/m.exec(readProc("/proc/meminfo"))?.[1] ?? 0);
  return free + Number(readProc("/proc/sys/vm/nr_overcommit_hugepages")) + 512;
}

/**
 * A hugetlb memfd without pages taken from the pool, as another program might hand one over: mapping it takes them, or
 * fails.
 *
 * @throws {OsError} If this kernel has no huge pages of this size.
 */
export function unreservedHugePages(length: number): Mappable {
  const { sys, errno } = libc();
  const flags = MFD_CLOEXEC | MFD_HUGETLB | (Math.log2(HUGE_PAGE) << MFD_HUGE_SHIFT);
  const fd = unwrap(sys.memfd_create(cString("unreserved"), flags), errno[0], "memfd_create");
  try {
    unwrap(sys.ftruncate(fd, BigInt(length)), errno[0], "ftruncate");
    return Mappable.fromFd(fd);
  } finally {
    sys.close(fd);
  }
}

/** Why this host has no huge pages at all, not even such files. */
export const noHugePageFiles: string | undefined = (() => {
  try {
    using _file = unreservedHugePages(HUGE_PAGE);
    return undefined;
  } catch (error) {
    return String(error);
  }
})();
