/**
 * What stands in for a file where there is no kernel to ask: contents without a descriptor.
 *
 * Why it is safe: there is nothing but an array. Whoever asks for a descriptor gets an error.
 *
 * @module
 */

import { MembackingError } from "../../src/core/errors.ts";
import { checkAligned } from "../../src/core/memory_range.ts";
import { OpenFile } from "./open_file.ts";

/** A file that is an array of zeros to begin with. It needs no permission, and cannot be mapped by the kernel. */
export class StandInFile extends OpenFile {
  #bytes: ArrayBuffer | null = null;

  /** Of `size` bytes, a multiple of `pageSize`. */
  constructor(name: string, size: number, pageSize: number) {
    checkAligned(pageSize, "Page size");
    checkAligned(size, "Size", pageSize);
    if (size === 0) throw new RangeError("Size must not be 0");
    super(-1, `stand-in "${name}"`, { borrowed: true, shared: false, fixedSize: true, facts: { size, pageSize } });
  }

  override get bytes(): ArrayBuffer {
    return this.#bytes ??= new ArrayBuffer(this.size);
  }

  override handOut(): number {
    throw new MembackingError(`The ${this.label} has no file descriptor, use a Mappable of a real file`);
  }
}
