/**
 * What the owner and the Workers of the soak test agree on.
 *
 * Guest memory is a row of windows. The owner shows parts of files in them, as a whole or not at all, and changes them
 * all the time. Every page of a file begins with a stamp that says which page of which file it is, so whoever looks at
 * a window sees whether all of it is of one moment.
 *
 * @module
 */

import { MemoryRange } from "membacking";
import { PAGE } from "../support/units.ts";

/** Pages of a window. */
export const WINDOW_PAGES = 8;
/** The length of a window in bytes. */
export const WINDOW = WINDOW_PAGES * PAGE;
/** How many windows the owner changes. */
export const WINDOWS = 24;
/** Where the Workers' own regions begin: a window for each. */
export const OWN_AT = WINDOWS * WINDOW;
/** How many there is room for. A Worker's is used again long after it has ended, so that nothing is left of it. */
export const OWN_WINDOWS = 4096;
/** How many Workers there are at a time. */
export const WORKERS = 8;
/** How many processes there are at a time. */
export const PROCESSES = 3;
/** A page that everybody sees, with the words of `SHARED`. */
export const BOARD: MemoryRange = MemoryRange.of(OWN_AT + OWN_WINDOWS * WINDOW, PAGE);
/** The length of guest memory in bytes. */
export const LENGTH: number = BOARD.end;
/** Pages of a file. */
export const FILE_PAGES = 64;
/** How many files there are; the last may be truncated by anyone, so it is read by system calls. */
export const FILES = 5;

/** The stamp of a page of a file. */
export function stamp(file: number, page: number): number {
  return (file + 1) * 0x1_0000 + page;
}

/** Words that the owner, the Workers and the processes share. */
export const SHARED = {
  /** For each window what it shows: `CHANGING`, `NOTHING`, or the stamp of its first page, with `READ_ONLY` on top. */
  model: 0,
  /** For each Worker and process how much it has done. */
  progress: 64,
  /** 1 once they shall stop. */
  stop: 128,
  /** How many words there are. */
  words: 129,
} as const;

/** The owner is about to change the window, or has just done so. */
export const CHANGING = -1;
/** The window shows nothing. */
export const NOTHING = 0;
/** The window may not be written. */
export const READ_ONLY = 0x100_0000;

/** What a Worker or a process has to know. */
export interface SoakStart {
  readonly index: number;
  /** The GPA of its own region. */
  readonly own: number;
  readonly seed: number;
}

/** The first message to a Worker. */
export interface SoakWorkerStart extends SoakStart {
  readonly port: MessagePort;
  /** Whether it uses the synchronous client. */
  readonly sync: boolean;
}

/** What a Worker says at its end. */
export type SoakReport = { readonly counts: Record<string, number> } | { readonly failure: string };

/** Random integers below a bound, the same for the same seed. */
export function randomFrom(seed: number): (below: number) => number {
  let state = seed >>> 0;
  return (below) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) % below;
  };
}
