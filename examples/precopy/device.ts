/**
 * A device with DMA: it knows guest memory by the files that it was told of, writes those, and keeps its own log of what
 * it has written, as a vhost back end does.
 *
 * @module
 */

import type { DmaRequest, DmaTarget, Mappable, MemoryRange } from "membacking";

interface Mapping {
  readonly range: MemoryRange;
  readonly file: Mappable;
  readonly fileOffset: number;
  readonly writable: boolean;
}

/** The device. */
export class Device implements DmaTarget, Disposable {
  readonly name = "device";
  readonly #mappings = new Map<number, Mapping>();
  readonly #written = new Set<number>();

  mapDma({ range, mappable, fileOffset, writable }: DmaRequest): undefined {
    if (mappable === null) return;
    this.#mappings.set(range.start, { range, file: mappable.clone(), fileOffset, writable });
  }

  unmapDma({ start }: MemoryRange): undefined {
    this.#mappings.get(start)?.file[Symbol.dispose]();
    this.#mappings.delete(start);
  }

  takeDirty(mark: (start: number, end: number) => void): void {
    for (const page of this.#written) mark(page, page + 4096);
    this.#written.clear();
  }

  /** Writes to guest memory, within one page; returns whether the device may write there. */
  write(gpa: number, bytes: Uint8Array): boolean {
    for (const { range, file, fileOffset, writable } of this.#mappings.values()) {
      if (!range.containsAddress(gpa)) continue;
      if (!writable) return false;
      file.write(fileOffset + gpa - range.start, bytes);
      this.#written.add(gpa - gpa % 4096);
      return true;
    }
    return false;
  }

  [Symbol.dispose](): void {
    for (const { file } of this.#mappings.values()) file[Symbol.dispose]();
    this.#mappings.clear();
  }
}
