import { FileMapping } from "../../ffi/os/address_space.ts";
import { libc } from "../../ffi/os/libc.ts";
import { PROT_READ } from "../../ffi/os/mman.ts";
import { PAGE_SIZE } from "../core/memory_range.ts";
import { memoryLength } from "../core/snapshot_index.ts";
import { type Layers, layersOf } from "../core/snapshot_layers.ts";
import type { Span } from "../core/span.ts";
import { CHUNK } from "./format.ts";
import type { SnapshotLayer } from "./snapshot_chain.ts";

/** The memory of a snapshot, mapped so that other memory can be compared with it. */
export class BaseMemory implements Disposable {
  readonly #files: readonly FileMapping[];
  readonly #layers: Layers;
  readonly #zeros: FileMapping;
  readonly #stack: DisposableStack;

  /** Maps the files of a chain; `zeros` is a file of `CHUNK` bytes of zeros. */
  constructor(chain: readonly SnapshotLayer[], zeros: { readonly fd: number }) {
    using stack = new DisposableStack();
    this.#files = chain.map(({ memory, index }) =>
      stack.use(new FileMapping(memory.fd, 0, memoryLength(index.layout), PROT_READ))
    );
    this.#zeros = stack.use(new FileMapping(zeros.fd, 0, CHUNK, PROT_READ));
    this.#layers = layersOf(chain.map(({ index }) => index));
    this.#stack = stack.move();
  }

  /**
   * Which pages of the host's memory from `address` on, `length` bytes of it, differ from what the snapshot has from
   * `offset` of its memory file on: as parts of the memory file, in order, pages that touch as one.
   */
  differing(address: number, length: number, offset: number): Span[] {
    const runs: { start: number; end: number }[] = [];
    for (const { start, end, base } of this.#parts(offset, offset + length)) {
      if (isSame(address + start - offset, base, end - start)) continue;
      for (let at = start; at < end; at += PAGE_SIZE) {
        if (isSame(address + at - offset, base + at - start, PAGE_SIZE)) continue;
        const last = runs.at(-1);
        if (last?.end === at) last.end += PAGE_SIZE;
        else runs.push({ start: at, end: at + PAGE_SIZE });
      }
    }
    return runs;
  }

  /** The parts of `[start, end)` of the memory file that the snapshot has bytes for, in order: the rest is zeros. */
  *stored(start: number, end: number): Generator<Span> {
    for (const part of this.#layers.overlapping(start, end)) {
      yield { start: Math.max(start, part.start), end: Math.min(end, part.end) };
    }
  }

  /** Takes the mappings away. */
  [Symbol.dispose](): void {
    this.#stack.dispose();
  }

  /** The parts of the memory file, none longer than `CHUNK`, each with the host address of the bytes it has. */
  *#parts(start: number, end: number): Generator<Span & { readonly base: number }> {
    const cut = function* (from: number, to: number, baseOf: (at: number) => number) {
      for (let at = from; at < to; at += CHUNK) yield { start: at, end: Math.min(at + CHUNK, to), base: baseOf(at) };
    };
    let at = start;
    for (const { start: from, end: to, value } of this.#layers.overlapping(start, end)) {
      const first = Math.max(from, at);
      yield* cut(at, first, () => this.#zeros.address);
      const file = this.#files[value]!;
      at = Math.min(to, end);
      yield* cut(first, at, (offset) => file.address + offset);
    }
    yield* cut(at, end, () => this.#zeros.address);
  }
}

/** Whether two parts of this process's memory, which are both mapped for reading, have the same bytes. */
function isSame(a: number, b: number, length: number): boolean {
  // SAFETY: the caller of `differing` vouches for the one, and the other is a part of a mapping of this file's, which is
  // as long as its index says and was found to be so when it was opened.
  return libc().sys.memcmp(BigInt(a), BigInt(b), BigInt(length)) === 0;
}
