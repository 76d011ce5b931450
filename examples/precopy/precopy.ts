/**
 * Pre-copy: moving the memory of a running machine. Everything is copied once while it runs; then what was written
 * meanwhile, again and again, until that is little; then everybody stops, and the last few pages are copied.
 *
 * @module
 */

import { type DirtyTracker, type GuestMemory, MemoryRange, type PageSet } from "membacking";

/** One round of copying. */
export interface Round {
  /** Its number, from 0: the round that copies everything. */
  readonly number: number;
  /** What it copies. */
  readonly pages: PageSet;
  /** Whether the machine stands still. */
  readonly isLast: boolean;
}

/** How a machine is moved. */
export interface PreCopyOptions {
  /** What to copy in the first round, which began when the tracker did. */
  readonly everything: PageSet;
  /** Copies a range to the other side. */
  readonly copy: (range: MemoryRange) => void;
  /** Stops everybody who writes, and for good. */
  readonly stop: () => void | Promise<void>;
  /** Stops when a round would copy no more pages than this. */
  readonly enough: number;
  /** Stops after so many rounds, however many pages are left. */
  readonly rounds: number;
  /** Lets others go on, every few hundred pages. */
  readonly pause?: (round: Round, done: number) => void | Promise<void>;
}

const PAGE = 4096;
/** How many pages are copied before others go on. */
const STEP = 256;

/** Moves memory, and returns the rounds it took. */
export async function preCopy(tracker: DirtyTracker, options: PreCopyOptions): Promise<Round[]> {
  const { everything, stop, enough, rounds } = options;
  const made: Round[] = [];
  const make = async (pages: PageSet, isLast: boolean) => {
    const round: Round = { number: made.length, pages, isLast };
    made.push(round);
    await copyRound(round, tracker, options);
  };
  await make(everything, false);
  while (true) {
    const written = tracker.take();
    if (written.count <= enough || made.length >= rounds) {
      // Not copied yet: it is part of what is left once everybody stands still.
      tracker.giveBack(written);
      break;
    }
    await make(written, false);
  }
  await stop();
  await make(tracker.take(), true);
  return made;
}

/** Copies one round. If that fails, what it should have copied counts as written again. */
async function copyRound(round: Round, tracker: DirtyTracker, { copy, pause }: PreCopyOptions): Promise<void> {
  let done = 0;
  let pending = 0;
  try {
    for (const { start, end } of round.pages) {
      for (let at = start; at < end;) {
        const part = new MemoryRange(at, Math.min(end, at + STEP * PAGE));
        copy(part);
        at = part.end;
        done += part.length / PAGE;
        pending += part.length / PAGE;
        if (pending < STEP) continue;
        pending = 0;
        await pause?.(round, done);
      }
    }
    if (pending > 0 || done === 0) await pause?.(round, done);
  } catch (error) {
    tracker.giveBack(round.pages);
    throw error;
  }
}

/** The memory on the other side. What the source does not back is zeros here. */
export class SecondMemory {
  /** The bytes, by GPA. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly #source: GuestMemory;

  /** An empty memory for a copy of `source`. */
  constructor(source: GuestMemory) {
    this.#source = source;
    this.bytes = new Uint8Array(source.length);
  }

  /** Copies a range of the source. */
  copy(range: MemoryRange): void {
    let at = range.start;
    for (const piece of this.#source.pieces(range)) {
      this.bytes.fill(0, at, piece.range.start);
      at = piece.range.end;
      this.#source.readInto(piece.range.start, this.bytes.subarray(piece.range.start, at));
    }
    this.bytes.fill(0, at, range.end);
  }

  /** The GPAs of pages that differ from the source. */
  differences(): number[] {
    const source = new SecondMemory(this.#source);
    for (const { range } of this.#source.pieces()) source.copy(range);
    const [a, b] = [new Uint32Array(this.bytes.buffer), new Uint32Array(source.bytes.buffer)];
    const found: number[] = [];
    for (let at = 0; at < a.length; at++) {
      if (a[at] === b[at]) continue;
      found.push(at * 4 - at * 4 % 4096);
      at |= 1023; // one word of a page is enough
    }
    return found;
  }
}
