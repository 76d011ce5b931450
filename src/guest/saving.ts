import { nextData } from "../../ffi/files/disk_file.ts";
import { readFilePart } from "../../ffi/files/file_parts.ts";
import { fileOf, Mappable } from "../../ffi/files/mappable.ts";
import { FileMapping } from "../../ffi/os/address_space.ts";
import { PROT_READ, PROT_WRITE } from "../../ffi/os/mman.ts";
import { hostView, revokeView } from "../../ffi/os/view.ts";
import { MemoryRange } from "../core/memory_range.ts";
import type { PageSet } from "../core/page_set.ts";
import { layoutBytes, type SavedLayout } from "../core/snapshot_index.ts";
import type { Span } from "../core/span.ts";
import { BaseMemory } from "../snapshots/base_memory.ts";
import { CHUNK } from "../snapshots/format.ts";
import { pause } from "../snapshots/pause.ts";
import type { SnapshotLayer } from "../snapshots/snapshot_chain.ts";
import type { SnapshotWriter } from "../snapshots/snapshot_writer.ts";

/** What saving has to know. */
export interface SavingOptions {
  /** The snapshot to compare with, the full one first; empty where there is none. */
  readonly chain: readonly SnapshotLayer[];
  /** The pages that may differ from it, by their places in the memory file; `null` for all. */
  readonly pages: PageSet | null;
  readonly signal?: AbortSignal;
  onProgress?(done: number, total: number): void;
}

/** A stretch of RAM of one moment. */
export interface SourcePart extends Span {
  /** Where it goes in the memory file, in bytes. */
  readonly offset: number;
  /** The file that has it, and where, or the host address where it is mapped. */
  readonly from: { readonly file: Mappable; readonly fileOffset: number } | { readonly address: number };
}

/** What may differ from the base: in terms of the memory file. */
interface Difference {
  readonly base: BaseMemory;
  readonly pages: PageSet | null;
}

/** Writes parts of RAM into a snapshot, which lets everything else have its turn unless it is `atOnce`. */
export class Saving implements Disposable {
  readonly #writer: SnapshotWriter;
  readonly #options: SavingOptions;
  readonly #total: number;
  readonly #difference: Difference | null;
  readonly #stack: DisposableStack;
  /** Where what cannot be mapped is read to, once there is such a thing. */
  #room: FileMapping | undefined;
  #done = 0;

  constructor(writer: SnapshotWriter, layout: SavedLayout, options: SavingOptions) {
    using stack = new DisposableStack();
    this.#writer = writer;
    this.#options = options;
    this.#total = layoutBytes(layout);
    const { chain, pages } = options;
    if (chain.length === 0) {
      this.#difference = null;
    } else {
      const zeros = stack.use(Mappable.memfd("zeros", CHUNK));
      this.#difference = { base: stack.use(new BaseMemory(chain, fileOf(zeros))), pages };
    }
    this.#stack = stack.move();
  }

  /** Writes `parts`, in the order of their places in the memory file. */
  async write(parts: readonly SourcePart[]): Promise<void> {
    for (const part of parts) {
      for (const slice of slicesOf(part)) {
        this.#options.signal?.throwIfAborted();
        this.#store(slice);
        this.#done += slice.end - slice.start;
        this.#options.onProgress?.(this.#done, this.#total);
        await pause();
      }
    }
  }

  /**
   * The same without letting anything else have its turn: whoever is told of progress could take away what is being
   * read, and is told when all is done, by `tellDone`.
   */
  writeAtOnce(parts: readonly SourcePart[]): void {
    for (const part of parts) for (const slice of slicesOf(part)) this.#store(slice);
  }

  /** Tells of the last progress. */
  tellDone(): void {
    this.#options.onProgress?.(this.#total, this.#total);
  }

  /** Takes away what it has mapped. */
  [Symbol.dispose](): void {
    this.#stack.dispose();
  }

  #store(slice: SourcePart): void {
    const { from, offset, start, end } = slice;
    if ("address" in from) return this.#storeInPlace(from.address, offset, end - start);
    const file = fileOf(from.file);
    const delta = offset - from.fileOffset;
    const last = from.fileOffset + end - start;
    for (let at = from.fileOffset; at < last;) {
      const start = nextData(file.fd, at, last);
      this.#storeHole(at + delta, start + delta);
      // Where data ends is not asked for: the kernel would look at each page, which takes longer than to find zeros.
      at = Math.min(start + CHUNK, last);
      if (start < last) this.#storeRead(file.fd, { start, end: at }, delta);
    }
    // What is beyond the end reads like a hole.
    if (file.truncatable) file.checkReaches(from.fileOffset, end - start);
  }

  /** Of a copy: whoever writes there meanwhile would make the checksum that of other bytes than were stored. */
  #storeInPlace(address: number, offset: number, length: number): void {
    const room = this.#room ??= this.#newRoom();
    for (let at = 0; at < length; at += CHUNK) {
      const size = Math.min(CHUNK, length - at);
      const view = hostView(address + at, size);
      try {
        new Uint8Array(room.bytes).set(new Uint8Array(view));
      } finally {
        revokeView(view);
      }
      this.#storeFrom(room.address, offset + at, size);
    }
  }

  /** `[start, end)` of the file, `CHUNK` at most. */
  #storeRead(fd: number, { start, end }: Span, delta: number): void {
    const room = this.#room ??= this.#newRoom();
    readFilePart(fd, start, room.address, end - start);
    this.#storeFrom(room.address, start + delta, end - start);
  }

  #newRoom(): FileMapping {
    using memory = Mappable.memfd("read", CHUNK);
    return this.#stack.use(new FileMapping(fileOf(memory).fd, 0, CHUNK, PROT_READ | PROT_WRITE));
  }

  /** Holes are neither looked at nor stored: a difference says only where the base has something else than zeros. */
  #storeHole(start: number, end: number): void {
    if (this.#difference === null || start >= end) return;
    const { base, pages } = this.#difference;
    for (const span of base.stored(start, end)) {
      if (pages === null) this.#writer.zero(span.start, span.end);
      else for (const run of pages.within(new MemoryRange(span.start, span.end))) this.#writer.zero(run.start, run.end);
    }
  }

  #storeFrom(address: number, offset: number, length: number): void {
    const view = hostView(address, length);
    try {
      for (const { start, end } of this.#differing(address, offset, length)) {
        this.#writer.store(new Uint8Array(view, start - offset, end - start), address + start - offset, start);
      }
    } finally {
      revokeView(view);
    }
  }

  /** The parts to be stored, by their places in the memory file. */
  #differing(address: number, offset: number, length: number): Iterable<Span> {
    if (this.#difference === null) return [{ start: offset, end: offset + length }];
    const { base, pages } = this.#difference;
    return pages === null
      ? base.differing(address, length, offset)
      : pages.within(new MemoryRange(offset, offset + length));
  }
}

/** How much is done between two looks at the signal, in bytes. */
const SLICE = 2 ** 24;

function* slicesOf(part: SourcePart): Generator<SourcePart> {
  for (let at = part.start; at < part.end; at += SLICE) yield partOf(part, at, Math.min(at + SLICE, part.end));
}

function partOf(part: SourcePart, start: number, end: number): SourcePart {
  const skip = start - part.start;
  const { from } = part;
  return {
    start,
    end,
    offset: part.offset + skip,
    from: "address" in from
      ? { address: from.address + skip }
      : { file: from.file, fileOffset: from.fileOffset + skip },
  };
}
