import { PAGE_SIZE } from "../core/memory_range.ts";
import type { Span } from "../core/span.ts";

const WORDS = PAGE_SIZE / 4;

/** Whether page number `page` is all zeros. */
function isZero(words: Int32Array, page: number): boolean {
  const end = (page + 1) * WORDS;
  let at = page * WORDS;
  while (at < end && words[at] === 0) at++;
  return at === end;
}

/** The pages of `words` as runs of those that hold anything and of those that are zeros, in bytes from its beginning. */
export function runsOf(words: Int32Array): (Span & { readonly isZero: boolean })[] {
  const runs: { start: number; end: number; isZero: boolean }[] = [];
  for (let page = 0; page < words.length / WORDS; page++) {
    const zero = isZero(words, page);
    const last = runs.at(-1);
    if (last !== undefined && last.isZero === zero) last.end += PAGE_SIZE;
    else runs.push({ start: page * PAGE_SIZE, end: (page + 1) * PAGE_SIZE, isZero: zero });
  }
  return runs;
}
