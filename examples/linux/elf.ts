/**
 * The parts of an ELF file that are loaded, for 64-bit x86.
 *
 * @module
 */

import { KernelImageError } from "./kernel_image_error.ts";

const ELF_64_LITTLE = [0x7f, 0x45, 0x4c, 0x46, 2, 1];
const ENTRY = 0x18;
const PROGRAM_HEADERS = 0x20;
const PROGRAM_HEADER_SIZE = 0x36;
const PROGRAM_HEADER_COUNT = 0x38;
const PT_LOAD = 1;

/** A part to be loaded. */
export interface Segment {
  /** Its physical address. */
  readonly gpa: number;
  /** What is in the file. */
  readonly bytes: Uint8Array;
  /** How long it is in memory: zeros follow what is in the file. */
  readonly length: number;
}

/** What is needed to load it. */
export interface Executable {
  /** The physical address to start at. */
  readonly entry: number;
  /** What to load. */
  readonly segments: readonly Segment[];
}

/** Reads the headers. */
export function readElf(file: Uint8Array): Executable {
  if (!ELF_64_LITTLE.every((byte, i) => file[i] === byte)) {
    throw new KernelImageError("The kernel is no 64-bit ELF file");
  }
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  const number = (at: number) => Number(view.getBigUint64(at, true));
  const segments: Segment[] = [];
  for (let i = 0; i < view.getUint16(PROGRAM_HEADER_COUNT, true); i++) {
    const at = number(PROGRAM_HEADERS) + i * view.getUint16(PROGRAM_HEADER_SIZE, true);
    if (view.getUint32(at, true) !== PT_LOAD) continue;
    const offset = number(at + 0x08);
    segments.push({
      gpa: number(at + 0x18),
      bytes: file.subarray(offset, offset + number(at + 0x20)),
      length: number(at + 0x28),
    });
  }
  return { entry: number(ENTRY), segments };
}
