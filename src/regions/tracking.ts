import { setTrackers } from "../core/map/edits.ts";
import { PageSet } from "../core/page_set.ts";
import { DirtyTracker } from "../memory/dirty_tracker.ts";
import type { MemoryLocks } from "../memory/memory_locks.ts";
import type { WriteMarks } from "../memory/write_marks.ts";
import { type Consumer, WrittenPages } from "../memory/written_pages.ts";
import type { MemoryMap } from "../requests/memory_map.ts";

/** Clients that write guest memory. */
export interface WritingClients {
  /** Has them mark what they write from now on, or no more with `null`. */
  markIn(marks: WriteMarks | null): void;
  /** Calls `look` while none of them writes. */
  alone(look: () => void): void;
}

/** What tracking works with. */
export interface TrackingOptions {
  /** Where guest memory ends, in bytes. */
  readonly length: number;
  /** Whether guest memory can be written through this package at all. */
  readonly isAccessible: boolean;
  readonly locks: MemoryLocks;
  readonly map: () => MemoryMap;
  readonly clients: () => WritingClients | undefined;
  /** Has accessors look anew at the memory map, and at where to mark. */
  readonly invalidate: () => void;
}

/** Beginning and ending to track written pages, as requests. */
export class Tracking {
  /** The account. */
  readonly written: WrittenPages;
  readonly #options: TrackingOptions;

  constructor(options: TrackingOptions) {
    this.#options = options;
    const { length, isAccessible, locks } = options;
    this.written = new WrittenPages({
      length,
      isAccessible,
      writers: () => locks.writers(),
      markIn: (marks) => this.#markIn(marks),
      alone: (look) => this.#alone(look),
    });
  }

  /** Begins. */
  track(): DirtyTracker {
    const { written } = this;
    const map = this.#options.map();
    map.check();
    written.prepare();
    const consumer: Consumer = { pending: PageSet.EMPTY };
    this.#setTrackers("track written pages", 1);
    map.whenDecided((committed) => {
      const { committed: state } = map;
      if (committed) map.whileBusy(() => written.add(consumer, state));
    });
    return new DirtyTracker({
      has: (consumer) => written.has(consumer),
      take: (consumer) => {
        map.check();
        const { committed } = map;
        // Targets that are asked what they have written make no requests.
        return map.whileBusy(() => written.take(consumer, committed));
      },
      end: (consumer) => {
        if (consumer.isEnding) return;
        map.check();
        this.#setTrackers("stop tracking written pages", -1);
        consumer.isEnding = true;
        map.whenDecided((committed) => {
          consumer.isEnding = false;
          if (committed) written.remove(consumer);
        });
      },
    }, consumer);
  }

  /** Tells clients that have just come, all of them, where to mark what they write. */
  tell(clients: WritingClients): void {
    if (this.written.isOn) clients.markIn(this.#options.locks.marks);
  }

  #setTrackers(name: string, more: number): void {
    const map = this.#options.map();
    const { current } = map;
    map.request(name, null, setTrackers(current, current.trackers + more, this.#options.length));
  }

  /** Has everybody who writes by this package mark what they write, or no more. */
  #markIn(marks: WriteMarks | null): void {
    const { locks, invalidate, clients } = this.#options;
    locks.marks = marks;
    invalidate();
    clients()?.markIn(marks);
  }

  /** Calls `look` while nobody is in the middle of a write by this package; each begins anew to mark from there on. */
  #alone(look: () => void): void {
    const { invalidate, clients } = this.#options;
    const others = clients();
    const act = () => {
      // First: where an exception ends the look, what has not been looked at yet is marked all the same.
      invalidate();
      look();
    };
    if (others === undefined) act();
    else others.alone(act);
  }
}
