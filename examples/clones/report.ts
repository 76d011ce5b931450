/**
 * What is printed.
 *
 * @module
 */

import type { Subject } from "./subject.ts";

/** How clones did; times in milliseconds. */
export interface CloneFigures {
  readonly count: number;
  /** Until a clone and its virtual machine were there. */
  readonly clones: readonly number[];
  /** Until it had answered. */
  readonly answers: readonly number[];
  /** The bytes of memory that some of them had of their own. */
  readonly bytes: readonly number[];
}

/** How going back did. */
export interface RollbackFigures {
  readonly count: number;
  readonly times: readonly number[];
  /** Pages given up each time. */
  readonly pages: number;
  /** Milliseconds for all, questions and answers included. */
  readonly total: number;
}

const BAR = 40;

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[values.length >> 1] ?? NaN;
}

function milliseconds(value: number): string {
  return value < 1
    ? `${(value * 1000).toFixed(0)} us`
    : value < 1000
    ? `${value.toFixed(1)} ms`
    : `${(value / 1000).toFixed(1)} s`;
}

function bar(share: number): string {
  const full = Math.max(1, Math.round(share * BAR));
  return "█".repeat(full) + "·".repeat(BAR - full);
}

/** Prints a table and bars about one guest and its clones. */
export function printSubject({ title, warmUp, ram }: Subject, clones: CloneFigures, rollback: RollbackFigures): void {
  const fresh = warmUp;
  const clone = median(clones.clones);
  const answer = median(clones.answers);
  const back = median(rollback.times);
  const kib = median(clones.bytes) / 1024;
  console.log(`\n${title}: ${ram / 2 ** 20} MiB of RAM, ${clones.count} clones, each answer right\n`);
  const rows: [string, string, number][] = [
    ["starting afresh", milliseconds(fresh), 1],
    ["a clone and its virtual machine", milliseconds(clone), clone / fresh],
    ["  until its first answer", milliseconds(answer), answer / fresh],
    [`rolling one back (${rollback.count} times)`, milliseconds(back), back / fresh],
  ];
  for (const [what, time, share] of rows) console.log(`  ${what.padEnd(34)} ${time.padStart(8)}  ${bar(share)}`);
  console.log(
    `  ${"memory of a clone's own".padEnd(34)} ${`${kib.toFixed(0)} KiB`.padStart(8)}  ${bar(kib * 1024 / ram)}`,
  );
  console.log(`  ${"pages given up by a rollback".padEnd(34)} ${rollback.pages.toFixed(1).padStart(8)}`);
  const perSecond = rollback.count / (rollback.total / 1000);
  console.log(`  ${"questions a second, with rollback".padEnd(34)} ${perSecond.toFixed(0).padStart(8)}`);
}
