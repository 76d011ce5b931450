/**
 * The log in which a back end marks the pages it has written: one bit per page, from GPA 0 on, in shared memory.
 *
 * @module
 */

import { Mappable } from "../../ffi/files/mappable.ts";
import { FileMapping } from "../../ffi/os/address_space.ts";
import { PROT_READ, PROT_WRITE } from "../../ffi/os/mman.ts";
import { PAGE_SIZE } from "../core/memory_range.ts";
import type { Span } from "../core/span.ts";

/** How many GPAs one word of the log stands for, in bytes. */
const WORD_SPAN = 32 * PAGE_SIZE;
/** How many GPAs one page of the log stands for, in bytes. */
const LOG_PAGE_SPAN = 8 * PAGE_SIZE * PAGE_SIZE;

/** A log, to be shared with a back end. Its size is sealed, so whatever the back end does to it is a wrong bit at most. */
export class DirtyLog implements Disposable {
  /** Its memory. */
  readonly file: Mappable;
  /** One past the highest GPA it has a bit for. */
  readonly end: number;
  readonly #mapping: FileMapping;
  readonly #words: Int32Array<ArrayBuffer>;

  /**
   * Makes a log with all bits clear.
   *
   * @param end One past the highest GPA it has to have a bit for.
   * @throws {OsError} If the host is out of memory or descriptors.
   */
  constructor(end: number) {
    const length = Math.max(1, Math.ceil(end / LOG_PAGE_SPAN)) * PAGE_SIZE;
    using undo = new DisposableStack();
    this.file = undo.use(Mappable.memfd("vhost-user log", length));
    this.#mapping = undo.use(new FileMapping(this.file.fd, 0, length, PROT_READ | PROT_WRITE));
    this.#words = new Int32Array(this.#mapping.bytes);
    this.end = length * 8 * PAGE_SIZE;
    undo.move();
  }

  /** Reports the pages marked in `[start, end)`, as runs, and clears their bits. Each bit is taken once. */
  take({ start, end }: Span, mark: (start: number, end: number) => void): void {
    let runStart = -1;
    const last = Math.min(end, this.end);
    for (let at = start; at < last;) {
      const index = Math.floor(at / WORD_SPAN);
      const base = index * WORD_SPAN;
      const upTo = Math.min(last, base + WORD_SPAN);
      const first = (at - base) / PAGE_SIZE;
      const bits = this.#takeWord(index, maskOf(first, (upTo - base) / PAGE_SIZE));
      if (bits === 0) {
        if (runStart >= 0) mark(runStart, at);
        runStart = -1;
      } else {
        for (let gpa = at, bit = first; gpa < upTo; gpa += PAGE_SIZE, bit++) {
          if ((bits >>> bit & 1) === 1) {
            if (runStart < 0) runStart = gpa;
          } else if (runStart >= 0) {
            mark(runStart, gpa);
            runStart = -1;
          }
        }
      }
      at = upTo;
    }
    if (runStart >= 0) mark(runStart, last);
  }

  /** Gives the memory up; a back end that still has it writes into nobody's. */
  [Symbol.dispose](): void {
    this.#mapping[Symbol.dispose]();
    this.file[Symbol.dispose]();
  }

  #takeWord(index: number, mask: number): number {
    // Most words are 0, and a plain look at one costs a fraction of an atomic exchange.
    if (this.#words[index] === 0) return 0;
    return Atomics.and(this.#words, index, ~mask) & mask;
  }
}

/** Bits `[first, last)` of a word. */
function maskOf(first: number, last: number): number {
  const below = (bit: number) => bit === 32 ? -1 : (1 << bit) - 1;
  return below(last) & ~below(first);
}
