/**
 * How the host treats the pages of a mapping: NUMA node, transparent huge pages, core dumps, forks, the name.
 *
 * Why it is safe: mbind, madvise and prctl with these arguments change where pages are taken from, who else gets them
 * and what they are called, never what is in them.
 *
 * @module
 */

import { hex } from "../../src/core/hex.ts";
import { checkNumber } from "../../src/core/memory_range.ts";
import type { MemoryPolicy } from "../../src/core/targets.ts";
import { adviseHost } from "../os/advise.ts";
import { cString, libc } from "../os/libc.ts";
import {
  MADV_DONTDUMP,
  MADV_DONTFORK,
  MADV_HUGEPAGE,
  MADV_NOHUGEPAGE,
  MPOL_BIND,
  PR_SET_VMA,
  PR_SET_VMA_ANON_NAME,
  SYS_MBIND,
} from "../os/mman.ts";
import { unwrap } from "../os/os_error.ts";
import { readTextFile } from "../os/proc_file.ts";

/** One more than the highest NUMA node number Linux can be built for on x86-64. */
const MAX_NODES = 1024;
/** The length of the longest name the kernel takes for anonymous memory, in bytes. */
const MAX_VMA_NAME = 79;

/**
 * Applies `policy` to the mapping at `[address, address + length)`. Pages that are in already stay where they are.
 *
 * @throws {RangeError} If the NUMA node is not an integer in 0..1023.
 * @throws {OsError} EINVAL if the host has no such NUMA node, or knows no transparent huge pages.
 */
export function applyPolicy(address: number, length: number, policy: MemoryPolicy): void {
  const { hostNumaNode, transparentHugepages, coreDump, fork, name } = policy;
  if (hostNumaNode !== undefined) bindNode(address, length, hostNumaNode);
  if (transparentHugepages !== undefined) {
    adviseHost(address, length, transparentHugepages ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
  }
  if (coreDump === false) adviseHost(address, length, MADV_DONTDUMP);
  if (fork === false) adviseHost(address, length, MADV_DONTFORK);
  if (name !== undefined) nameMemory(address, length, name);
}

/** Says which NUMA node pages come from. */
function bindNode(address: number, length: number, hostNumaNode: number): void {
  checkNumber(hostNumaNode, "NUMA node");
  if (hostNumaNode >= MAX_NODES) throw new RangeError(`NUMA node ${hostNumaNode} is not in 0..${MAX_NODES - 1}`);
  // An array of 64-bit words in C; little-endian, so the bytes are in the same order.
  const mask = new Uint8Array(MAX_NODES / 8);
  mask[hostNumaNode >> 3] = 1 << (hostNumaNode & 7);
  const { sys, errno } = libc();
  unwrap(
    // SAFETY: the mask holds the number of bits that is passed with it (the kernel takes one off that number).
    sys.syscallMbind(SYS_MBIND, BigInt(address), BigInt(length), BigInt(MPOL_BIND), mask, BigInt(MAX_NODES + 1), 0n),
    errno[0],
    "mbind",
    () => `${hex(length)} bytes at ${hex(address)} to NUMA node ${hostNumaNode}`,
  );
}

/** Gives anonymous memory a name for smaps. Does nothing to a file, and where the kernel has no names. */
function nameMemory(address: number, length: number, name: string): void {
  const cName = cString(name.replace(/[^\x20-\x7e]|[[\]\\$`]/g, "").slice(0, MAX_VMA_NAME));
  // SAFETY: a name changes nothing but what /proc shows; the kernel copies it.
  libc().sys.prctlName(PR_SET_VMA, PR_SET_VMA_ANON_NAME, BigInt(address), BigInt(length), cName);
}

let knowsHugepages: boolean | undefined;

/** Whether the host's kernel knows transparent huge pages, switched on or not: it was built so, and is asked once. */
export function hasTransparentHugepages(): boolean {
  return knowsHugepages ??= readTextFile("/sys/kernel/mm/transparent_hugepage/enabled") !== undefined;
}
