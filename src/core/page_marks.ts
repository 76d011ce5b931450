import { PAGE_SIZE } from "./memory_range.ts";
import { type Bounds, sortRuns } from "./page_runs.ts";
import { eachSpan, PageSet, pageSetOfBounds } from "./page_set.ts";

/** From how many ordered stretches on sorting is cheaper than uniting them one after another. */
const MANY = 8;
/** From how many numbers on marks are looked through before there is room for more. */
const COMPACT_FROM = 8192;

/** How many times in a row there may be far too much room. */
const PATIENCE = 16;
/** How many cells there are once there is a run. */
const FIRST_CELLS = 64;
const NO_RUNS = new Float64Array(0);

/**
 * Collects pages for a `PageSet`. Marks may come in any order and any number of times; cheap where they ascend.
 *
 * An exception in the middle, such as at the end of the stack, loses no mark: what is new is made before anything old goes.
 */
export class PageMarks {
  #runs: Float64Array<ArrayBuffer> = NO_RUNS;
  /** How many cells of `#runs` are in use. */
  #length = 0;
  /** Where a stretch of ascending runs begins. */
  #stretches: number[] = [];
  /** How many times in a row there was far too much room. */
  #tooMuch = 0;

  /** Whether nothing is marked. */
  get isEmpty(): boolean {
    return this.#length === 0;
  }

  /** How many bytes the marks take. */
  get storedBytes(): number {
    return this.#runs.byteLength;
  }

  /** Marks the pages that the bytes `[start, end)` lie in. */
  add(start: number, end: number): void {
    if (!(end > start)) return;
    const from = Math.floor(start / PAGE_SIZE);
    const to = Math.ceil(end / PAGE_SIZE);
    const runs = this.#runs;
    const length = this.#length;
    if (length > 0) {
      const lastEnd = runs[length - 1]!;
      if (from <= lastEnd && from >= runs[length - 2]!) {
        if (to > lastEnd) runs[length - 1] = to;
        return;
      }
      if (from < lastEnd) this.#stretches.push(length);
    }
    if (length === runs.length) {
      this.#makeRoom();
      // Room was made by leaving out what was there twice, so that this run may have a place already.
      if (this.#length < length) return this.add(start, end);
    }
    this.#runs[length] = from;
    this.#runs[length + 1] = to;
    this.#length = length + 2;
  }

  /** Leaves out what is marked more than once where that may be much, else takes more memory. */
  #makeRoom(): void {
    const runs = this.#runs;
    const length = this.#length;
    if (length >= COMPACT_FROM && this.#stretches.length > 0) {
      this.keep(this.toSet());
      if (this.#length <= length / 2) return;
    }
    const longer = new Float64Array(Math.max(FIRST_CELLS, 2 * runs.length));
    longer.set(this.#runs.subarray(0, this.#length));
    this.#runs = longer;
  }

  /** Marks all pages of a set. */
  addSet(pages: PageSet): void {
    eachSpan(pages, (start, end) => this.add(start, end));
  }

  /** Forgets all but what is in `pages`. */
  keep(pages: PageSet): void {
    const kept = new PageMarks();
    kept.addSet(pages);
    this.#runs = kept.#runs;
    this.#length = kept.#length;
    this.#stretches = kept.#stretches;
  }

  /** What has been marked since the last time, and is forgotten here. */
  take(): PageSet {
    if (this.#length === 0) return PageSet.EMPTY;
    const pages = this.toSet();
    // The room is kept for as many again, unless it is far too much many times in a row.
    const isFarTooMuch = this.#runs.length > 4096 && this.#length < this.#runs.length / 8;
    this.#tooMuch = isFarTooMuch ? this.#tooMuch + 1 : 0;
    if (this.#tooMuch === PATIENCE) this.#runs = NO_RUNS;
    this.#length = 0;
    this.#stretches = [];
    return pages;
  }

  /** What is marked. */
  toSet(): PageSet {
    const runs = this.#runs.subarray(0, this.#length);
    const stretches = this.#stretches;
    if (stretches.length === 0) return pageSetOfBounds(runs, false);
    if (stretches.length > MANY) return pageSetOfBounds(sortRuns(runs), true);
    let pages = PageSet.EMPTY;
    for (let i = 0; i <= stretches.length; i++) {
      const part: Bounds = runs.subarray(stretches[i - 1] ?? 0, stretches[i]);
      pages = pages.union(pageSetOfBounds(part, false));
    }
    return pages;
  }
}
