/**
 * Pages that were harvested before anybody asked for them.
 *
 * Why it is safe: it keeps numbers.
 *
 * @module
 */

import type { MemoryRange } from "../../src/core/memory_range.ts";
import type { PageMarks } from "../../src/core/page_marks.ts";
import { eachSpan } from "../../src/core/page_set.ts";
import type { Mark } from "./dirty_source.ts";

/** Tells what `marks` has in `range`, and keeps the rest. */
export function handOut(marks: PageMarks, range: MemoryRange, mark: Mark): void {
  if (marks.isEmpty) return;
  const all = marks.take();
  const asked = all.within(range);
  if (asked.count < all.count) marks.addSet(all.difference(asked));
  eachSpan(asked, mark);
}
