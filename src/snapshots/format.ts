import { crc32 } from "node:zlib";

/** The file with the bytes of memory. */
export const MEMORY_FILE = "memory";
/** The file with everything else. */
export const INDEX_FILE = "index";

/** CRC-32 of some bytes: node:zlib's, which is compiled code, where one written in JavaScript would be the slowest part. */
export function checksum(bytes: Uint8Array): number {
  return crc32(bytes);
}

/** How many bytes one checksum covers at most, and how many are moved in one go. */
export const CHUNK: number = 2 ** 20;

/** How long an index may be, in bytes, what is put beside memory included. */
export const INDEX_LIMIT: number = 2 ** 30;
