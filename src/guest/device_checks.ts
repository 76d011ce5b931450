/**
 * What is asked of device memory, checked: for `DeviceMemory` here, and for what clients make of it elsewhere.
 *
 * @module
 */

import { fileOf, Mappable } from "../../ffi/files/mappable.ts";
import { hex } from "../core/hex.ts";
import { checkAligned, checkNumber, MemoryRange, PAGE_SIZE } from "../core/memory_range.ts";
import { checkCopyOnWrite, checkFile, checkPages } from "../regions/mapping_options.ts";
import { checkBoolean } from "../core/check_boolean.ts";
import { checkPriority } from "../targets/checks.ts";
import type { DeviceMapping, DeviceMemoryOptions } from "./device_options.ts";

/** The priority of device memory unless it is said: RAM hides it. */
const DEVICE_PRIORITY = 0;

/** Device memory, as far as its requests are about it. */
interface Device {
  readonly name: string;
  readonly length: number;
}

/**
 * The options of device memory, those that were left out as well.
 *
 * @throws {RangeError} If the length is 0 or not page-aligned, or the priority out of its range.
 * @throws {TypeError} If there is no name.
 */
export function checkDeviceMemory(
  name: string,
  length: number,
  options: DeviceMemoryOptions,
): { readonly holes: "exit" | "fault"; readonly priority: number } {
  const { holes = "exit", priority = DEVICE_PRIORITY } = options;
  if (typeof name !== "string") throw new TypeError("Device memory needs a name");
  if (new MemoryRange(0, length).isEmpty) throw new RangeError(`Device memory "${name}" needs a length above 0`);
  if (holes !== "exit" && holes !== "fault") throw new TypeError(`Holes must be "exit" or "fault", got ${holes}`);
  checkPriority(priority, `Priority of device memory "${name}"`);
  return { holes, priority };
}

/**
 * The range of offsets that a request is about.
 *
 * @throws {RangeError} If a number is not aligned, or the range is empty or reaches beyond the device memory.
 */
export function rangeInDevice(offset: number, length: number, device: Device): MemoryRange {
  checkAligned(offset, "Offset");
  checkAligned(length, "Length");
  checkNumber(offset + length, "Offset plus length");
  if (length === 0) throw new RangeError("Length must not be 0");
  if (offset + length > device.length) {
    throw new RangeError(
      `${hex(length)} bytes at offset ${hex(offset)} reach beyond device memory "${device.name}" of ` +
        `${hex(device.length)} bytes`,
    );
  }
  return new MemoryRange(offset, offset + length);
}

/**
 * What a mapping is, once it is clear that it can be: by default all of the file from its offset on, in whole pages.
 *
 * @throws {RangeError} If a number is not aligned, or the range is empty or reaches beyond the device memory.
 * @throws {MappingError} If the file is too short or read-only.
 * @throws {DisposedError} If the mappable has been disposed.
 */
export function checkDeviceMapping(
  mapping: DeviceMapping,
  device: Device,
): {
  readonly range: MemoryRange;
  readonly mappable: Mappable;
  readonly fileOffset: number;
  readonly writable: boolean;
  readonly copyOnWrite: boolean;
} {
  const { offset, mappable, fileOffset = 0, writable = true, copyOnWrite = false } = mapping;
  if (!(mappable instanceof Mappable)) throw new TypeError(`Device memory "${device.name}" needs a Mappable`);
  const file = fileOf(mappable);
  const { length = Math.max(0, Math.ceil(file.size / PAGE_SIZE) * PAGE_SIZE - fileOffset) } = mapping;
  const range = rangeInDevice(offset, length, device);
  checkAligned(fileOffset, "File offset");
  checkBoolean(writable, "writable");
  checkBoolean(copyOnWrite, "copyOnWrite");
  checkFile(file, fileOffset, range.start, range.end, writable && !copyOnWrite);
  if (copyOnWrite) checkCopyOnWrite(file, range.start, range.end);
  if (file.pageSize > PAGE_SIZE) checkPages(file, fileOffset, range, { Offset: offset });
  return { range, mappable, fileOffset, writable, copyOnWrite };
}
