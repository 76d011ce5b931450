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
  /** The bytes of memory that each of them had of its own when all had answered. */
  readonly bytes: readonly number[];
  /** Milliseconds for all of them, one after the other. */
  readonly total: number;
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
  const full = Math.min(BAR, Math.max(1, Math.round(share * BAR)));
  return "█".repeat(full) + "·".repeat(BAR - full);
}

/** Prints a table and bars about one guest and its clones. */
export function printSubject({ title, warmUp, ram }: Subject, clones: CloneFigures, rollback: RollbackFigures): void {
  const clone = median(clones.clones);
  const answer = median(clones.answers);
  // The question takes as long to answer for whoever has just got warm.
  const fresh = warmUp + answer - clone;
  const back = median(rollback.times);
  const bytes = median(clones.bytes);
  const all = clones.bytes.reduce((sum, each) => sum + each, 0);
  const again = rollback.total / rollback.count;
  console.log(`\n${title}: ${ram / 2 ** 20} MiB of RAM, ${clones.count} clones, each answer right\n`);
  const line = (what: string, value: string, share: number, note = "") =>
    console.log(`  ${what.padEnd(42)} ${value.padStart(9)}  ${bar(share)}${note === "" ? "" : `  ${note}`}`);
  const time = (what: string, value: number) =>
    line(what, milliseconds(value), value / fresh, value === fresh ? "" : times(fresh / value));
  console.log("  to the first answer");
  time("  starting afresh", fresh);
  time("  a clone and its virtual machine", answer);
  time("  one that is rolled back and asked again", again);
  console.log("  of that");
  time("  to make the clone and its machine", clone);
  time("  to roll back", back);
  console.log("  memory");
  line("  the RAM of a guest of its own", mebibytes(ram), 1);
  line("  a clone, by smaps' Anonymous", mebibytes(bytes), bytes / ram, times(ram / bytes));
  line(`  all ${clones.count} clones together`, mebibytes(all), all / (ram * clones.count));
  console.log();
  console.log(`  ${clones.count} clones were there, and had answered, after ${milliseconds(clones.total)}`);
  console.log(
    `  ${rollback.count} rollbacks of ${rollback.pages.toFixed(1)} pages each: ${
      (1000 / again).toFixed(0)
    } questions a second, with rollback`,
  );
}

function times(value: number): string {
  return value >= 1.05 ? `${Number(value.toPrecision(2)).toLocaleString("en")} times less` : "";
}

function mebibytes(bytes: number): string {
  return bytes < 2 ** 20 ? `${(bytes / 1024).toFixed(0)} KiB` : `${(bytes / 2 ** 20).toFixed(1)} MiB`;
}
