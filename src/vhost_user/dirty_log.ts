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
import type { MarkDirty } from "../core/targets.ts";

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
  #isGone = false;

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

  /**
   * Tells `mark` of the pages marked in `[start, end)`, as runs, and clears the bits of each run once it has been told: where
   * `mark` throws, none is lost. Ends where `mark` gives the log up.
   */
  take(span: Span, mark: MarkDirty): void {
    for (const { start, end } of this.#runs(span)) {
      mark(start, end);
      if (this.#isGone) return;
      this.#clear(start, end);
    }
  }

  /** The pages marked in `[start, end)`, as runs, lowest first. */
  *#runs({ start, end }: Span): Iterable<Span> {
    let runStart = -1;
    const last = Math.min(end, this.end);
    for (let at = start; at < last;) {
      const index = Math.floor(at / WORD_SPAN);
      const base = index * WORD_SPAN;
      const upTo = Math.min(last, base + WORD_SPAN);
      const first = (at - base) / PAGE_SIZE;
      const bits = this.#word(index) & maskOf(first, (upTo - base) / PAGE_SIZE);
      if (bits === 0) {
        if (runStart >= 0) yield { start: runStart, end: at };
        runStart = -1;
      } else {
        for (let gpa = at, bit = first; gpa < upTo; gpa += PAGE_SIZE, bit++) {
          if ((bits >>> bit & 1) === 1) {
            if (runStart < 0) runStart = gpa;
          } else if (runStart >= 0) {
            yield { start: runStart, end: gpa };
            runStart = -1;
          }
        }
      }
      at = upTo;
    }
    if (runStart >= 0) yield { start: runStart, end: last };
  }

  /** Gives the memory up; a back end that still has it writes into nobody's. */
  [Symbol.dispose](): void {
    this.#isGone = true;
    this.#mapping[Symbol.dispose]();
    this.file[Symbol.dispose]();
  }

  #word(index: number): number {
    // Most words are 0, and a plain look at one costs a fraction of an atomic one.
    return this.#words[index] === 0 ? 0 : Atomics.load(this.#words, index);
  }

  /** Clears the bits of `[start, end)`, while the back end may set others in the same words. */
  #clear(start: number, end: number): void {
    for (let at = start; at < end;) {
      const index = Math.floor(at / WORD_SPAN);
      const base = index * WORD_SPAN;
      const upTo = Math.min(end, base + WORD_SPAN);
      Atomics.and(this.#words, index, ~maskOf((at - base) / PAGE_SIZE, (upTo - base) / PAGE_SIZE));
      at = upTo;
    }
  }
}

/** Bits `[first, last)` of a word. */
function maskOf(first: number, last: number): number {
  const below = (bit: number) => bit === 32 ? -1 : (1 << bit) - 1;
  return below(last) & ~below(first);
}
