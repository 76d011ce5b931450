/**
 * KVM's log of written pages as one bitmap a memory slot, with manual protection: reading the bitmap changes nothing, and
 * clearing bits makes KVM notice the next write of their pages again.
 *
 * ```
 *   KVM_GET_DIRTY_LOG     a copy of the slot's bits              a few microseconds a GiB
 *   mark                  all bits are told                      before they are cleared, so that nothing is lost
 *   KVM_CLEAR_DIRTY_LOG   the chunk's bits, and no others        the guest waits for one chunk at most, not for a GiB
 * ```
 *
 * A slot made with the log on begins with no bits. One whose log is switched on later begins with all of them where KVM
 * can (`INITIALLY_SET`), which costs it nothing; they are cleared at once, in chunks again.
 *
 * Why it is safe: the bitmap handed to KVM has a bit for each page of the slot, rounded up to the 64 that KVM writes, and
 * lies in a buffer that this object keeps and the engine does not move.
 *
 * @module
 */

import { MembackingError } from "../../src/core/errors.ts";
import { LeftBehind } from "../../src/core/left_behind.ts";
import { type MemoryRange, PAGE_SIZE } from "../../src/core/memory_range.ts";
import { firstWordSet, popcount, WordRuns } from "../../src/core/page_runs.ts";
import type { MarkDirty, MarkDirtyBitmap } from "../../src/core/targets.ts";
import { addressOf } from "../os/view.ts";
import { KVM_DIRTY_LOG_INITIALLY_SET, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, KvmCap } from "./constants.ts";
import type { DirtySource } from "./dirty_source.ts";
import { ioctl, ioctlValue } from "./ioctl.ts";
import { CLEAR_DIRTY_LOG, DIRTY_LOG } from "./layout.ts";
import type { Slot } from "./slot_book.ts";
import { enableCap } from "./vm_requests.ts";

/** How many written pages are cleared at a time: 16 MiB, a tenth of a millisecond. A multiple of 64. */
const CHUNK = 4096;
/** KVM handles bits by the 64. */
const GRAIN = 64;

// One struct for each request, filled in where it is made: most machines are never asked, and arrays cost memory outside
// of the heap.
const getStruct = new Uint8Array(DIRTY_LOG.size);
const getView = new DataView(getStruct.buffer);
const clearStruct = new Uint8Array(CLEAR_DIRTY_LOG.size);
const clearView = new DataView(clearStruct.buffer);

/** The log of one virtual machine. */
export class DirtyBitmap implements DirtySource {
  /** What slots that are gone had. */
  readonly #left = new LeftBehind();
  #flags = 0;
  // Made when first used: most machines are never asked.
  #words: Uint32Array<ArrayBuffer> = new Uint32Array(0);
  #address = 0n;

  prepare(vm: number): void {
    if (this.#flags !== 0) return;
    const flags = ioctlValue(vm, "KVM_CHECK_EXTENSION", KvmCap.MANUAL_DIRTY_LOG_PROTECT2);
    if ((flags & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE) === 0) {
      throw new MembackingError(
        "This KVM cannot track written pages: it has no KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, which Linux 5.1 brought",
      );
    }
    protectManually(vm, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE);
    this.#flags = flags;
  }

  begin(vm: number, slot: Slot, turn: () => number): number {
    if ((this.#flags & KVM_DIRTY_LOG_INITIALLY_SET) === 0) return turn();
    // Kept on for as long as it takes to clear: only so does KVM protect huge pages, of which there may be some.
    protectManually(vm, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET);
    try {
      const failed = turn();
      if (failed === 0) this.#clearAll(vm, slot);
      return failed;
    } finally {
      protectManually(vm, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE);
    }
  }

  born(): void {}

  leaving(vm: number, slot: Slot): void {
    try {
      const keep = (start: number, words: Uint32Array) =>
        this.#left.marks.addWords(start / PAGE_SIZE, words, 0, slot.range.end / PAGE_SIZE);
      this.#harvest(vm, slot, slot.range, keep, false);
    } catch {
      // What cannot be known may all have been written.
      this.#left.marks.add(slot.range.start, slot.range.end);
    }
  }

  gone(): void {}

  ended(): void {}

  take(vm: number, slots: readonly Slot[], range: MemoryRange, mark: MarkDirty, markBitmap?: MarkDirtyBitmap): void {
    this.takeRest(range, mark);
    for (const slot of slots) this.#harvest(vm, slot, range, markBitmap ?? byRuns(mark), true);
  }

  takeRest(range: MemoryRange, mark: MarkDirty): void {
    this.#left.handOut(mark, range);
  }

  vcpuMade(): undefined {}

  close(): void {}

  /** Tells the bits of `slot` in `range`, and with `clear` takes them out of the log. */
  #harvest(vm: number, slot: Slot, range: MemoryRange, mark: MarkDirtyBitmap, clear: boolean): void {
    const { start, end } = slot.range;
    const pages = (end - start) / PAGE_SIZE;
    const from = Math.max(0, (range.start - start) / PAGE_SIZE);
    const to = Math.min(pages, (range.end - start) / PAGE_SIZE);
    if (from >= to) return;
    const words = this.#read(vm, slot, pages);
    keepBits(words, from, to);
    const last = (to + 31) >>> 5;
    const first = firstWordSet(words, from >>> 5, last);
    if (first === last) return;
    // Whoever is told cannot have these words overwritten, nor the slot taken away, before they are cleared.
    mark(start + 32 * first * PAGE_SIZE, words.subarray(first, last));
    if (clear) this.#clear(vm, slot, words, first, last);
  }

  /** Takes the bits of words `[first, last)` out of the log of `slot`, in chunks. */
  #clear(vm: number, slot: Slot, words: Uint32Array, first: number, last: number): void {
    const pages = slot.range.length / PAGE_SIZE;
    let begin = evenBelow(first);
    let bits = 0;
    for (let at = begin; at < last;) {
      const stop = Math.min(last, at + CHUNK / 32);
      for (let i = at; i < stop; i++) if (words[i] !== 0) bits += popcount(words[i]!);
      const next = firstWordSet(words, stop, last);
      at = next === last ? last : evenBelow(next);
      if (bits < CHUNK && at < last) continue;
      const firstPage = 32 * begin;
      const count = Math.min(pages, Math.ceil(32 * stop / GRAIN) * GRAIN) - firstPage;
      this.#clearBits(vm, slot, firstPage, count, this.#address + BigInt(firstPage / 8));
      begin = at;
      bits = 0;
    }
  }

  /** The bits of `slot`. */
  #read(vm: number, slot: Slot, pages: number): Uint32Array<ArrayBuffer> {
    this.#grow(pages);
    getView.setUint32(DIRTY_LOG.slot, slot.slot, true);
    getView.setBigUint64(DIRTY_LOG.dirty_bitmap, this.#address, true);
    ioctl(vm, "KVM_GET_DIRTY_LOG", getStruct, () => `slot ${slot.slot}, ${slot.range}`);
    return this.#words;
  }

  /** Clears all bits of `slot`, in chunks. */
  #clearAll(vm: number, slot: Slot): void {
    this.#grow(CHUNK);
    this.#words.fill(0xffffffff, 0, CHUNK / 32);
    const pages = slot.range.length / PAGE_SIZE;
    for (let at = 0; at < pages; at += CHUNK) {
      this.#clearBits(vm, slot, at, Math.min(CHUNK, pages - at), this.#address);
    }
  }

  #clearBits(vm: number, slot: Slot, firstPage: number, count: number, bitmap: bigint): void {
    clearView.setUint32(CLEAR_DIRTY_LOG.slot, slot.slot, true);
    clearView.setUint32(CLEAR_DIRTY_LOG.num_pages, count, true);
    clearView.setBigUint64(CLEAR_DIRTY_LOG.first_page, BigInt(firstPage), true);
    clearView.setBigUint64(CLEAR_DIRTY_LOG.dirty_bitmap, bitmap, true);
    // SAFETY: KVM reads the bits of `count` pages, rounded up to 64, all of them inside `#words`.
    ioctl(vm, "KVM_CLEAR_DIRTY_LOG", clearStruct, () => `slot ${slot.slot}, ${slot.range}`);
  }

  /** Makes room for the bits of `pages` pages. */
  #grow(pages: number): void {
    const words = Math.ceil(pages / GRAIN) * 2;
    if (words <= this.#words.length) return;
    this.#words = new Uint32Array(new ArrayBuffer(4 * words));
    this.#address = BigInt(addressOf(this.#words));
  }
}

/** Has `mark` told of each run in a bitmap. */
function byRuns(mark: MarkDirty): MarkDirtyBitmap {
  return (start, words) => {
    const runs = new WordRuns(words);
    runs.restart(0, 32 * words.length);
    while (runs.next()) mark(start + runs.start * PAGE_SIZE, start + runs.end * PAGE_SIZE);
  };
}

/** The word at which the 64 bits begin that `word` is in. */
function evenBelow(word: number): number {
  return word - word % 2;
}

/**
 * Clears all bits but those from `from` to `to`, as far as they lie in a 64-bit word with one of these: what is outside of
 * what was asked for stays in KVM's log.
 */
function keepBits(words: Uint32Array, from: number, to: number): void {
  const low = from >>> 5;
  const high = (to - 1) >>> 5;
  words[low]! &= -1 << (from & 31);
  words[high]! &= -1 >>> (31 - ((to - 1) & 31));
  if (low % 2 === 1) words[low - 1] = 0;
  if (high % 2 === 0 && high + 1 < words.length) words[high + 1] = 0;
}

function protectManually(vm: number, flags: number): void {
  enableCap(vm, KvmCap.MANUAL_DIRTY_LOG_PROTECT2, [BigInt(flags)]);
}
