import { PAGE_SIZE } from "./memory_range.ts";
import {
  type Bounds,
  cutWords,
  firstWordSet,
  gatherWords,
  haveManyRuns,
  type PageWords,
  sortRuns,
  WordRuns,
} from "./page_runs.ts";
import { eachSpan, PageSet, pageSetOfBounds, pageSetOfWords, wordsOf } from "./page_set.ts";

/** From how many ordered stretches on sorting is cheaper than uniting them one after another. */
const MANY = 8;
/** From how many numbers on marks are looked through before there is room for more. */
const COMPACT_FROM = 8192;

/** How many times in a row there may be far too much room. */
const PATIENCE = 16;
/** How many cells there are once there is a run. */
const FIRST_CELLS = 64;
const NO_RUNS = new Float64Array(0);
const NO_BITMAPS: readonly PageWords[] = [];

/**
 * Collects pages for a `PageSet`. Marks may come in any order and any number of times; cheap where they ascend. Whole
 * bitmaps are kept as they are where that takes less than their runs.
 *
 * An exception in the middle, such as at the end of the stack, loses no mark: what is new is made before anything old goes.
 */
export class PageMarks {
  #runs: Float64Array<ArrayBuffer> = NO_RUNS;
  /** How many cells of `#runs` are in use. */
  #length = 0;
  /** Where a stretch of ascending runs begins. */
  #stretches: number[] = [];
  /** What is marked besides, each without empty words at either end. */
  #bitmaps = NO_BITMAPS;
  /** How many times in a row there was far too much room. */
  #tooMuch = 0;

  /** Whether nothing is marked. */
  get isEmpty(): boolean {
    return this.#length === 0 && this.#bitmaps.length === 0;
  }

  /** How many bytes the marks take. */
  get storedBytes(): number {
    return this.#bitmaps.reduce((bytes, { words }) => bytes + words.byteLength, this.#runs.byteLength);
  }

  /** Marks the pages that the bytes `[start, end)` lie in. */
  add(start: number, end: number): void {
    if (!(end > start)) return;
    const from = Math.floor(start / PAGE_SIZE);
    const to = Math.ceil(end / PAGE_SIZE);
    const runs = this.#runs;
    const length = this.#length;
    const lastEnd = length === 0 ? -Infinity : runs[length - 1]!;
    if (from <= lastEnd && from >= runs[length - 2]!) {
      if (to > lastEnd) runs[length - 1] = to;
      return;
    }
    if (length === runs.length) {
      this.#makeRoom();
      // What there was may be less by now, and in another order.
      return this.add(start, end);
    }
    if (from < lastEnd) this.#stretches.push(length);
    runs[length] = from;
    runs[length + 1] = to;
    this.#length = length + 2;
  }

  /**
   * Marks those pages in `[from, to)` whose bits are set in `words`, a copy of which is kept if any. Bit `i` of word `w` is
   * page `first + 32 * w + i`.
   */
  addWords(first: number, words: Uint32Array, from: number, to: number): void {
    // What is empty at either end is left out.
    const last = Math.ceil(Math.min(32 * words.length, to - first) / 32);
    const at = firstWordSet(words, Math.floor(Math.max(0, from - first) / 32), last);
    let stop = last;
    while (stop > at && words[stop - 1] === 0) stop--;
    const low = Math.max(32 * at, from - first);
    const high = Math.min(32 * stop, to - first);
    if (low >= high) return;
    if (haveManyRuns(words, at, stop)) return this.#addBitmap(cutWords(words, first, low, high));
    const runs = new WordRuns(words);
    runs.restart(low, high);
    while (runs.next()) this.add((first + runs.start) * PAGE_SIZE, (first + runs.end) * PAGE_SIZE);
  }

  /** Leaves out what is marked more than once where that may be much, else takes more memory. */
  #makeRoom(): void {
    const runs = this.#runs;
    if (this.#length >= COMPACT_FROM && this.#stretches.length > 0) {
      const pages = this.toSet();
      this.keep(pages);
      // Else there is to be room for as much as it is united with, so that uniting takes no longer than marking.
      if (pages.storedBytes <= runs.byteLength / 2) return;
    }
    const longer = new Float64Array(Math.max(FIRST_CELLS, 2 * runs.length));
    longer.set(this.#runs.subarray(0, this.#length));
    this.#runs = longer;
  }

  #addBitmap(pages: PageWords): void {
    // Bits outside of what was asked for have been cut off since it was looked at.
    if (pages.words[0] === 0 || pages.words[pages.words.length - 1] === 0) this.addSet(pageSetOfWords(pages));
    else this.#bitmaps = [...this.#bitmaps, pages];
  }

  /** Marks all pages of a set. */
  addSet(pages: PageSet): void {
    const words = wordsOf(pages);
    if (words !== null) this.#bitmaps = [...this.#bitmaps, words];
    else eachSpan(pages, (start, end) => this.add(start, end));
  }

  /** Forgets all but what is in `pages`. */
  keep(pages: PageSet): void {
    const kept = new PageMarks();
    kept.addSet(pages);
    this.#runs = kept.#runs;
    this.#length = kept.#length;
    this.#stretches = kept.#stretches;
    this.#bitmaps = kept.#bitmaps;
  }

  /** What has been marked since the last time, and is forgotten here. */
  take(): PageSet {
    if (this.isEmpty) return PageSet.EMPTY;
    const pages = this.toSet();
    // The room is kept for as many again, unless it is far too much many times in a row.
    const isFarTooMuch = this.#runs.length > 4096 && this.#length < this.#runs.length / 8;
    this.#tooMuch = isFarTooMuch ? this.#tooMuch + 1 : 0;
    if (this.#tooMuch === PATIENCE) this.#runs = NO_RUNS;
    this.#length = 0;
    this.#stretches = [];
    this.#bitmaps = NO_BITMAPS;
    return pages;
  }

  /** What is marked. */
  toSet(): PageSet {
    const bitmaps = this.#bitmaps;
    if (bitmaps.length === 0) return this.#ofRuns();
    if (bitmaps.length === 1 && this.#length === 0) return pageSetOfWords(bitmaps[0]!);
    const all = gatherWords(bitmaps, this.#runs.subarray(0, this.#length));
    if (all !== null) return pageSetOfWords(all);
    return bitmaps.reduce((pages, bitmap) => pages.union(pageSetOfWords(bitmap)), this.#ofRuns());
  }

  #ofRuns(): PageSet {
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
