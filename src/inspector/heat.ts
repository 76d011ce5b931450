import { residentPages } from "../../ffi/host/private_pages.ts";
import type { MembackingError } from "../core/errors.ts";
import { PageSet } from "../core/page_set.ts";
import type { Span } from "../core/span.ts";
import { piecesIn } from "../core/map/view.ts";
import type { DirtyTracker } from "../memory/dirty_tracker.ts";
import type { Window } from "./axis.ts";
import type { Lane, LanePiece } from "./lanes.ts";
import type { Source } from "./source.ts";

/** How often, in milliseconds. */
const INTERVAL = 1000;
/** For how long after the last question. */
const PATIENCE = 3 * INTERVAL;
/** How much memory is looked at between two looks at the clock, in bytes. */
const SLICE = 0x400_0000;
/** How long it may go on at a time, in milliseconds; then others have ten times as long. */
const TURN = 2;
/** How many runs of pages are kept. */
const MOST_RUNS = 200_000;

/**
 * Which pages are in memory, and which were written in the last second, of what is on the screen, for as long as
 * somebody asks.
 */
export class Heat implements Disposable {
  readonly #source: Source;
  readonly #news: () => void;
  #wanted: Span = { start: 0, end: 0 };
  /** When it was asked for last. */
  #asked = -Infinity;
  #isRunning = false;
  #isDisposed = false;
  #tracker: DirtyTracker | null = null;
  #resident: readonly Span[] = [];
  #written = PageSet.EMPTY;
  #trouble: string | null = null;

  /** `news` is called when there is something new to see. */
  constructor(source: Source, news: () => void) {
    this.#source = source;
    this.#news = news;
  }

  /** What is known of `window` by now; from now on that is what is looked at. */
  lanes(window: Window): Lane[] {
    this.#wanted = { start: window.start, end: window.end };
    this.#asked = performance.now();
    if (!this.#isRunning && !this.#isDisposed && !this.#source.regions.disposed) this.#start();
    const label = (text: string) => this.#trouble === null ? text : `${text}: ${this.#trouble}`;
    return [
      { key: "resident", kind: "heat", label: label("in memory"), pieces: heatPieces(this.#resident, window) },
      { key: "written", kind: "heat", label: label("written"), pieces: heatPieces(this.#written, window) },
    ];
  }

  /** Looks no more. */
  [Symbol.dispose](): void {
    this.#isDisposed = true;
    this.#end();
  }

  #start(): void {
    this.#isRunning = true;
    this.#run().catch((error) => this.#trouble = String(error)).finally(() => {
      this.#isRunning = false;
      this.#end();
    });
  }

  #end(): void {
    const tracker = this.#tracker;
    this.#tracker = null;
    this.#written = PageSet.EMPTY;
    if (tracker !== null && !this.#source.regions.disposed) tracker[Symbol.dispose]();
  }

  get #isWanted(): boolean {
    return !this.#isDisposed && !this.#source.regions.disposed && performance.now() - this.#asked < PATIENCE;
  }

  async #run(): Promise<void> {
    const tracker = this.#tracker = this.#source.regions.trackDirty();
    while (this.#isWanted) {
      const began = performance.now();
      try {
        this.#resident = await this.#lookAtMemory();
        if (!this.#isWanted) return;
        this.#written = tracker.take();
        this.#trouble = null;
      } catch (error) {
        // A request may be under way, or a target does not say: what is known stays, and it is said.
        this.#trouble = (error as MembackingError).message;
      }
      this.#news();
      await pause(Math.max(TURN, INTERVAL - (performance.now() - began)));
    }
  }

  async #lookAtMemory(): Promise<Span[]> {
    const found: Span[] = [];
    const { map } = this.#source;
    const { base } = map;
    if (!map.isReal) return found;
    const { start, end } = this.#wanted;
    let turn = performance.now();
    for (const piece of piecesIn(map.state(), start, end)) {
      for (let at = piece.start; at < piece.end; at += SLICE) {
        const length = Math.min(SLICE, piece.end - at);
        for (const pages of residentPages(base + at, length)) {
          found.push({ start: pages.start - base, end: pages.end - base });
        }
        if (found.length > MOST_RUNS) return found;
        const took = performance.now() - turn;
        if (took < TURN) continue;
        await pause(10 * took);
        if (!this.#isWanted) return found;
        turn = performance.now();
      }
    }
    return found;
  }
}

/** How much of each column the pages cover. */
function heatPieces(pages: Iterable<Span>, window: Window): LanePiece[] {
  const { axis, from, step } = window;
  const columns = new Float64Array(Math.ceil((window.to - from) / step));
  for (const { start, end } of pages) {
    if (end <= window.start || start >= window.end) continue;
    let at = Math.max(0, (axis.placeOf(start) - from) / step);
    const to = Math.min(columns.length, (axis.placeOf(end) - from) / step);
    while (at < to) {
      const column = Math.floor(at);
      const next = Math.min(to, column + 1);
      columns[column] = (columns[column] ?? 0) + next - at;
      at = next;
    }
  }
  const pieces: LanePiece[] = [];
  for (let first = 0; first < columns.length;) {
    const share = shareOf(columns[first]);
    let last = first + 1;
    while (last < columns.length && shareOf(columns[last]) === share) last++;
    if (share > 0) {
      const [start, end] = [axis.addressAt(from + first * step), axis.addressAt(from + last * step)];
      pieces.push([Math.floor(start), Math.ceil(end), "heat", String(share), null]);
    }
    first = last;
  }
  return pieces;
}

/** In hundredths; what is above nothing is at least one of them. */
function shareOf(covered = 0): number {
  return covered <= 0 ? 0 : Math.min(1, Math.max(0.01, Math.round(covered * 100) / 100));
}

function pause(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}
