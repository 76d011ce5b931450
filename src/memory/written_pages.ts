/**
 * Who has written what since whom looked: the account of written pages, kept while somebody tracks them.
 *
 * ```
 *   partitions, DMA targets   takeDirty          \
 *   accessors, clients        WriteMarks          >  found  ->  each tracker's own set, until it takes it
 *   locks that may write      as long as held    /
 *   requests                  what steps touched
 * ```
 *
 * The promise is a superset and never less. So what cannot be known counts as written: all that a target without
 * `takeDirty` may write, and all that one may write that fails to answer when it is asked for the last time. An exception from
 * where none is expected, such as at the end of the stack, leaves doubt about what it has interrupted: then all memory counts
 * as written.
 *
 * @module
 */

import { plainWords } from "../../ffi/os/plain_bytes.ts";
import { DisposedError, MembackingError } from "../core/errors.ts";
import { MemoryRange, PAGE_SIZE } from "../core/memory_range.ts";
import { PageMarks } from "../core/page_marks.ts";
import { PageSet } from "../core/page_set.ts";
import { type Echoes, echoesIn, withEchoes } from "../core/map/echoes.ts";
import type { DmaState, PartitionState, State } from "../core/map/state.ts";
import type { Span } from "../core/span.ts";
import { type DmaStep, isTurn, type SlotStep, type Step } from "../core/plan/steps.ts";
import { expectSync } from "../targets/sync.ts";
import type { DmaTarget } from "../targets/targets.ts";
import { WriteMarks } from "./write_marks.ts";

/** One who tracks written pages. */
export interface Consumer {
  /** What was found and not taken yet. */
  pending: PageSet;
  /** Whether a request that ends it is under way. */
  isEnding?: boolean;
}

/** A request that has been carried out or undone. */
export interface CarriedOut {
  /** The steps that may have been done. */
  readonly begun: readonly Step[];
  /** Whether vCPUs are held. */
  readonly isHeld: boolean;
  /** Whether all memory has the same bytes as before. */
  readonly keepsBytes: boolean;
  /** Whether it has happened. */
  readonly committed: boolean | null;
}

/** What the account asks of those around it. */
export interface WrittenSources {
  /** Where guest memory ends, in bytes. */
  readonly length: number;
  /** Whether guest memory can be written through this package at all. */
  readonly isAccessible: boolean;
  /** Who holds locks that may write, all those in other threads included, at this moment. */
  writers(): Iterable<{ readonly start: number; readonly end: number }>;
  /** Has accessors mark what they write from now on, or no more with `null`. */
  markIn(marks: WriteMarks | null): void;
  /** Calls `look` while no client writes guest memory. */
  alone(look: () => void): void;
}

/** What a target is asked about. */
interface Asked extends Span {
  readonly offset: number;
}

const NOT_ASKED = "This target is not asked what it has written, so nobody knows which pages are meant";

/** The account of written pages of one region manager. */
export class WrittenPages {
  readonly #sources: WrittenSources;
  readonly #consumers = new Set<Consumer>();
  /** What was found and not given to consumers yet. */
  readonly #found = new PageMarks();
  #marks: WriteMarks | null = null;
  /** Whether anybody tracks. */
  isOn = false;
  /** Whether something is under way, or was ended by an exception, of which nobody can tell how far it got. */
  #inDoubt = false;
  /** What showed twice before the latest request. */
  #echoes: Echoes = [];
  /** What the target is asked about that is asked now, in GPAs of this manager, and where those are in its own. */
  #asked: Asked | null = null;
  /**
   * What a target says it has written. That is input: it is cut to what was asked for, and what are no numbers counts as
   * all of it. One function for all, since thousands of runs may come, and code is compiled for the function it calls.
   */
  readonly #hear = (first: number, last: number): void => {
    if (this.#asked === null) throw new TypeError(NOT_ASKED);
    const { offset, start, end } = this.#asked;
    const from = first - offset;
    const to = last - offset;
    this.#found.add(from >= start ? from : start, to <= end ? to : end);
  };
  /** The same by a bitmap, which is input as well. */
  readonly #hearBitmap = (first: number, words: Uint32Array): void => {
    if (this.#asked === null) throw new TypeError(NOT_ASKED);
    const { offset, start, end } = this.#asked;
    const page = (first - offset) / PAGE_SIZE;
    const plain = plainWords(words);
    if (!Number.isSafeInteger(page) || plain === null) return this.#found.add(start, end);
    this.#found.addWords(page, plain, start / PAGE_SIZE, Math.ceil(end / PAGE_SIZE));
  };

  constructor(sources: WrittenSources) {
    this.#sources = sources;
  }

  /** Whether `consumer` tracks. */
  has(consumer: Consumer): boolean {
    return this.#consumers.has(consumer);
  }

  /** Makes ready for `add`, which cannot fail then. */
  prepare(): void {
    if (this.#sources.isAccessible) this.#marks ??= WriteMarks.create(this.#sources.length);
  }

  /** Begins an account for `consumer`: of what is written from now on. */
  add(consumer: Consumer, state: State): void {
    if (this.isOn) {
      // What was written before is the others' alone.
      this.#gather(state);
    } else {
      this.#sources.markIn(this.#marks);
      this.#harvestAll(state);
      this.#found.take();
      this.#inDoubt = false;
    }
    this.#consumers.add(consumer);
    this.isOn = true;
  }

  /** Ends it. */
  remove(consumer: Consumer): void {
    if (!this.#consumers.delete(consumer) || this.#consumers.size > 0) return;
    this.isOn = false;
    this.#sources.markIn(null);
    this.#marks?.clear();
    this.#found.take();
  }

  /** Ends all of them, and gives up what they took. */
  close(): void {
    for (const consumer of [...this.#consumers]) this.remove(consumer);
    this.#marks?.[Symbol.dispose]();
    this.#marks = null;
  }

  /**
   * What was written since `consumer` took last.
   *
   * @throws {DisposedError} If it tracks no longer, or not yet.
   * @throws {MembackingError} If a target fails to say what it has written. What is known by then is kept for next time.
   */
  take(consumer: Consumer, state: State): PageSet {
    if (!this.#consumers.has(consumer)) throw new DisposedError("The dirty tracker");
    const failures = this.#gather(state);
    if (failures.length > 0) {
      throw new MembackingError(
        "Not every target could say what it has written; nothing is lost, take again",
        { cause: failures.length === 1 ? failures[0] : new AggregateError(failures) },
      );
    }
    const { pending } = consumer;
    consumer.pending = PageSet.EMPTY;
    return pending;
  }

  /** Counts `[start, end)` as written: something else shows there now, or its contents are gone. */
  mark(start: number, end: number): void {
    if (this.isOn) this.#found.add(start, end);
  }

  /**
   * Begins something of which nobody could tell how far it got, if an exception ended it: until the answer, which is
   * whether there was doubt before, is given back.
   */
  doubt(isInDoubt: boolean): boolean {
    const before = this.#inDoubt;
    this.#inDoubt = isInDoubt;
    return before;
  }

  /**
   * Looks at the state that a request is to change: what shows twice, and those partitions that were disposed by
   * themselves, which are asked for what they had before they leave it.
   */
  beforeRequest(old: State): void {
    if (!this.isOn) return;
    const { partitions } = old;
    this.#echoes = echoesIn(old);
    for (const partition of partitions) {
      if (partition.target.disposed ?? false) {
        this.#harvestLast(() => this.#askPartition(partition), partition.slots.held);
      }
    }
  }

  /** Asks a target for what it has written in a range that `step` is about to take away from it. */
  beforeStep(step: SlotStep | DmaStep): void {
    if (!this.isOn || step.to !== null) return;
    const { start, end } = step;
    // Whether it is there is not known, and less what it has written.
    if (step.uncertain) return this.#found.add(start, end);
    if (step.from?.writable === false) return;
    const ask = step.kind === "slot"
      ? () => this.#askPartition(step.partition, step)
      : () => this.#askDma(step.dma, step);
    this.#harvestLast(ask, [{ start, end, value: { writable: true } }]);
  }

  /**
   * Counts as written what the steps of a request have touched, once they are done or undone. Where nobody holds vCPUs, a
   * guest may have written between the last look and the end of a slot.
   */
  afterSteps({ begun, isHeld, keepsBytes, committed }: CarriedOut): void {
    if (!this.isOn || keepsBytes) return;
    const before = this.doubt(true);
    const undone = committed !== true;
    for (const step of begun) {
      const { start, end } = step;
      if (step.kind === "host") this.#found.add(start, end);
      else if (step.kind === "slot") {
        // A log that was to end, and goes on, was not there in between.
        if (isTurn(step) ? undone && step.from?.logDirty === true : !isHeld && this.#couldWrite(step, undone)) {
          this.#found.add(start, end);
        }
      }
    }
    // What was written where something else shows now may still show elsewhere.
    if (this.#echoes.length > 0) this.#found.addSet(withEchoes(this.#found.take(), this.#echoes));
    this.doubt(before);
  }

  /** Whether a guest may have written in a slot that has gone, be it one that came with the request that was undone. */
  #couldWrite({ from, to }: SlotStep, undone: boolean): boolean {
    return from?.writable === true || (undone && to?.writable === true);
  }

  /** Asks everybody, and gives what they say to every consumer. Returns what failed. */
  #gather(state: State): unknown[] {
    if (this.doubt(true)) this.#found.add(0, this.#sources.length);
    const failures = this.#harvestAll(state);
    this.#share(state);
    this.doubt(false);
    return failures;
  }

  /** Gives what was found to every consumer, with wherever else it shows. */
  #share(state: State): void {
    const found = withEchoes(this.#found.take(), echoesIn(state));
    if (found.count === 0) return;
    for (const consumer of this.#consumers) consumer.pending = consumer.pending.union(found);
  }

  /** Asks everybody. What one finds is kept, whatever becomes of the next. */
  #harvestAll({ partitions, dmaTargets }: State): unknown[] {
    const found = this.#found;
    this.#sources.alone(() => {
      this.#marks?.take((start, end) => found.add(start, end));
      for (const { start, end } of this.#sources.writers()) found.add(start, end);
    });
    const failures: unknown[] = [];
    const attempt = (ask: () => void) => {
      try {
        ask();
      } catch (error) {
        failures.push(error);
      }
    };
    for (const partition of partitions) {
      if (partition.target.disposed ?? false) {
        this.#harvestLast(() => this.#askPartition(partition), partition.slots.held);
      } else attempt(() => this.#askPartition(partition));
    }
    for (const dma of dmaTargets) attempt(() => this.#askDma(dma));
    return failures;
  }

  /** Asks a target that cannot be asked again; if it fails, all of `book` that it may write counts as written. */
  #harvestLast(
    ask: () => void,
    book: Iterable<{ readonly start: number; readonly end: number; readonly value: { readonly writable: boolean } }>,
  ): void {
    try {
      ask();
    } catch {
      this.#addWritable(book);
    }
  }

  #askPartition({ target, offset, slots }: PartitionState, within?: { start: number; end: number }): void {
    if (target.takeDirty === undefined) return this.#addWritable(slots.held, within);
    const { start, end } = within ?? { start: 0, end: this.#sources.length };
    const range = new MemoryRange(start + offset, end + offset);
    this.#ask({ offset, start, end }, () => target.takeDirty?.(range, this.#hear, this.#hearBitmap));
  }

  #askDma({ target, mappings }: DmaState, within?: { start: number; end: number }): void {
    // SAFETY: the manager puts nothing but DmaTargets into a state.
    const dma = target as DmaTarget;
    if (dma.takeDirty === undefined) return this.#addWritable(mappings.held, within);
    this.#ask({ offset: 0, start: 0, end: this.#sources.length }, () => dma.takeDirty?.(this.#hear));
  }

  /** Asks a target; it is heard as long as that takes. */
  #ask(asked: Asked, ask: () => unknown): void {
    this.#asked = asked;
    try {
      expectSync(ask());
    } finally {
      this.#asked = null;
    }
  }

  #addWritable(
    book: Iterable<{ readonly start: number; readonly end: number; readonly value: { readonly writable: boolean } }>,
    within?: { start: number; end: number },
  ): void {
    if (within !== undefined) return this.#found.add(within.start, within.end);
    for (const { start, end, value } of book) if (value.writable) this.#found.add(start, end);
  }
}
