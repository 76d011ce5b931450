/**
 * How much memory a range of host addresses really takes, from /proc/self/smaps.
 *
 * Why it is safe: it reads a text file of the kernel.
 *
 * @module
 */

import { eachLine } from "../os/proc_file.ts";

/** What a range of addresses has in memory, in bytes. */
export interface MemoryUsage {
  /** Pages in memory, hugetlb pages not counted. */
  readonly resident: number;
  /** Of these, anonymous pages: private memory, and private copies of pages of files. */
  readonly private: number;
  /** Of these, pages of files and memfds. */
  readonly shared: number;
  /** Of these, pages that are mapped as parts of transparent huge pages. */
  readonly transparentHuge: number;
  /** Hugetlb pages. */
  readonly hugetlb: number;
  /** Pages that are locked in memory. */
  readonly locked: number;
  /** Private pages that were swapped out. */
  readonly swapped: number;
}

const TRANSPARENT_HUGE = ["AnonHugePages", "ShmemPmdMapped", "FilePmdMapped"];

/**
 * Adds up the kernel mappings that overlap `[address, address + length)`; `undefined` where the kernel does not tell.
 *
 * The kernel walks the page tables of the whole process for it: some milliseconds per gigabyte in memory.
 */
export function memoryUsage(address: number, length: number): MemoryUsage | undefined {
  const sums = new Map<string, number>();
  let inside = false;
  const known = eachLine("/proc/self/smaps", (line) => {
    // 7f0000000000-7f0000200000 rw-s 00000000 00:01 1038  /memfd:ram (deleted)
    const header = /^([0-9a-f]+)-([0-9a-f]+) /.exec(line);
    if (header !== null) {
      const [start, end] = header.slice(1).map((digits) => Number.parseInt(digits, 16));
      inside = start !== undefined && end !== undefined && start < address + length && address < end;
      return;
    }
    if (!inside) return;
    // Rss:                1024 kB
    const field = /^(\w+): +(\d+) kB$/.exec(line);
    const name = field?.[1];
    if (name !== undefined) sums.set(name, (sums.get(name) ?? 0) + Number(field?.[2]) * 1024);
  });
  if (!known) return undefined;
  const sum = (...names: string[]) => names.reduce((total, name) => total + (sums.get(name) ?? 0), 0);
  return {
    resident: sum("Rss"),
    private: sum("Anonymous"),
    shared: sum("Rss") - sum("Anonymous"),
    transparentHuge: sum(...TRANSPARENT_HUGE),
    hugetlb: sum("Shared_Hugetlb", "Private_Hugetlb"),
    locked: sum("Locked"),
    swapped: sum("Swap"),
  };
}
