/**
 * What kernels are compressed with. The last four bytes of a kernel say how long it is once it is unpacked.
 *
 * @module
 */

import { gunzipSync, zstdDecompressSync } from "node:zlib";
import { Buffer } from "node:buffer";
import lz4 from "lz4-napi";
import { KernelImageError } from "./kernel_image_error.ts";

/** The "legacy" framing of LZ4, which kernels have: blocks with their lengths before them. */
const LZ4_BLOCK = 8 * 2 ** 20;

/** Each way, by how it begins. */
const WAYS: readonly { name: string; magic: readonly number[]; unpack?: (bytes: Uint8Array) => Uint8Array }[] = [
  { name: "LZ4", magic: [0x02, 0x21, 0x4c, 0x18], unpack: unpackLz4 },
  { name: "Zstandard", magic: [0x28, 0xb5, 0x2f, 0xfd], unpack: (bytes) => new Uint8Array(zstdDecompressSync(bytes)) },
  { name: "gzip", magic: [0x1f, 0x8b], unpack: (bytes) => new Uint8Array(gunzipSync(bytes)) },
  { name: "XZ", magic: [0xfd, 0x37, 0x7a, 0x58, 0x5a] },
  { name: "LZMA", magic: [0x5d, 0x00, 0x00] },
];

/**
 * Unpacks a kernel.
 *
 * @throws {KernelImageError} If it is compressed in a way that is not known here, or is not whole.
 */
export function decompress(payload: Uint8Array): Uint8Array {
  const way = WAYS.find(({ magic }) => magic.every((byte, i) => payload[i] === byte));
  if (way?.unpack === undefined) {
    const how = way === undefined ? `in a way that is not known: ${payload.slice(0, 6).toHex()}` : `with ${way.name}`;
    throw new KernelImageError(`The kernel is compressed ${how}; LZ4, Zstandard and gzip can be unpacked`);
  }
  const end = payload.length - 4;
  const length = new DataView(payload.buffer, payload.byteOffset + end, 4).getUint32(0, true);
  const unpacked = way.unpack(payload.subarray(0, end));
  if (unpacked.length !== length) {
    throw new KernelImageError(
      `The kernel should have ${length} bytes and has ${unpacked.length}: the file is not whole`,
    );
  }
  return unpacked;
}

function unpackLz4(bytes: Uint8Array): Uint8Array {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const blocks: Uint8Array[] = [];
  for (let at = 4; at + 4 <= bytes.length;) {
    const length = view.getUint32(at, true);
    at += 4;
    // The library wants the most that can come out in front of each block.
    const block = Buffer.alloc(4 + length);
    block.writeUInt32LE(LZ4_BLOCK, 0);
    block.set(bytes.subarray(at, at + length), 4);
    blocks.push(lz4.uncompressSync(block));
    at += length;
  }
  return Buffer.concat(blocks);
}
