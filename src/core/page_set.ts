import { checkNumber, MemoryRange, PAGE_SIZE } from "./memory_range.ts";
import {
  boundAbove,
  type Bounds,
  boundsOfWords,
  combineBounds,
  combineWords,
  countBounds,
  countWords,
  type PageWords,
  type SetOperation,
  sortRuns,
  wordsOfBounds,
} from "./page_runs.ts";

const NO_BOUNDS: Bounds = new Float64Array(0);

/** The two ways to keep a set. */
type Pages = { readonly kind: "runs"; readonly bounds: Bounds } | PageWords & { readonly kind: "words" };

/**
 * The set whose membership changes at `bounds`: page numbers, strictly ascending, an even count of them. A set that keeps
 * them makes a copy, unless they are its own to keep.
 */
export let pageSetOfBounds: (bounds: Bounds, areOwn: boolean) => PageSet;

/** The set of the pages whose bits are set; the words are its own to keep. */
export let pageSetOfWords: (pages: PageWords) => PageSet;

/** Whether `value` is a set of this class, and not something that looks like one. */
export let isPageSet: (value: unknown) => value is PageSet;

/** The words of a set that is kept so, `null` where it is kept as runs. They are not to be changed. */
export let wordsOf: (pages: PageSet) => PageWords | null;

/**
 * Calls `visit` with the first GPA and the end of each run, in bytes and in ascending order: the iterator without its
 * objects.
 */
export let eachSpan: (pages: PageSet, visit: (start: number, end: number) => void) => void;

/**
 * An immutable set of guest pages, 4 KiB each, by guest-physical address.
 *
 * Iterating gives its maximal runs as `MemoryRange`s, in ascending order. It is kept as runs or as a bitmap from its first
 * to its last page, whichever is smaller, so that a few pages in a large address space cost little, and so do many in
 * a small one. Operations on two sets take time linear in their runs or words.
 *
 * @example Usage
 * ```ts
 * import { MemoryRange, PageSet } from "membacking";
 *
 * const written = PageSet.of([new MemoryRange(0x3000, 0x5000), new MemoryRange(0x1000, 0x2000)]);
 * const sent = PageSet.of([new MemoryRange(0x4000, 0x6000)]);
 * console.assert(written.count === 3 && written.has(0x4fff));
 * console.assert([...written.difference(sent)].join() === "0x1000-0x2000,0x3000-0x4000");
 * ```
 */
export class PageSet implements Iterable<MemoryRange> {
  /** The set of no pages. */
  static readonly EMPTY: PageSet = new PageSet({ kind: "runs", bounds: NO_BOUNDS }, 0);

  readonly #pages: Pages;
  /** How many pages it has. */
  readonly count: number;

  private constructor(pages: Pages, count: number) {
    this.#pages = pages;
    this.count = count;
  }

  /**
   * The pages of `ranges`, which may come in any order and overlap.
   *
   * @throws {TypeError} If one of them is no `MemoryRange`.
   */
  static of(ranges: Iterable<MemoryRange>): PageSet {
    const runs: number[] = [];
    for (const range of ranges) {
      if (!(range instanceof MemoryRange)) throw new TypeError("A page set is made of MemoryRange objects");
      const { start, end } = range;
      if (end > start) runs.push(start / PAGE_SIZE, end / PAGE_SIZE);
    }
    return PageSet.#ofBounds(sortRuns(Float64Array.from(runs)));
  }

  static {
    pageSetOfBounds = (bounds, areOwn) => PageSet.#ofBounds(bounds, areOwn);
    pageSetOfWords = (pages) => PageSet.#ofWords(pages);
    isPageSet = (value): value is PageSet => typeof value === "object" && value !== null && #pages in value;
    wordsOf = (pages) => pages.#pages.kind === "words" ? pages.#pages : null;
    eachSpan = (pages, visit) => {
      const bounds = pages.#bounds();
      for (let i = 0; i < bounds.length; i += 2) visit(bounds[i]! * PAGE_SIZE, bounds[i + 1]! * PAGE_SIZE);
    };
  }

  static #ofBounds(bounds: Bounds, areOwn = true): PageSet {
    if (bounds.length === 0) return PageSet.EMPTY;
    const first = Math.floor(bounds[0]! / 32) * 32;
    const wordBytes = 4 * Math.ceil((bounds[bounds.length - 1]! - first) / 32);
    const pages: Pages = wordBytes < bounds.byteLength
      ? { kind: "words", ...wordsOfBounds(bounds) }
      : { kind: "runs", bounds: areOwn ? bounds : bounds.slice() };
    return new PageSet(pages, countBounds(bounds));
  }

  static #ofWords(pages: PageWords): PageSet {
    const { count, runs } = countWords(pages.words);
    if (count === 0) return PageSet.EMPTY;
    // What lies before the first and after the last page is cut off on the way through the runs.
    const isTight = pages.words[0] !== 0 && pages.words[pages.words.length - 1] !== 0;
    if (isTight && pages.words.byteLength < 16 * runs) return new PageSet({ kind: "words", ...pages }, count);
    return PageSet.#ofBounds(boundsOfWords(pages, runs));
  }

  /** How many bytes of guest memory its pages have. */
  get byteLength(): number {
    return this.count * PAGE_SIZE;
  }

  /** How many bytes the set itself takes. */
  get storedBytes(): number {
    return this.#pages.kind === "runs" ? this.#pages.bounds.byteLength : this.#pages.words.byteLength;
  }

  /**
   * Whether the page that holds the byte at `gpa` is in the set.
   *
   * @throws {RangeError} If `gpa` is not a non-negative safe integer.
   */
  has(gpa: number): boolean {
    checkNumber(gpa, "Guest-physical address");
    const page = Math.floor(gpa / PAGE_SIZE);
    const pages = this.#pages;
    if (pages.kind === "runs") return (boundAbove(pages.bounds, page) & 1) === 1;
    const at = page - pages.first;
    return at >= 0 && at < 32 * pages.words.length && ((pages.words[at >>> 5]! >>> (at & 31)) & 1) === 1;
  }

  /** The pages of either set. */
  union(other: PageSet): PageSet {
    checkSet(other);
    if (other.count === 0) return this;
    if (this.count === 0) return other;
    return this.#combine(other, "union");
  }

  /** The pages of both sets. */
  intersection(other: PageSet): PageSet {
    checkSet(other);
    if (this.count === 0 || other.count === 0) return PageSet.EMPTY;
    return this.#combine(other, "intersection");
  }

  /** The pages of this set that are not in the other. */
  difference(other: PageSet): PageSet {
    checkSet(other);
    if (this.count === 0 || other.count === 0) return this;
    return this.#combine(other, "difference");
  }

  /** The pages of this set in `range`. */
  within(range: MemoryRange): PageSet {
    if (!(range instanceof MemoryRange)) throw new TypeError("A part of a page set is given by a MemoryRange");
    const { start, end } = range;
    if (start === end || this.count === 0) return PageSet.EMPTY;
    const from = start / PAGE_SIZE;
    const to = end / PAGE_SIZE;
    const pages = this.#pages;
    if (pages.kind === "runs") {
      const { bounds } = pages;
      const low = boundAbove(bounds, from);
      // A run that ends where the range does is cut there, one that begins there is left out.
      const high = boundAbove(bounds, to - 1);
      const head = (low & 1) === 1 ? [from] : [];
      const tail = (high & 1) === 1 ? [to] : [];
      const cut = new Float64Array(head.length + high - low + tail.length);
      cut.set(head);
      cut.set(bounds.subarray(low, high), head.length);
      cut.set(tail, head.length + high - low);
      return PageSet.#ofBounds(cut);
    }
    const low = Math.max(0, Math.floor((from - pages.first) / 32));
    const high = Math.min(pages.words.length, Math.ceil((to - pages.first) / 32));
    if (low >= high) return PageSet.EMPTY;
    const first = pages.first + 32 * low;
    const words = pages.words.slice(low, high);
    if (from > first) words[0]! &= -1 << (from - first);
    const over = first + 32 * words.length - to;
    if (over > 0) words[words.length - 1]! &= -1 >>> over;
    return PageSet.#ofWords({ first, words });
  }

  /** Whether both sets have the same pages. */
  equals(other: PageSet): boolean {
    checkSet(other);
    if (this.count !== other.count) return false;
    const mine = this.#bounds();
    const theirs = other.#bounds();
    return mine.length === theirs.length && mine.every((bound, i) => bound === theirs[i]);
  }

  /** Its maximal runs, in ascending order. */
  *[Symbol.iterator](): IterableIterator<MemoryRange> {
    const bounds = this.#bounds();
    for (let i = 0; i < bounds.length; i += 2) {
      yield new MemoryRange(bounds[i]! * PAGE_SIZE, bounds[i + 1]! * PAGE_SIZE);
    }
  }

  #combine(other: PageSet, operation: SetOperation): PageSet {
    const a = asWords(this.#pages, other.#pages);
    const b = asWords(other.#pages, this.#pages);
    const words = a !== null && b !== null ? combineWords(a, b, operation) : null;
    if (words !== null) return PageSet.#ofWords(words);
    return PageSet.#ofBounds(combineBounds(this.#bounds(), other.#bounds(), operation));
  }

  #bounds(): Bounds {
    const pages = this.#pages;
    return pages.kind === "runs" ? pages.bounds : boundsOfWords(pages, countWords(pages.words).runs);
  }
}

/** The pages as words, if they are, or if they take no more than those they meet; else `null`. */
function asWords(pages: Pages, others: Pages): PageWords | null {
  if (pages.kind === "words") return pages;
  if (others.kind === "runs") return null;
  const { bounds } = pages;
  return (bounds[bounds.length - 1]! - bounds[0]!) / 32 > others.words.length ? null : wordsOfBounds(bounds);
}

function checkSet(other: unknown): void {
  if (!isPageSet(other)) throw new TypeError("The other operand must be a PageSet");
}
