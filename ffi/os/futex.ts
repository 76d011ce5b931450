/**
 * Waiting for a word of memory that other processes share: what `Atomics.wait` is for threads.
 *
 * Why it is safe: the kernel reads the word, which lies in memory that is mapped for as long as its `FutexWords` is in
 * use, and writes nothing. A wait has an end at all events.
 *
 * @module
 */

import { libc } from "./libc.ts";
import { SYS_FUTEX } from "./mman.ts";
import { addressOf } from "./view.ts";

const FUTEX_WAIT = 0n;
const FUTEX_WAKE = 1n;
const EVERYBODY = 0x7fff_ffffn;

/** Words of a mapping that processes share. */
export class FutexWords {
  /** The words, for `Atomics`. */
  readonly words: Int32Array<ArrayBuffer>;
  readonly #address: number;
  readonly #timeout = new BigInt64Array(2);

  /** For the first `length` words of a mapping. */
  constructor(bytes: ArrayBuffer, length: number) {
    this.words = new Int32Array(bytes, 0, length);
    this.#address = addressOf(this.words);
  }

  /** Sleeps while the word at `index` is `value`, for `timeout` milliseconds at most. */
  wait(index: number, value: number, timeout: number): void {
    const whole = Math.floor(timeout / 1000);
    this.#timeout[0] = BigInt(whole);
    this.#timeout[1] = BigInt(Math.round((timeout - 1000 * whole) * 1e6));
    // SAFETY: a word of the mapping. Whatever ends the wait, the caller looks at the word again.
    libc().sys.syscallFutex(SYS_FUTEX, this.#at(index), FUTEX_WAIT, BigInt(value >>> 0), this.#timeout);
  }

  /** Wakes whoever sleeps on the word at `index`. */
  notify(index: number): void {
    // SAFETY: a word of the mapping.
    libc().sys.syscallFutex(SYS_FUTEX, this.#at(index), FUTEX_WAKE, EVERYBODY, this.#timeout);
  }

  #at(index: number): bigint {
    return BigInt(this.#address + index * Int32Array.BYTES_PER_ELEMENT);
  }
}
