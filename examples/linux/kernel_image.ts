/**
 * The file of a Linux kernel for x86, a "bzImage": a header that says how to boot it, and the kernel itself, compressed.
 *
 * Described in the kernel's Documentation/arch/x86/boot.rst.
 *
 * @module
 */

import { decompress } from "./decompress.ts";
import { KernelImageError } from "./kernel_image_error.ts";

/** Where the header is, in the file as in the parameters that the kernel is started with. */
export const SETUP_HEADER = 0x1f1;

const BOOT_FLAG = 0x1fe;
const HEADER_LENGTH = 0x201; // of what follows 0x202
const MAGIC = 0x202;
const VERSION = 0x206;
const PAYLOAD_OFFSET = 0x248;
const PAYLOAD_LENGTH = 0x24c;

const SECTOR = 512;
const HDRS = 0x5372_6448;
/** The 64-bit boot protocol came with 2.12. */
const LEAST_VERSION = 0x020c;

/** What is in the file. */
export interface KernelImage {
  /** The header, to be handed to the kernel at `SETUP_HEADER` of its parameters. */
  readonly header: Uint8Array;
  /** The kernel, an ELF file. */
  readonly vmlinux: Uint8Array;
}

/**
 * Takes a kernel apart.
 *
 * @throws {KernelImageError} If it is none.
 */
export function readKernelImage(file: Uint8Array): KernelImage {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  if (file.length < 0x1000 || view.getUint16(BOOT_FLAG, true) !== 0xaa55 || view.getUint32(MAGIC, true) !== HDRS) {
    throw new KernelImageError("This is no bzImage: it has no setup header");
  }
  const version = view.getUint16(VERSION, true);
  if (version < LEAST_VERSION) {
    throw new KernelImageError(
      `The kernel speaks version 0x${version.toString(16)} of the boot protocol, 0x20c is needed`,
    );
  }
  const setupSectors = view.getUint8(SETUP_HEADER) || 4;
  const payload = (setupSectors + 1) * SECTOR + view.getUint32(PAYLOAD_OFFSET, true);
  const end = payload + view.getUint32(PAYLOAD_LENGTH, true);
  if (end > file.length) throw new KernelImageError(`The file ends at ${file.length}, and the kernel in it at ${end}`);
  return {
    header: file.slice(SETUP_HEADER, MAGIC + view.getUint8(HEADER_LENGTH)),
    vmlinux: decompress(file.subarray(payload, end)),
  };
}
