/**
 * One pass over what changes, with two cursors: before and after.
 *
 * ```
 *   before    |--- a ---|       |-- b --|
 *   after     |--- a ---|---- c ----|
 *   segments  [         |       |   |   ]
 * ```
 *
 * Whatever follows the map keeps a track that is shown each segment, in order, and ends with the steps it needs.
 *
 * @module
 */

import { Sight } from "../map/sight.ts";
import type { State } from "../map/state.ts";
import type { Span } from "../span.ts";

/** What one follower of the map has to do, worked out segment by segment. */
export interface Track {
  /** A span begins at `start`. `left` shows what lies just below it, which stays as it is. */
  begin(start: number, left: Sight): void;
  /** From `start` to `end` there is one thing before and one after. */
  segment(start: number, end: number, before: Sight, after: Sight): void;
  /** The span ends at `end`. `right` shows what lies there, which stays as it is. */
  finish(end: number, right: Sight): void;
}

/** The walk of one planner, whose cursors are kept from one to the next. */
export class Walk {
  readonly #before: Sight = new Sight();
  readonly #after: Sight = new Sight();

  /** Shows each of `tracks` the way from `old` to `next` over `spans`, which are in order and do not touch. */
  go(old: State, next: State, spans: readonly Span[], tracks: readonly Track[]): void {
    const before = this.#before;
    const after = this.#after;
    before.turnTo(old);
    after.turnTo(next);
    for (let i = 0; i < spans.length; i++) {
      const { start, end } = spans[i]!;
      before.move(start - 1);
      for (let t = 0; t < tracks.length; t++) tracks[t]!.begin(start, before);
      for (let at = start; at < end;) {
        before.move(at);
        after.moveTo(at, before);
        let stop = before.end < after.end ? before.end : after.end;
        if (stop > end) stop = end;
        for (let t = 0; t < tracks.length; t++) tracks[t]!.segment(at, stop, before, after);
        at = stop;
      }
      before.move(end);
      for (let t = 0; t < tracks.length; t++) tracks[t]!.finish(end, before);
    }
  }
}
