/**
 * What a target has been told + what it should hold -> the least disruptive changes. Partitions (KVM slots) and DMA
 * targets alike.
 *
 * A slot's host address is always the VA mapper's address of its GPA, so whose memory shows there does not matter to
 * KVM: a range that still wants its access throughout stays, whatever is mapped under it. A range that does not want
 * it throughout goes as a whole, since targets cannot split one, and what is left of it outside the change comes back.
 *
 * ```
 *   held     [   rw   ][  rw  ]
 *   changed       |--------|
 *   wanted        | rw |ro |
 *   goes               [  rw  ]
 *   comes              [ro][rw]      the first range is kept: it still is rw wherever it was compared
 * ```
 *
 * Outside the changed spans every range already wants what it has, so that a small change under a big slot costs a
 * small time.
 *
 * @module
 */

import { LimitError } from "../errors.ts";
import { Sight } from "../map/sight.ts";
import { type Book, EMPTY_BOOK, type State } from "../map/state.ts";
import { type Entry, Place, type RangeMap } from "../range_map.ts";
import { parted, type Span } from "../span.ts";
import type { Step } from "./steps.ts";
import type { Track } from "./walk.ts";

/** A range to give, which may still grow. */
interface Added<V> extends Entry<V> {
  end: number;
  /** Where the part of the view begins that it stands for: ranges of one part become one. `NaN` joins nothing. */
  readonly part: number;
}

const NOWHERE: readonly Span[] = [];
const NO_STEPS: readonly Step[] = [];
const NONE: never[] = [];

/** What one walk has found out about one book. */
class Findings<V> {
  book: Book<V> = EMPTY_BOOK;
  spans: readonly Span[] = NOWHERE;
  /** Ranges to take away, each exactly one that the target holds. */
  gone: Entry<V>[] = NONE;
  /** Ranges to give after that, in order. */
  added: Added<V>[] = NONE;
  /** Ranges that stay, under another value that comes to the same. */
  renamed: Entry<V>[] = NONE;
  /** The range of the book, or the gap, that the walk is at. */
  readonly under = new Place<V>();
  /** Whether it is a range that somewhere does not want what it has, or has another value that comes to the same. */
  differs = false;
  isRenamed = false;

  begin(book: Book<V>, spans: readonly Span[]): void {
    // Where the walk goes is most often where the last one went, and most find nothing: to look is less than to store.
    if (book !== this.book) {
      if (book.held !== this.book.held) this.under.forget();
      this.book = book;
    }
    this.spans = spans;
    if (this.gone.length + this.added.length + this.renamed.length > 0) this.gone = this.added = this.renamed = NONE;
    this.differs = this.isRenamed = false;
  }
}

/** The track of one target's book. */
export abstract class BookTrack<V> implements Track {
  /** What the walk under way has found out. */
  protected readonly found: Findings<V> = new Findings();

  /** Begins anew: from what `book` says to what is wanted next, which differs over `spans`. */
  protected from(book: Book<V>, spans: readonly Span[]): void {
    this.found.begin(book, spans);
  }

  /** What the target should hold where `sight` is, `null` for nothing. */
  protected abstract wants(sight: Sight): V | null;
  /** Where the part of the view begins that `sight` is in: it is to be one range, if it can. */
  protected abstract partOf(sight: Sight): number;
  /** Whether a range need not be told anew when the one value gives way to the other. */
  protected abstract isSame(a: V, b: V): boolean;
  /** The step that takes a range away (`to` is null) or gives one. */
  protected abstract step(start: number, end: number, from: V | null, to: V | null, uncertain: boolean): Step;

  begin(): void {}

  segment(start: number, end: number, _before: Sight, after: Sight): void {
    const { found } = this;
    const { under } = found;
    const wanted = after.poisoned ? null : this.wants(after);
    for (let at = start; at < end;) {
      if (!under.has(at)) {
        if (found.differs || found.isRenamed) this.#leave(found, after.state);
        found.book.held.seek(at, under);
      }
      const stop = under.end < end ? under.end : end;
      if (under.value === null) {
        if (wanted !== null) this.#add(at, stop, wanted, this.partOf(after));
      } else if (under.value !== wanted) {
        if (wanted !== null && this.isSame(under.value, wanted)) found.isRenamed = true;
        else found.differs = true;
      }
      at = stop;
    }
  }

  finish(): void {}

  /** Whether nothing of the book changes. */
  get isIdle(): boolean {
    const { gone, added, renamed, differs, isRenamed, book } = this.found;
    return !differs && !isRenamed && gone.length + added.length + renamed.length + book.uncertain.length === 0;
  }

  /**
   * Says that the walk to `next` is over, and what the book says then. The target can hold `capacity` ranges.
   *
   * @throws {LimitError} If they do not fit.
   */
  complete(next: State, capacity: number): Book<V> {
    const { found } = this;
    const { book, spans } = found;
    this.#leave(found, next);
    this.#fit(capacity);
    let { held } = book;
    for (const { start, end } of found.gone) held = held.delete(start, end);
    held = withEntries(withEntries(held, found.renamed), found.added);
    const uncertain = book.uncertain.length === 0 ? NOWHERE : parted(book.uncertain, spans).outside;
    return held === book.held && uncertain.length === book.uncertain.length ? book : { held, uncertain };
  }

  /** The steps that take away: first what an undo that failed left open. */
  get leaving(): readonly Step[] {
    const { gone, spans, book: { uncertain } } = this.found;
    if (gone.length === 0 && uncertain.length === 0) return NO_STEPS;
    const cleared = parted(uncertain, spans).inside;
    return [
      ...cleared.map(({ start, end }) => this.step(start, end, null, null, true)),
      ...gone.map(({ start, end, value }) => this.step(start, end, value, null, false)),
    ];
  }

  /** The steps that give. */
  get arriving(): readonly Step[] {
    return this.found.added.map(({ start, end, value }) => this.step(start, end, null, value, false));
  }

  #add(start: number, end: number, value: V, part: number): void {
    const { found } = this;
    const last = found.added.length === 0 ? undefined : found.added[found.added.length - 1];
    if (last !== undefined && last.end === start && last.part === part) last.end = end;
    else found.added = appended(found.added, { start, end, value, part });
  }

  /** The walk leaves a range of the book: one that does not want what it has goes, and what is wanted of it comes. */
  #leave(found: Findings<V>, next: State): void {
    const { start, end, value } = found.under;
    if (value !== null && found.differs) {
      found.gone = appended(found.gone, { start, end, value });
      this.#addAnew(start, end, value, next);
    } else if (value !== null && found.isRenamed) {
      found.renamed = appended(found.renamed, { start, end, value: this.#wantedAt(start, value, next) });
    }
    found.differs = found.isRenamed = false;
  }

  /** Gives what is wanted of a range that goes. Outside of the changed spans it wants what it had. */
  #addAnew(start: number, end: number, value: V, next: State): void {
    const { spans } = this.found;
    let at = start;
    for (const span of spans) {
      if (span.end <= at) continue;
      if (span.start >= end) break;
      if (at < span.start) this.#add(at, span.start, this.#wantedAt(at, value, next), NaN);
      const to = Math.min(span.end, end);
      const sight = new Sight(next);
      for (at = Math.max(span.start, start); at < to;) {
        sight.move(at);
        const stop = Math.min(sight.end, to);
        const wanted = sight.poisoned ? null : this.wants(sight);
        if (wanted !== null) this.#add(at, stop, wanted, this.partOf(sight));
        at = stop;
      }
    }
    if (at < end) this.#add(at, end, this.#wantedAt(at, value, next), NaN);
  }

  /** What comes to the same as `value` and is there afterwards: `value` itself may not be. */
  #wantedAt(gpa: number, value: V, next: State): V {
    const sight = new Sight(next);
    sight.move(gpa);
    const wanted = this.wants(sight);
    return wanted !== null && this.isSame(value, wanted) ? wanted : value;
  }

  /**
   * Joins ranges that this very request adds where they touch, and only as far as they would not fit otherwise, because
   * a joined range goes whole when a part of it does.
   */
  #fit(capacity: number): void {
    const { found } = this;
    let excess = found.book.held.size - found.gone.length + found.added.length - capacity;
    if (!(excess > 0)) return;
    const joined: Added<V>[] = [];
    for (const range of found.added) {
      const last = joined.at(-1);
      if (excess > 0 && last !== undefined && last.end === range.start && this.isSame(last.value, range.value)) {
        last.end = range.end;
        excess--;
      } else {
        joined.push(range);
      }
    }
    if (excess > 0) throw new LimitError("memory slots", capacity, capacity + excess, "use fewer or larger mappings");
    found.added = joined;
  }
}

/** The list with one more; a list of its own as soon as there is one. */
function appended<T>(list: T[], entry: T): T[] {
  if (list.length === 0) return [entry];
  list.push(entry);
  return list;
}

function withEntries<V>(map: RangeMap<V>, entries: readonly Entry<V>[]): RangeMap<V> {
  for (let i = 0; i < entries.length; i++) {
    const { start, end, value } = entries[i]!;
    map = map.set(start, end, value);
  }
  return map;
}
