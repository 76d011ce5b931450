/**
 * Random choices that a seed repeats.
 *
 * @module
 */

/** A source of random choices (mulberry32). */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  /** A number of 32 bits. */
  next(): number {
    this.#state = (this.#state + 0x6d2b_79f5) >>> 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return (t ^ (t >>> 14)) >>> 0;
  }

  /** An integer from 0 up to but not including `limit`. */
  below(limit: number): number {
    return this.next() % limit;
  }

  /** Whether something happens that happens once in so many times. */
  oneIn(times: number): boolean {
    return this.below(times) === 0;
  }

  /** One of several. */
  of<T>(choices: readonly T[]): T {
    if (choices.length === 0) throw new Error("There is nothing to choose from");
    return choices[this.below(choices.length)] as T;
  }
}
