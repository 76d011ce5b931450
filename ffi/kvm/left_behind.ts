/**
 * Pages that were harvested before anybody asked for them.
 *
 * Why it is safe: it keeps numbers.
 *
 * @module
 */

import type { MemoryRange } from "../../src/core/memory_range.ts";
import type { PageMarks } from "../../src/core/page_marks.ts";
import { eachSpan, PageSet } from "../../src/core/page_set.ts";
import type { MarkDirty } from "../../src/core/targets.ts";

/** Tells what `marks` has in `range`, and keeps the rest; all of it where `mark` throws. */
export function handOut(marks: PageMarks, range: MemoryRange, mark: MarkDirty): void {
  if (marks.isEmpty) return;
  const all = marks.toSet();
  const asked = all.within(range);
  eachSpan(asked, mark);
  marks.keep(asked.count === all.count ? PageSet.EMPTY : all.difference(asked));
}
