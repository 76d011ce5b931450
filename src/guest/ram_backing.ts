import { Mappable } from "../../ffi/files/mappable.ts";
import { hasTransparentHugepages } from "../../ffi/files/memory_policy.ts";
import { checkNumber, MemoryRange, ownRange } from "../core/memory_range.ts";
import type { BackingLayout, RamRequest } from "../core/ram_layout.ts";
import type { MemoryPolicy } from "../core/targets.ts";
import type { Report } from "../targets/report.ts";

/**
 * Guest RAM from one source: one file, or private memory, over one or several GPA ranges. A VM of one NUMA node has
 * one of them, others one per node.
 *
 * @example RAM restored from a file
 * ```ts
 * import { GuestMemoryManager, Mappable, MemoryRange, type RamBacking } from "membacking";
 *
 * using saved = Mappable.memfd("saved", 0x80_0000);
 * saved.write(0x1000, new Uint8Array([1]));
 * const backing: RamBacking = { ranges: [new MemoryRange(0, 0x80_0000)], backing: saved };
 * using guest = GuestMemoryManager.create({ maxAddress: 0x100_0000, ram: [backing] });
 * console.assert(guest.memory.readUint8(0x1000) === 1);
 * ```
 */
export interface RamBacking {
  /**
   * The GPA ranges, not empty and disjoint from those of all other backings, in the order in which they lie in the
   * file. File offsets are congruent to GPAs modulo 2 MiB, or the huge page size if that is larger.
   */
  readonly ranges: readonly MemoryRange[];
  /**
   * What the memory is:
   *
   * - `"shared"` (the default): a memfd made for it, which can be shared with other processes;
   * - `"private"`: anonymous memory of this process. It cannot be unmapped, since that would lose its contents;
   * - a `Mappable`: a file that exists already, such as the memory of an earlier manager with the same ranges. It is
   *   mapped at the same file offsets as a memfd would be, or, if it is exactly as long as the ranges together, one range
   *   right behind the other, as other VMMs save them. It stays the caller's to dispose.
   */
  readonly backing?: "shared" | "private" | Mappable;
  /** What regions and memfd are called, for inspection; `"ram"` by default. */
  readonly name?: string;
  /**
   * The size of hugetlb pages to make a shared backing of, in bytes: 2 MiB or 1 GiB, as far as the host has a pool of
   * them. All are taken from the pool at once. Ranges must be multiples of it. Left out: ordinary 4 KiB pages.
   */
  readonly hugepageSize?: number;
  /**
   * Whether transparent huge pages are asked for (or, with `false`, declined), as far as the host has them. Left out:
   * the host's own setting. Nothing to hugetlb pages, which are huge anyway.
   */
  readonly transparentHugepages?: boolean;
  /** The host NUMA node the pages come from, and no other: 0 to 1023. Left out: any. */
  readonly hostNumaNode?: number;
  /** Whether a partition brings all of it in when it is attached, `false` by default. Blocks; see also `prefault`. */
  readonly prefetch?: boolean;
}

/**
 * What the layout has to know about a backing.
 *
 * @throws {TypeError} If a field has the wrong type.
 * @throws {RangeError} If a number is out of its range.
 */
export function ramRequest(options: RamBacking): RamRequest {
  const { backing = "shared", name = "ram", hugepageSize, hostNumaNode } = options;
  if (typeof name !== "string") throw new TypeError("The name of a RAM backing must be a string");
  const given = options.ranges;
  if (!Array.isArray(given) || !given.every((range) => range instanceof MemoryRange)) {
    throw new TypeError(`RAM backing "${name}" needs its ranges as an array of MemoryRange`);
  }
  const ranges = given.map((range: MemoryRange) => ownRange(range, `RAM backing "${name}"`));
  for (const flag of ["transparentHugepages", "prefetch"] as const) {
    const value = options[flag];
    if (value !== undefined && typeof value !== "boolean") {
      throw new TypeError(`${flag} of RAM backing "${name}" must be true or false, got ${typeof value}`);
    }
  }
  if (hugepageSize !== undefined) checkNumber(hugepageSize, `Huge page size of RAM backing "${name}"`);
  if (hostNumaNode !== undefined && (!Number.isInteger(hostNumaNode) || hostNumaNode < 0 || hostNumaNode > 1023)) {
    throw new RangeError(
      `Host NUMA node of RAM backing "${name}" must be an integer from 0 to 1023, got ${hostNumaNode}`,
    );
  }
  if (backing instanceof Mappable) {
    return {
      name,
      ranges,
      kind: "existing",
      hugepageSize,
      existingPageSize: backing.pageSize,
      existingSize: backing.size,
    };
  }
  if (backing !== "shared" && backing !== "private") {
    throw new TypeError(`RAM backing "${name}" must be "shared", "private" or a Mappable`);
  }
  return { name, ranges, kind: backing, hugepageSize };
}

/**
 * The memory of a backing: a handle of its own, which the caller disposes, or `"private"`.
 *
 * @throws {OsError} If a memfd cannot be made; where the pool of huge pages is too small, the message names it.
 */
export function ramSource(options: RamBacking, layout: BackingLayout): Mappable | "private" {
  const { backing = "shared", name = "ram", hugepageSize, hostNumaNode } = options;
  if (backing === "private") return backing;
  if (backing instanceof Mappable) return backing.clone();
  return Mappable.memfd(name, layout.fileSize, {
    ...(hugepageSize !== undefined && { hugepageSize }),
    ...(hugepageSize !== undefined && hostNumaNode !== undefined && { hostNumaNode }),
  });
}

/** Where the pages of a backing come from; `undefined` if nothing was said about it. */
export function ramPolicy(options: RamBacking, { pageSize }: BackingLayout, report: Report): MemoryPolicy | undefined {
  const { hostNumaNode, transparentHugepages, name = "ram" } = options;
  const isHuge = pageSize > 4096;
  const wanted = isHuge ? undefined : transparentHugepages;
  const canHave = wanted === undefined || hasTransparentHugepages();
  if (!canHave && wanted) report("warn", `The host has no transparent huge pages for RAM backing "${name}"`);
  if (hostNumaNode === undefined && (wanted === undefined || !canHave)) return undefined;
  return {
    ...(hostNumaNode !== undefined && { hostNumaNode }),
    ...(wanted !== undefined && canHave && { transparentHugepages: wanted }),
  };
}
