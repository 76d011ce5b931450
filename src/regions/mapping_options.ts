import { checkBoolean } from "../core/check_boolean.ts";
import { MappingError } from "../core/errors.ts";
import { hex } from "../core/hex.ts";
import { checkAligned, MemoryRange, ownFilledRange, PAGE_SIZE } from "../core/memory_range.ts";
import type { Span } from "../core/span.ts";
import type { Mapping, Region } from "../core/map/region.ts";
import type { VaTarget } from "../core/targets.ts";
import { ownPolicy } from "../core/memory_policy.ts";
import { fileOf, Mappable } from "../../ffi/files/mappable.ts";
import type { OpenFile } from "../../ffi/files/open_file.ts";
import { FileBacking } from "../memory/file_backing.ts";
import type { MappingOptions } from "./region_handle.ts";

/** The GPAs of a range in a region, checked. */
export function rangeIn(region: Region, rangeInRegion: MemoryRange): Span {
  const range = ownFilledRange(rangeInRegion, region);
  const { start, end } = region.range;
  if (range.end > end - start) throw beyond(region, range);
  return { start: start + range.start, end: start + range.end };
}

function beyond({ name, range: { length } }: Region, range: MemoryRange): RangeError {
  return new RangeError(`Range ${range} reaches beyond region "${name}" of ${hex(length)} bytes`);
}

/**
 * Checks what `addMapping` was given for GPAs `[start, end)` against the file as it is now, and makes the mapping with a
 * file handle of its own.
 */
export function mappingOf(options: MappingOptions, start: number, end: number, va: VaTarget<Mappable>): Mapping {
  const { mappable, fileOffset = 0, writable = true, copyOnWrite = false } = options;
  const given = options.policy;
  checkAligned(fileOffset, "File offset");
  checkBoolean(writable, "writable");
  checkBoolean(copyOnWrite, "copyOnWrite");
  const policy = given === undefined ? undefined : ownPolicy(given);
  if (mappable === "private") {
    if (fileOffset !== 0) throw new RangeError(`Private memory has no file offset, got ${hex(fileOffset)}`);
    return { kind: "private", backing: null, own: { start, end }, delta: 0, writable, policy };
  }
  if (!(mappable instanceof Mappable)) throw new TypeError('A mapping needs a Mappable or "private"');
  const file = fileOf(mappable);
  checkFile(file, fileOffset, start, end, writable && !copyOnWrite);
  if (copyOnWrite) checkCopyOnWrite(file, start, end);
  if (file.pageSize > PAGE_SIZE) checkPages(file, fileOffset, { start, end }, { GPA: start, "Host address": va.base });
  const backing = new FileBacking(mappable);
  const delta = fileOffset - start;
  if (!copyOnWrite) return { kind: "shared", backing, own: null, delta, writable, policy };
  const own = { start: fileOffset, end: fileOffset + end - start };
  return { kind: "copy-on-write", backing, own, delta, writable, policy };
}

/**
 * Throws unless `file` can be shown copy-on-write: it is looked at through its mapping alone, so it must stay as long as
 * it is.
 *
 * @throws {MappingError} If someone may truncate it, or if it has huge pages, of which copies may not be had.
 */
export function checkCopyOnWrite(file: OpenFile, start: number, end: number): void {
  if (file.truncatable) {
    throw new MappingError(
      "A file that someone may truncate cannot be mapped copy-on-write, seal it with F_SEAL_SHRINK or open it with " +
        "fixedSize: true",
      new MemoryRange(start, end),
    );
  }
  if (file.pageSize > PAGE_SIZE) {
    throw new MappingError(
      `A file of huge pages of ${hex(file.pageSize)} cannot be mapped copy-on-write`,
      new MemoryRange(start, end),
    );
  }
}

/**
 * Throws unless bytes `[fileOffset, fileOffset + end - start)` of `file` can be mapped.
 *
 * @throws {MappingError} If the file is too short or not writable.
 */
export function checkFile(
  file: OpenFile,
  fileOffset: number,
  start: number,
  end: number,
  writable: boolean,
): void {
  const { size } = file;
  const fileEnd = fileOffset + end - start;
  // The last page of a file may be cut short.
  if (fileEnd > size && fileEnd > Math.ceil(size / PAGE_SIZE) * PAGE_SIZE) throw tooShort(size, fileOffset, start, end);
  if (writable && !file.writable) throw notWritable(start, end);
}

function tooShort(size: number, fileOffset: number, start: number, end: number): MappingError {
  return new MappingError(
    `The file is ${hex(size)} bytes long and too short for ${hex(end - start)} bytes from offset ${hex(fileOffset)}`,
    new MemoryRange(start, end),
  );
}

function notWritable(start: number, end: number): MappingError {
  return new MappingError(
    "The file is not writable: open it with write: true, or pass writable: false or copyOnWrite: true",
    new MemoryRange(start, end),
  );
}

/**
 * For a file of huge pages: throws unless `[start, end)`, the offset in the file and all of `addresses` are multiples of
 * its page size.
 *
 * @throws {MappingError} Naming what is not.
 */
export function checkPages(
  file: OpenFile,
  fileOffset: number,
  { start, end }: Span,
  addresses: Readonly<Record<string, number>>,
): void {
  const { pageSize } = file;
  for (const [what, value] of Object.entries({ ...addresses, Length: end - start, "File offset": fileOffset })) {
    if (value % pageSize === 0) continue;
    throw new MappingError(
      `${what} ${hex(value)} is not a multiple of the file's huge pages of ${hex(pageSize)}`,
      new MemoryRange(start, end),
    );
  }
}
