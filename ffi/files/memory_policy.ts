/**
 * Where the pages of a mapping come from: NUMA node and transparent huge pages.
 *
 * Why it is safe: mbind and madvise with these arguments change where pages are taken from, never what is in them.
 *
 * @module
 */

import { hex } from "../../src/core/hex.ts";
import { checkNumber } from "../../src/core/memory_range.ts";
import type { MemoryPolicy } from "../../src/core/targets.ts";
import { libc } from "../os/libc.ts";
import { MADV_HUGEPAGE, MADV_NOHUGEPAGE, MPOL_BIND, SYS_MBIND } from "../os/mman.ts";
import { unwrap } from "../os/os_error.ts";
import { readTextFile } from "../os/proc_file.ts";

/** One more than the highest NUMA node number Linux can be built for on x86-64. */
const MAX_NODES = 1024;

/**
 * Applies `policy` to the mapping at `[address, address + length)`. Pages that are in already stay where they are.
 *
 * @throws {RangeError} If the NUMA node is not an integer in 0..1023.
 * @throws {OsError} EINVAL if the host has no such NUMA node, or knows no transparent huge pages.
 */
export function applyPolicy(address: number, length: number, policy: MemoryPolicy): void {
  const { hostNumaNode, transparentHugepages } = policy;
  const { sys, errno } = libc();
  const at = BigInt(address);
  const size = BigInt(length);
  const where = () => `${hex(length)} bytes at ${hex(address)}`;
  if (hostNumaNode !== undefined) {
    checkNumber(hostNumaNode, "NUMA node");
    if (hostNumaNode >= MAX_NODES) throw new RangeError(`NUMA node ${hostNumaNode} is not in 0..${MAX_NODES - 1}`);
    // An array of 64-bit words in C; little-endian, so the bytes are in the same order.
    const mask = new Uint8Array(MAX_NODES / 8);
    mask[hostNumaNode >> 3] = 1 << (hostNumaNode & 7);
    unwrap(
      // SAFETY: the mask holds the number of bits that is passed with it (the kernel takes one off that number).
      sys.syscallMbind(SYS_MBIND, at, size, BigInt(MPOL_BIND), mask, BigInt(MAX_NODES + 1), 0n),
      errno[0],
      "mbind",
      () => `${where()} to NUMA node ${hostNumaNode}`,
    );
  }
  if (transparentHugepages !== undefined) {
    const advice = transparentHugepages ? MADV_HUGEPAGE : MADV_NOHUGEPAGE;
    // SAFETY: advice on a mapping of the caller's.
    unwrap(sys.madvise(at, size, advice), errno[0], "madvise", where);
  }
}

/** Whether the host's kernel knows transparent huge pages, switched on or not. */
export function hasTransparentHugepages(): boolean {
  return readTextFile("/sys/kernel/mm/transparent_hugepage/enabled") !== undefined;
}
