/**
 * Pages that were harvested before anybody asked for them.
 *
 * Why it is safe: it keeps numbers.
 *
 * @module
 */

import type { MemoryRange } from "../../src/core/memory_range.ts";
import { PageMarks } from "../../src/core/page_marks.ts";
import { eachSpan, PageSet } from "../../src/core/page_set.ts";
import type { MarkDirty } from "../../src/core/targets.ts";

/** Marks that are kept until somebody asks for them. */
export class LeftBehind {
  /** Takes further marks. */
  readonly marks: PageMarks = new PageMarks();
  /** What is being told, and has not been told to the end if that threw. */
  #telling = PageSet.EMPTY;

  /**
   * Tells what there is in `range`, and keeps the rest; all of it where `mark` throws. What is marked meanwhile is for the
   * next time.
   */
  handOut(range: MemoryRange, mark: MarkDirty): void {
    if (this.marks.isEmpty && this.#telling.count === 0) return;
    const all = this.marks.toSet().union(this.#telling);
    const asked = all.within(range);
    const rest = asked.count === all.count ? PageSet.EMPTY : all.difference(asked);
    // First there in both places, then in one each: an exception in between loses nothing.
    this.#telling = all;
    this.marks.keep(rest);
    this.#telling = asked;
    eachSpan(asked, mark);
    this.#telling = PageSet.EMPTY;
  }
}
