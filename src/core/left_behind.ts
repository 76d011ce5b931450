import { GPA_LIMIT, MemoryRange } from "./memory_range.ts";
import { PageMarks } from "./page_marks.ts";
import { eachSpan, PageSet } from "./page_set.ts";
import type { MarkDirty } from "./targets.ts";

const EVERYWHERE = new MemoryRange(0, GPA_LIMIT);

/** Pages that were found to be written before anybody asked for them. */
export class LeftBehind {
  /** Takes further marks. */
  readonly marks: PageMarks = new PageMarks();
  /** What is being told, and has not been told to the end if that threw. */
  #telling = PageSet.EMPTY;

  /**
   * Tells what there is in `range`, everything by default, and keeps the rest; all of it where `mark` throws. What is marked
   * meanwhile is for the next time.
   */
  handOut(mark: MarkDirty, range: MemoryRange = EVERYWHERE): void {
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
