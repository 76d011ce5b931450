import { PAGE_SIZE } from "./memory_range.ts";
import { type Bounds, sortRuns } from "./page_runs.ts";
import { eachSpan, PageSet, pageSetOfBounds } from "./page_set.ts";

/** From how many ordered stretches on sorting is cheaper than uniting them one after another. */
const MANY = 8;
/** From how many numbers on marks are looked through before there is room for more. */
const COMPACT_FROM = 8192;

/**
 * Collects pages for a `PageSet`. Marks may come in any order and any number of times; cheap where they ascend.
 */
export class PageMarks {
  #runs: Float64Array<ArrayBuffer> = new Float64Array(64);
  /** How many cells of `#runs` are in use. */
  #length = 0;
  /** Where a stretch of ascending runs begins. */
  #stretches: number[] = [];

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
      const pages = this.take();
      this.#runs = runs;
      this.addSet(pages);
      if (this.#length <= length / 2) return;
    }
    this.#runs = new Float64Array(2 * runs.length);
    this.#runs.set(runs.subarray(0, this.#length));
  }

  /** Marks all pages of a set. */
  addSet(pages: PageSet): void {
    eachSpan(pages, (start, end) => this.add(start, end));
  }

  /** What has been marked since the last time, and is forgotten here. */
  take(): PageSet {
    if (this.#length === 0) return PageSet.EMPTY;
    const runs = this.#runs.slice(0, this.#length);
    const stretches = this.#stretches;
    if (this.#runs.length > 4096) this.#runs = new Float64Array(64);
    this.#length = 0;
    this.#stretches = [];
    if (stretches.length === 0) return pageSetOfBounds(runs);
    if (stretches.length > MANY) return pageSetOfBounds(sortRuns(runs));
    let pages = PageSet.EMPTY;
    for (let i = 0; i <= stretches.length; i++) {
      const part: Bounds = runs.slice(stretches[i - 1] ?? 0, stretches[i]);
      pages = pages.union(pageSetOfBounds(part));
    }
    return pages;
  }
}
