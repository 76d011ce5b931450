/**
 * RAM backings -> regions and file offsets.
 *
 * ```
 *   GPA      0       a0000   c0000    100000       2M             4G
 *   ranges   [ 0x0-0x300000                         ]   ...       [ 0x100000000-... ]
 *   regions  [ ram   ][ vga  ][13 PAM  ][ ram       ]             [ ram             ]   x86 legacy splits the first
 *   file     [ 0x0                                  ] 1M unused   [ 0x400000        ]   congruent to the GPA modulo 2M
 * ```
 *
 * A huge page can map a piece of a file only where file offset and address agree modulo its size, so after a range of
 * odd size the file skips to the next offset that does. What is skipped is a hole in the file and costs no memory. Only
 * a file that exists and has no room for that holds its ranges one right behind the other.
 *
 * @module
 */

import { MembackingError, RegionOverlapError } from "./errors.ts";
import { hex } from "./hex.ts";
import { GPA_LIMIT, MemoryRange, PAGE_SIZE } from "./memory_range.ts";

/** The priority of RAM: it hides anything else at its addresses. */
export const RAM_PRIORITY = 255;

/** File offsets of RAM are congruent to GPAs modulo this many bytes: an x86-64 large page. */
export const RAM_ALIGNMENT: number = 2 ** 21;

/** Where regions begin that chipsets switch on and off one by one: the VGA window, and the ranges of PAM registers. */
const X86_LEGACY_STARTS: readonly number[] = [
  0xa0000,
  ...Array.from({ length: 12 }, (_, i) => 0xc0000 + i * 0x4000),
  0xf0000,
];

const X86_LEGACY_END = 0x10_0000;

/**
 * What is wrong with a layout of RAM:
 *
 * - `"private-with-x86-legacy"`: the ranges of a PC are for RAM that back ends can share;
 * - `"hugepages-with-private"`, `"hugepages-with-existing"`, `"hugepages-with-x86-legacy"`: huge pages are for memfds
 *   made here, and cannot be split into the small ranges of a PC;
 * - `"hugepage-size"`: not a power of two above 4096;
 * - `"unaligned-size"`, `"unaligned-range"`: the RAM does not consist of whole huge pages;
 * - `"x86-legacy-range"`: no RAM from 0 to at least 1 MiB;
 * - `"alias-map"`: the alias overlaps guest memory, ends beyond 2^52, or breaks up huge pages;
 * - `"not-a-ram-range"`: what is to be switched is not exactly one range of RAM.
 */
export type RamLayoutErrorKind =
  | "private-with-x86-legacy"
  | "hugepages-with-private"
  | "hugepages-with-existing"
  | "hugepages-with-x86-legacy"
  | "hugepage-size"
  | "unaligned-size"
  | "unaligned-range"
  | "x86-legacy-range"
  | "alias-map"
  | "not-a-ram-range";

/** RAM cannot be laid out, attached or switched as asked. Nothing has changed. */
export class RamLayoutError extends MembackingError {
  /** The class name, which is also what a stack trace shows. */
  override name = "RamLayoutError";
  /** What is wrong. */
  readonly kind: RamLayoutErrorKind;
  /** The GPA range concerned, in bytes; `null` where the error is about no range in particular. */
  readonly range: MemoryRange | null;

  /** Builds the error. */
  constructor(kind: RamLayoutErrorKind, message: string, range: MemoryRange | null = null) {
    super(message);
    this.kind = kind;
    this.range = range;
  }
}

/** One RAM backing, as far as the layout depends on it. */
export interface RamRequest {
  /** What its regions are called. */
  readonly name: string;
  /** The GPA ranges it backs, in the order in which they lie in the file. */
  readonly ranges: readonly MemoryRange[];
  /** A memfd to be made, private memory, or a file that exists. */
  readonly kind: "shared" | "private" | "existing";
  /** The size of the hugetlb pages asked for, in bytes. */
  readonly hugepageSize: number | undefined;
  /** The page size of the file that exists, in bytes. */
  readonly existingPageSize?: number;
  /** The length of the file that exists, in bytes. */
  readonly existingSize?: number;
  /** Where in the file that exists the first range begins, in bytes; then one range lies right behind the other. */
  readonly fileOffset?: number;
}

/** One region of RAM and where it lies in the file of its backing. */
export interface RamPiece {
  /** What the region is called. */
  readonly name: string;
  /** The GPAs, in bytes. */
  readonly range: MemoryRange;
  /** Where in the file it begins, in bytes; 0 for private memory. */
  readonly fileOffset: number;
}

/** The regions of one backing. */
export interface BackingLayout {
  /** Its regions. */
  readonly pieces: readonly RamPiece[];
  /** How long its file is, in bytes. */
  readonly fileSize: number;
  /** The unit it is mapped in, in bytes. */
  readonly pageSize: number;
}

/** What the layout depends on besides the backings. */
export interface LayoutOptions {
  /** Where guest memory ends, in bytes. */
  readonly maxAddress: number;
  /** Whether the VGA window and the PAM ranges become regions of their own. */
  readonly x86Legacy: boolean;
  /** The RAM there is already. */
  readonly present?: readonly { readonly name: string; readonly range: MemoryRange }[];
}

/**
 * Lays out RAM; one result per backing, in the same order.
 *
 * @throws {RamLayoutError} If backings and options do not go together, or ranges do not fit their page size.
 * @throws {RegionOverlapError} If two ranges overlap.
 * @throws {RangeError} If a range is empty or reaches beyond `maxAddress`, or a backing has none.
 */
export function layOutRam(backings: readonly RamRequest[], options: LayoutOptions): BackingLayout[] {
  for (const backing of backings) checkBacking(backing, options);
  checkDisjoint(backings, options.present ?? []);
  if (options.x86Legacy) checkX86Legacy(backings);
  return backings.map((backing) => layOut(backing, options.x86Legacy));
}

/**
 * Throws unless all of guest memory can appear a second time at `aliasOffset`.
 *
 * @throws {RamLayoutError} If it would overlap itself, end beyond 2^52, or break up huge pages.
 */
export function checkAlias(aliasOffset: number, maxAddress: number, pageSize: number): void {
  const alignment = Math.max(pageSize, RAM_ALIGNMENT);
  const where = `The alias map of ${hex(maxAddress)} bytes at offset ${hex(aliasOffset)}`;
  if (aliasOffset < maxAddress) {
    throw new RamLayoutError("alias-map", `${where} overlaps guest memory itself, use ${hex(maxAddress)} or more`);
  }
  if (aliasOffset + maxAddress > GPA_LIMIT) {
    throw new RamLayoutError("alias-map", `${where} does not fit below ${hex(GPA_LIMIT)}`);
  }
  if (aliasOffset % alignment !== 0) {
    throw new RamLayoutError("alias-map", `${where} breaks up huge pages, use a multiple of ${hex(alignment)}`);
  }
}

/** The ranges nearest to `range`, at most `count` of them, lowest first. */
export function nearest(ranges: readonly MemoryRange[], range: MemoryRange, count: number): MemoryRange[] {
  const distance = (other: MemoryRange) =>
    Math.max(0, other.start - range.end, range.start - other.end) +
    // Of those that overlap, the ones whose ends are near come first.
    (Math.abs(other.start - range.start) + Math.abs(other.end - range.end)) / (2 * GPA_LIMIT);
  return ranges.toSorted((a, b) => distance(a) - distance(b)).slice(0, count).sort((a, b) => a.start - b.start);
}

function checkBacking({ name, ranges, kind, ...backing }: RamRequest, { maxAddress, x86Legacy }: LayoutOptions): void {
  const { hugepageSize } = backing;
  const fail = (kind: RamLayoutErrorKind, message: string, range?: MemoryRange) => {
    throw new RamLayoutError(kind, `RAM backing "${name}" ${message}`, range);
  };
  if (ranges.length === 0) throw new RangeError(`RAM backing "${name}" needs at least one range`);
  const total = ranges.reduce((sum, { length }) => sum + length, 0);
  const [first] = ranges;
  if (x86Legacy && kind === "private") {
    fail(
      "private-with-x86-legacy",
      `(${hex(total)} bytes from ${hex(first?.start ?? 0)}) is private, and x86Legacy is for RAM that back ends can ` +
        "share, share it or leave x86Legacy out",
    );
  }
  if (hugepageSize !== undefined) {
    if (hugepageSize <= PAGE_SIZE || !Number.isInteger(Math.log2(hugepageSize))) {
      fail("hugepage-size", `has huge pages of ${hex(hugepageSize)}, which is not a power of two above 0x1000`);
    }
    const pages = `asks for huge pages of ${hex(hugepageSize)}`;
    if (kind === "private") fail("hugepages-with-private", `${pages}, which private memory cannot have, share it`);
    if (kind === "existing") {
      fail("hugepages-with-existing", `${pages}, but the file that backs it has a page size already, leave them out`);
    }
  }
  const pageSize = pageSizeOf(backing);
  if (x86Legacy && pageSize > PAGE_SIZE) {
    fail(
      "hugepages-with-x86-legacy",
      `has huge pages of ${hex(pageSize)}, which x86Legacy cannot split into ranges of 0x4000 bytes`,
    );
  }
  for (const range of ranges) {
    if (range.isEmpty) throw new RangeError(`RAM backing "${name}" has the empty range ${range}`);
    if (range.end > maxAddress) {
      throw new RangeError(`RAM range ${range} of backing "${name}" ends beyond maxAddress, ${hex(maxAddress)}`);
    }
  }
  if (total % pageSize !== 0) {
    fail("unaligned-size", `has ${hex(total)} bytes, which is not a multiple of its huge pages of ${hex(pageSize)}`);
  }
  for (const range of ranges) {
    if (range.start % pageSize === 0 && range.length % pageSize === 0) continue;
    fail("unaligned-range", `has the range ${range}, which does not consist of huge pages of ${hex(pageSize)}`, range);
  }
}

function checkDisjoint(
  backings: readonly RamRequest[],
  present: readonly { readonly name: string; readonly range: MemoryRange }[],
): void {
  const added = backings.flatMap(({ name, ranges }) => ranges.map((range) => ({ name, range })));
  const all = [...present, ...added].map(({ name, range }) => ({ name, range, priority: RAM_PRIORITY }));
  all.sort((a, b) => a.range.start - b.range.start);
  all.reduce<typeof all[number] | undefined>((before, summary) => {
    if (before !== undefined && before.range.end > summary.range.start) {
      throw new RegionOverlapError(before, summary, "RAM ranges must be disjoint");
    }
    return summary;
  }, undefined);
}

function isLow(range: MemoryRange): boolean {
  return range.start === 0 && range.end >= X86_LEGACY_END;
}

function checkX86Legacy(backings: readonly RamRequest[]): void {
  const ranges = backings.flatMap((backing) => backing.ranges);
  if (ranges.some(isLow)) return;
  const lowest = ranges.toSorted((a, b) => a.start - b.start)[0] ?? null;
  throw new RamLayoutError(
    "x86-legacy-range",
    `x86Legacy needs a RAM range that begins at 0x0 and holds at least ${hex(X86_LEGACY_END)} bytes, and ` +
      (lowest === null ? "there is no RAM" : `the lowest one is ${lowest}`),
    lowest,
  );
}

function pageSizeOf({ hugepageSize, existingPageSize }: Pick<RamRequest, "hugepageSize" | "existingPageSize">): number {
  return hugepageSize ?? existingPageSize ?? PAGE_SIZE;
}

function layOut(backing: RamRequest, x86Legacy: boolean): BackingLayout {
  const { name, ranges, kind, existingSize, fileOffset } = backing;
  const pageSize = pageSizeOf(backing);
  const isDense = fileOffset !== undefined ||
    existingSize === ranges.reduce((sum, { length }) => sum + length, 0);
  const alignment = Math.max(pageSize, RAM_ALIGNMENT);
  const pieces: RamPiece[] = [];
  let fileSize = fileOffset ?? 0;
  for (const range of ranges) {
    const offset = kind === "private" ? 0 : isDense ? fileSize : congruentFrom(fileSize, range.start, alignment);
    for (const part of x86Legacy && isLow(range) ? splitX86Legacy(name, range) : [{ name, range }]) {
      pieces.push({ ...part, fileOffset: kind === "private" ? 0 : offset + part.range.start - range.start });
    }
    fileSize = offset + range.length;
  }
  return { pieces, fileSize: kind === "private" ? 0 : fileSize, pageSize };
}

/** The first number from `from` on that is congruent to `address` modulo `alignment`. */
function congruentFrom(from: number, address: number, alignment: number): number {
  return from + (address % alignment - from % alignment + alignment) % alignment;
}

function splitX86Legacy(name: string, range: MemoryRange): { name: string; range: MemoryRange }[] {
  const starts = [0, ...X86_LEGACY_STARTS, X86_LEGACY_END, range.end];
  return starts.slice(0, -1).flatMap((start, i) => {
    const part = new MemoryRange(start, starts[i + 1] ?? range.end);
    if (part.isEmpty) return [];
    const isLegacy = start >= 0xa0000 && start < X86_LEGACY_END;
    return [{ name: isLegacy ? `${name} ${start === 0xa0000 ? "vga" : start.toString(16)}` : name, range: part }];
  });
}
