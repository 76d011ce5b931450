/**
 * Runs of pages as plain numbers: what page sets are made of.
 *
 * Ordered runs are one array of boundaries `[start, end, start, end, ...]`, strictly ascending, in page numbers. Seen so, a
 * set is the points where membership changes, and every operation on two sets is one walk over the points of both.
 *
 * @module
 */

/** Boundaries of runs in page numbers, strictly ascending; a run begins at each even index and ends at the next. */
export type Bounds = Float64Array<ArrayBuffer>;

/** Bits of pages: bit `i` of word `w` is page `first + 32 * w + i`. */
export interface PageWords {
  /** The page of the first bit, a multiple of 32. */
  readonly first: number;
  /** The bits. */
  readonly words: Uint32Array<ArrayBuffer>;
}

/** Which pages of two sets are in the result. */
export type SetOperation = "union" | "intersection" | "difference";

const NO_RUNS: Bounds = new Float64Array(0);

/** The index of the first boundary above `page`. Odd: the page lies in a run. */
export function boundAbove(bounds: Bounds, page: number): number {
  let low = 0;
  let high = bounds.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (bounds[middle]! <= page) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Two sets of runs into one, in time linear in their runs. */
export function combineBounds(a: Bounds, b: Bounds, operation: SetOperation): Bounds {
  const made = new Float64Array(a.length + b.length);
  // What `inA + 2 * inB` has to be for a page to be in the result, as bits.
  const wanted = operation === "union" ? 0b1110 : operation === "intersection" ? 0b1000 : 0b0010;
  let length = 0;
  let i = 0;
  let j = 0;
  let inside = 0;
  while (i < a.length || j < b.length) {
    const x = i < a.length ? a[i]! : Infinity;
    const y = j < b.length ? b[j]! : Infinity;
    const at = x < y ? x : y;
    if (x === at) i++;
    if (y === at) j++;
    const now = (wanted >>> ((i & 1) + 2 * (j & 1))) & 1;
    if (now !== inside) made[length++] = at;
    inside = now;
  }
  return length === made.length ? made : made.slice(0, length);
}

/** Any runs, in any order, as boundaries. `runs` holds start and end by turns. */
export function sortRuns(runs: Float64Array): Bounds {
  const count = runs.length / 2;
  const starts = new Float64Array(count);
  const ends = new Float64Array(count);
  for (let i = 0; i < count; i++) {
    starts[i] = runs[2 * i]!;
    ends[i] = runs[2 * i + 1]!;
  }
  // Where membership changes does not depend on which end belongs to which start.
  starts.sort();
  ends.sort();
  const made = new Float64Array(runs.length);
  let length = 0;
  let depth = 0;
  let j = 0;
  for (let i = 0; i < count;) {
    const start = starts[i]!;
    const end = ends[j]!;
    if (start <= end) {
      if (depth++ === 0) {
        // A run that begins where the last one ended continues it.
        if (length > 0 && made[length - 1] === start) length--;
        else made[length++] = start;
      }
      i++;
    } else {
      if (--depth === 0) made[length++] = end;
      j++;
    }
  }
  if (depth > 0) made[length++] = ends[count - 1]!;
  return made.slice(0, length);
}

/** How many pages the runs have. */
export function countBounds(bounds: Bounds): number {
  let count = 0;
  for (let i = 0; i < bounds.length; i += 2) count += bounds[i + 1]! - bounds[i]!;
  return count;
}

/** How many bits of `word` are set. */
export function popcount(word: number): number {
  let v = word - ((word >>> 1) & 0x55555555);
  v = (v & 0x33333333) + ((v >>> 2) & 0x33333333);
  return Math.imul((v + (v >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
}

/** How many pages and how many runs the words have. */
export function countWords(words: Uint32Array): { count: number; runs: number } {
  let count = 0;
  let runs = 0;
  let carry = 0;
  for (let i = 0; i < words.length; i++) {
    const word = words[i]! | 0; // Signed: compiled code keeps it in a register then.
    if (word === 0) {
      carry = 0;
      continue;
    }
    const bits = popcount(word);
    // A run begins at each set bit whose neighbour below is clear.
    const begins = word & ~((word << 1) | carry);
    count += bits;
    runs += begins === word ? bits : popcount(begins);
    carry = word >>> 31;
  }
  return { count, runs };
}

/** Whether runs begin or end in so many of the words `[from, to)` that words are the shorter way to say it. */
export function haveManyRuns(words: Uint32Array, from: number, to: number): boolean {
  const many = (to - from) / 8;
  let parts = 0;
  for (let i = firstWordSet(words, from, to); i < to; i = firstWordSet(words, i + 1, to)) {
    if (words[i] !== 0xffffffff && ++parts > many) return true;
  }
  return false;
}

/** A copy of bits `[from, to)`, which are not none; bit 0 of `words` is `page`, any page. */
export function cutWords(words: Uint32Array, page: number, from: number, to: number): PageWords {
  const first = Math.floor((page + from) / 32) * 32;
  const length = Math.ceil((page + to - first) / 32);
  // Where in `words` the first bit of the copy comes from: in a word, which may be the one before all, and how far up.
  const shift = (first - page) & 31;
  const at = (first - page - shift) / 32;
  const cut = shift === 0 ? words.slice(at, at + length) : new Uint32Array(length);
  if (shift > 0) {
    for (let i = 0; i < length; i++) {
      cut[i] = (wordAt(words, at + i) >>> shift) | (wordAt(words, at + i + 1) << (32 - shift));
    }
  }
  cut[0]! &= -1 << (page + from - first);
  cut[length - 1]! &= -1 >>> (first + 32 * length - page - to);
  return { first, words: cut };
}

/** The index of the first word from `from` on that has a bit set; `to` where there is none. */
export function firstWordSet(words: Uint32Array, from: number, to: number): number {
  let at = from;
  // Most of a bitmap is empty most of the time.
  for (; at + 8 <= to; at += 8) {
    const low = words[at]! | words[at + 1]! | words[at + 2]! | words[at + 3]!;
    if ((low | words[at + 4]! | words[at + 5]! | words[at + 6]! | words[at + 7]!) !== 0) break;
  }
  while (at < to && words[at] === 0) at++;
  return at;
}

/**
 * The runs of set bits in words, one after another. Numbers in fields, and nothing that is called for each run: there may
 * be many thousands of them, and code that has just begun to run is not compiled.
 *
 * ```ts ignore
 * runs.restart(0, 64);
 * while (runs.next()) use(runs.start, runs.end);
 * ```
 */
export class WordRuns {
  /** The first bit of the run. */
  start = 0;
  /** One past its last bit. */
  end = 0;
  readonly #words: Uint32Array;
  /** The last bit to look at, and the word behind it. */
  #to = 0;
  #last = 0;
  /** The word that is looked at, and what of it has not been. */
  #at = 0;
  #rest = 0;

  /** Of `words`, once it has been told from where to where. */
  constructor(words: Uint32Array) {
    this.#words = words;
  }

  /** Looks from bit `from` to bit `to`. */
  restart(from: number, to: number): void {
    this.#to = to;
    this.#last = Math.ceil(to / 32);
    this.#at = Math.floor(from / 32);
    this.#rest = from < to ? this.#word(this.#at) & (-1 << (from & 31)) : 0;
  }

  /** Goes on to the next run. Returns whether there is one. */
  next(): boolean {
    const words = this.#words;
    const last = this.#last;
    let at = this.#at;
    let word = this.#rest;
    while (word === 0) {
      if (++at < last && words[at] === 0) at = firstWordSet(words, at + 1, last);
      if (at >= last) {
        this.#at = last;
        this.#rest = 0;
        return false;
      }
      word = this.#word(at);
    }
    const begin = 31 - Math.clz32(word & -word);
    this.start = 32 * at + begin;
    // The run ends at the first clear bit.
    let clear = ~word & (-1 << begin);
    while (clear === 0) {
      // Long runs are passed eight words at a time, up to the last word, which may end early.
      while (at + 9 < last && areFull(words, at + 1)) at += 8;
      if (++at >= last) {
        this.#at = last;
        this.#rest = 0;
        this.end = this.#to;
        return true;
      }
      word = this.#word(at);
      clear = ~word;
    }
    const end = 31 - Math.clz32(clear & -clear);
    this.end = 32 * at + end;
    this.#at = at;
    this.#rest = word & (-1 << end);
    return true;
  }

  /** A word, without the bits that are not looked at. */
  #word(at: number): number {
    const over = 32 * at + 32 - this.#to;
    return over > 0 ? this.#words[at]! & (-1 >>> over) : this.#words[at]! | 0;
  }
}

/** Whether eight words from `at` on have all their bits set. */
function areFull(words: Uint32Array, at: number): boolean {
  const low = words[at]! & words[at + 1]! & words[at + 2]! & words[at + 3]!;
  return (low & words[at + 4]! & words[at + 5]! & words[at + 6]! & words[at + 7]!) === -1;
}

/** Words as boundaries. */
export function boundsOfWords({ first, words }: PageWords, runs: number): Bounds {
  const made = new Float64Array(2 * runs);
  const found = new WordRuns(words);
  found.restart(0, words.length * 32);
  for (let i = 0; found.next(); i += 2) {
    made[i] = first + found.start;
    made[i + 1] = first + found.end;
  }
  return made;
}

/** Boundaries as words, which cover just the pages from the first to the last. */
export function wordsOfBounds(bounds: Bounds): PageWords {
  const first = Math.floor(bounds[0]! / 32) * 32;
  const words = new Uint32Array(Math.ceil((bounds[bounds.length - 1]! - first) / 32));
  setBits(words, first, bounds);
  return { first, words };
}

function setBits(words: Uint32Array, first: number, bounds: Float64Array): void {
  for (let i = 0; i < bounds.length; i += 2) {
    const start = bounds[i]! - first;
    const end = bounds[i + 1]! - first;
    const low = start >>> 5;
    const high = (end - 1) >>> 5;
    const head = -1 << (start & 31);
    const tail = -1 >>> (31 - ((end - 1) & 31));
    if (low === high) words[low]! |= head & tail;
    else {
      words[low]! |= head;
      words.fill(0xffffffff, low + 1, high);
      words[high]! |= tail;
    }
  }
}

/**
 * Words for all that some words and runs have; `null` where they lie so far apart that most of
 * the words would be empty. Runs may come in any order.
 */
export function gatherWords(some: readonly PageWords[], runs: Float64Array): PageWords | null {
  let first = Infinity;
  let end = 0;
  let room = 0;
  for (const part of some) {
    first = Math.min(first, part.first);
    end = Math.max(end, endOf(part));
    room += 2 * part.words.length;
  }
  for (let i = 0; i < runs.length; i += 2) {
    if (runs[i]! < first) first = Math.floor(runs[i]! / 32) * 32;
    if (runs[i + 1]! > end) end = runs[i + 1]!;
  }
  const length = Math.ceil((end - first) / 32);
  if (length > room + runs.length) return null;
  const words = new Uint32Array(length);
  for (const part of some) {
    const at = (part.first - first) / 32;
    for (let i = 0; i < part.words.length; i++) words[at + i]! |= part.words[i]!;
  }
  setBits(words, first, runs);
  return { first, words };
}

/**
 * Two sets of words into one, word by word; `null` where they lie so far apart that most of the result would be empty.
 */
export function combineWords(a: PageWords, b: PageWords, operation: SetOperation): PageWords | null {
  if (operation === "union") return gatherWords([a, b], NO_RUNS);
  // What is left of `a`: outside of `b` all or nothing.
  const { first } = a;
  const words = a.words.slice();
  const shift = (first - b.first) / 32;
  const from = Math.min(words.length, Math.max(0, -shift));
  const to = Math.max(from, Math.min(words.length, b.words.length - shift));
  if (operation === "difference") {
    for (let i = from; i < to; i++) words[i]! &= ~b.words[i + shift]!;
  } else {
    words.fill(0, 0, from).fill(0, to);
    for (let i = from; i < to; i++) words[i]! &= b.words[i + shift]!;
  }
  return { first, words };
}

function endOf({ first, words }: PageWords): number {
  return first + 32 * words.length;
}

function wordAt(words: Uint32Array, index: number): number {
  return index >= 0 && index < words.length ? words[index]! : 0;
}
