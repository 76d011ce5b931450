import { Mappable, standInMappable } from "../../ffi/files/mappable.ts";
import { hasTransparentHugepages } from "../../ffi/files/memory_policy.ts";
import { checkBoolean } from "../core/check_boolean.ts";
import { MappingError } from "../core/errors.ts";
import { checkAligned, checkNumber, MemoryRange, ownRange } from "../core/memory_range.ts";
import type { BackingLayout, RamRequest } from "../core/ram_layout.ts";
import type { MemoryPolicy } from "../core/targets.ts";
import type { Report } from "../targets/report.ts";

/**
 * Guest RAM from one source: one file, or private memory, over one or several GPA ranges. A VM of one NUMA node has
 * one of them, others one per node.
 *
 * @example RAM restored from a file, which stays as it is
 * ```ts
 * import { GuestMemoryManager, Mappable, MemoryRange, type RamBacking } from "membacking";
 *
 * using saved = Mappable.memfd("saved", 0x80_0000); // or Mappable.open("saved.mem", { fixedSize: true })
 * saved.write(0x1000, new Uint8Array([1]));
 * const backing: RamBacking = { ranges: [new MemoryRange(0, 0x80_0000)], backing: saved, copyOnWrite: true };
 * using guest = GuestMemoryManager.create({ maxAddress: 0x100_0000, ram: [backing] });
 * console.assert(guest.memory.readUint8(0x1000) === 1);
 *
 * guest.memory.writeUint8(0x1000, 2);
 * const kept = new Uint8Array(1);
 * saved.read(0x1000, kept);
 * console.assert(kept[0] === 1);
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
   * - `"private"`: anonymous memory of this process;
   * - a `Mappable`: a file that exists already, such as the memory of an earlier manager with the same ranges. It is
   *   mapped at the same file offsets as a memfd would be, or, if it is exactly as long as the ranges together or
   *   `fileOffset` is given, one range right behind the other, as other VMMs save them. It stays the caller's to dispose.
   */
  readonly backing?: "shared" | "private" | Mappable;
  /**
   * Whether a file that exists is only read: what the guest, accessors, locks and Workers write is this memory's own, and
   * takes memory of its own a page at a time. The file may be read-only, and has to keep its size: sealed, or opened with
   * `fixedSize: true`. Such RAM is not shared with other processes. `false` by default: writes reach the file.
   */
  readonly copyOnWrite?: boolean;
  /**
   * Where in a file that exists the first range begins, in bytes: a multiple of its page size. The ranges lie one right
   * behind the other from there. So blocks of one large file can be RAM one by one.
   */
  readonly fileOffset?: number;
  /**
   * Vouches that nobody who gets the descriptor of a memfd made here punches holes into it; see `MemfdOptions`. Of use for
   * huge pages that a vhost-user back end shares, which cannot be locked without it. `false` by default.
   */
  readonly fixedSize?: boolean;
  /** What regions and memfd are called, for inspection; `"ram"` by default. */
  readonly name?: string;
  /**
   * The size of hugetlb pages to make a shared backing of, in bytes: 2 MiB or 1 GiB, as far as the host has a pool of
   * them. All are taken from the pool at once. Ranges must be multiples of it. Left out: ordinary 4 KiB pages.
   */
  readonly hugepageSize?: number;
  /**
   * Whether transparent huge pages are asked for, as they are by default as far as the host has them, or, with `false`,
   * declined. Nothing to hugetlb pages, which are huge anyway.
   */
  readonly transparentHugepages?: boolean;
  /**
   * Whether a core dump of the process holds it, `false` by default: it may be large, and has the guest's secrets. A
   * child process made by fork never gets it.
   */
  readonly coreDump?: boolean;
  /** The host NUMA node the pages come from, and no other: 0 to 1023. Left out: any. */
  readonly hostNumaNode?: number;
  /** Whether a partition brings all of it in when it is attached, `false` by default. Blocks; see also `prefault`. */
  readonly prefetch?: boolean;
}

/** A backing as it was given, checked: no object of the caller's is looked at again. */
export interface OwnBacking extends Omit<RamBacking, "ranges"> {
  readonly ranges: readonly MemoryRange[];
  readonly name: string;
  readonly backing: "shared" | "private" | Mappable;
  readonly copyOnWrite: boolean;
  readonly fixedSize: boolean;
  readonly coreDump: boolean;
  readonly prefetch: boolean;
}

/**
 * Copies and checks a backing.
 *
 * @throws {TypeError} If a field has the wrong type, or makes no sense with the others.
 * @throws {RangeError} If a number is out of its range.
 * @throws {MappingError} If the file is read-only and would have to be written.
 */
export function ownBacking(options: RamBacking): OwnBacking {
  if (typeof options !== "object" || options === null) throw new TypeError("A RAM backing must be an object");
  const { backing = "shared", name = "ram", hugepageSize, hostNumaNode, fileOffset, transparentHugepages } = options;
  const { copyOnWrite = false, fixedSize = false, coreDump = false, prefetch = false } = options;
  if (typeof name !== "string") throw new TypeError("The name of a RAM backing must be a string");
  const given = options.ranges;
  if (!Array.isArray(given) || !given.every((range) => range instanceof MemoryRange)) {
    throw new TypeError(`RAM backing "${name}" needs its ranges as an array of MemoryRange`);
  }
  const ranges = Array.from(given, (range: MemoryRange) => ownRange(range, `RAM backing "${name}"`));
  const of = `of RAM backing "${name}"`;
  checkBoolean(copyOnWrite, `copyOnWrite ${of}`);
  checkBoolean(fixedSize, `fixedSize ${of}`);
  checkBoolean(coreDump, `coreDump ${of}`);
  checkBoolean(prefetch, `prefetch ${of}`);
  if (transparentHugepages !== undefined) checkBoolean(transparentHugepages, `transparentHugepages ${of}`);
  if (hugepageSize !== undefined) checkNumber(hugepageSize, `Huge page size of RAM backing "${name}"`);
  if (hostNumaNode !== undefined && (!Number.isInteger(hostNumaNode) || hostNumaNode < 0 || hostNumaNode > 1023)) {
    throw new RangeError(
      `Host NUMA node of RAM backing "${name}" must be an integer from 0 to 1023, got ${hostNumaNode}`,
    );
  }
  const exists = backing instanceof Mappable;
  if (!exists && backing !== "shared" && backing !== "private") {
    throw new TypeError(`RAM backing "${name}" must be "shared", "private" or a Mappable`);
  }
  if (!exists && (copyOnWrite || fileOffset !== undefined)) {
    const what = copyOnWrite ? "copyOnWrite" : "fileOffset";
    throw new TypeError(`RAM backing "${name}" can have ${what} over a Mappable only`);
  }
  if (fixedSize && backing !== "shared") {
    throw new TypeError(
      `RAM backing "${name}" can have fixedSize if it is "shared"; pass it to Mappable.open otherwise`,
    );
  }
  if (exists) {
    if (fileOffset !== undefined) checkAligned(fileOffset, `File offset of RAM backing "${name}"`, backing.pageSize);
    if (!backing.writable && !copyOnWrite) {
      throw new MappingError(
        `The file of RAM backing "${name}" is not writable: open it with write: true, or map it with copyOnWrite: true`,
        ranges[0] ?? MemoryRange.EMPTY,
      );
    }
  }
  return {
    ...{ ranges, name, backing, copyOnWrite, fixedSize, coreDump, prefetch },
    ...(fileOffset !== undefined && { fileOffset }),
    ...(transparentHugepages !== undefined && { transparentHugepages }),
    ...(hugepageSize !== undefined && { hugepageSize }),
    ...(hostNumaNode !== undefined && { hostNumaNode }),
  };
}

/** What the layout has to know about a backing. */
export function ramRequest({ ranges, backing, name, hugepageSize, fileOffset }: OwnBacking): RamRequest {
  if (!(backing instanceof Mappable)) return { name, ranges, kind: backing, hugepageSize };
  return {
    name,
    ranges,
    kind: "existing",
    hugepageSize,
    existingPageSize: backing.pageSize,
    existingSize: backing.size,
    ...(fileOffset !== undefined && { fileOffset }),
  };
}

/**
 * The memory of a backing: a handle of its own, which the caller disposes, or `"private"`. Where there is no `memory` at
 * host addresses, a stand-in for a memfd.
 *
 * @throws {OsError} If a memfd cannot be made; where the pool of huge pages is too small, the message names it.
 */
export function ramSource(options: OwnBacking, layout: BackingLayout, memory: boolean): Mappable | "private" {
  const { backing, name, hugepageSize, hostNumaNode, fixedSize } = options;
  if (backing === "private") return backing;
  if (backing instanceof Mappable) return backing.clone();
  if (!memory) return standInMappable(name, layout.fileSize, layout.pageSize);
  return Mappable.memfd(name, layout.fileSize, {
    fixedSize,
    ...(hugepageSize !== undefined && { hugepageSize }),
    ...(hugepageSize !== undefined && hostNumaNode !== undefined && { hostNumaNode }),
  });
}

/** How the host is to treat the pages of a backing. */
export function ramPolicy(
  options: OwnBacking,
  { pageSize }: BackingLayout,
  memory: boolean,
  report: Report,
): MemoryPolicy {
  const { backing, hostNumaNode, transparentHugepages, coreDump, name } = options;
  const canHave = pageSize === 4096 && (!memory || hasTransparentHugepages());
  if (!canHave && pageSize === 4096 && transparentHugepages) {
    report("warn", `The host has no transparent huge pages for RAM backing "${name}"`);
  }
  return {
    coreDump,
    fork: false,
    ...(hostNumaNode !== undefined && { hostNumaNode }),
    ...(canHave && { transparentHugepages: transparentHugepages ?? true }),
    ...(backing === "private" && { name }),
  };
}
