/**
 * Runs one row in all programs, in turns.
 *
 * @module
 */

import type { Child } from "./child.ts";
import type { Bench } from "./ours.ts";

/** The programs a row can be done by: this package, bare calls from this process, C, Rust. */
export const PROGRAMS = ["ours", "bare", "C", "Rust"] as const;

/** One of them. */
export type Program = typeof PROGRAMS[number];

/** Times in nanoseconds per time of the row, one per round, by program. */
export type Times = Partial<Record<Program, readonly number[]>>;

/** How long and how often to measure. */
export interface Effort {
  /** How many rounds each program has. */
  readonly rounds: number;
  /** About how long one round of one program takes, in milliseconds. */
  readonly roundTime: number;
  /** How long to run before measuring, so that everything is compiled, in milliseconds. */
  readonly warmUp: number;
}

/** Does a round and says how many nanoseconds it took. */
type Runner = (count: number) => number | Promise<number>;

/** A round in this process. */
export function here(bench: Bench): Runner {
  return (count) => {
    const start = performance.now();
    bench.run(count);
    return (performance.now() - start) * 1e6;
  };
}

/** A round in another program. */
export function there(child: Child, row: string): Runner {
  return (count) => child.run(row, count);
}

/** How many times a round has to be done to take `time` milliseconds, found by doing it for at least that long. */
async function calibrate(run: Runner, time: number): Promise<number> {
  for (let count = 1;; count *= 4) {
    const took = await run(count) / 1e6;
    if (took >= time / 4) return Math.max(1, Math.round(count * time / took));
  }
}

/** Runs the rounds of all programs in turns, the order going back and forth. */
export async function contest(
  runners: readonly (readonly [Program, Runner])[],
  { rounds, roundTime, warmUp }: Effort,
): Promise<Times> {
  let count = Infinity;
  for (const [name, run] of runners) {
    const until = performance.now() + (name === "ours" || name === "bare" ? warmUp : 0);
    let fits: number;
    do fits = await calibrate(run, roundTime); while (performance.now() < until);
    // Programs that are much faster than the others would otherwise be timed too shortly: all do the count of "ours".
    if (name === "ours") count = fits;
  }
  const times: Record<string, number[]> = {};
  for (let round = 0; round < rounds; round++) {
    for (const [name, run] of round % 2 === 0 ? runners : runners.toReversed()) {
      (times[name] ??= []).push(await run(count) / count);
    }
  }
  return times;
}
