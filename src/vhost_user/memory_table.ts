/**
 * What a back end's memory table should be, and how to get there. Pure: it knows neither sockets nor files.
 *
 * @module
 */

import { LimitError } from "../core/errors.ts";

/** A range of guest memory and the part of a file behind it. */
export interface Run<F> {
  /** The first GPA. */
  readonly start: number;
  /** One past the last GPA. */
  readonly end: number;
  /** The file; two runs are of one file where this is the same. */
  readonly file: F;
  /** Where in the file `start` is, in bytes. */
  readonly fileOffset: number;
}

/** What a table can hold and how it changes. */
export interface TableRules<F> {
  /** How many entries it has room for. */
  readonly capacity: number;
  /**
   * `"whole"`: each change sends the table anew (SET_MEM_TABLE), so it is always as short as it can be. `"slots"`:
   * entries come and go one at a time (ADD_MEM_REG, REM_MEM_REG), so those that are there are left alone.
   */
  readonly kind: "whole" | "slots";
  /** Whether an entry should be left alone if that is possible at all: a running vring lies there. */
  readonly busy?: (entry: Run<F>) => boolean;
}

/** How to get from one table to another. */
export interface TableChange<F> {
  /** The entries to be removed. */
  readonly removed: readonly Run<F>[];
  /** The entries to be added, afterwards. */
  readonly added: readonly Run<F>[];
  /** The table that comes of it, in ascending order. */
  readonly table: readonly Run<F>[];
  /** Whether something is removed of which a part is added again: for a moment the back end is without memory it keeps. */
  readonly disturbs: boolean;
}

/** Runs that continue each other, in guest memory and in their file, as one. Ascending order in and out. */
export function joined<F>(runs: Iterable<Run<F>>): Run<F>[] {
  const result: Run<F>[] = [];
  for (const run of runs) {
    const last = result.at(-1);
    if (last !== undefined && continues(last, run)) result[result.length - 1] = { ...last, end: run.end };
    else result.push(run);
  }
  return result;
}

function continues<F>(a: Run<F>, b: Run<F>): boolean {
  return a.end === b.start && a.file === b.file && a.fileOffset + (a.end - a.start) === b.fileOffset;
}

/**
 * The shortest way from `table` to one that covers exactly `wanted`, both in ascending order and without overlaps.
 *
 * @throws {LimitError} If no such table has as few entries as there is room for.
 */
export function changeTable<F>(
  table: readonly Run<F>[],
  wanted: readonly Run<F>[],
  rules: TableRules<F>,
): TableChange<F> {
  const shortest = joined(wanted);
  if (shortest.length > rules.capacity) {
    throw new LimitError(
      "entries in the memory table of a vhost-user back end",
      rules.capacity,
      shortest.length,
      "use fewer, larger files for RAM, or adjacent parts of one",
    );
  }
  if (rules.kind === "whole") return differenceOf(table, shortest);

  // What is there and still right stays; the rest comes as it is shortest.
  const right = table.filter((entry) => shortest.some((run) => isPartOf(entry, run)));
  const least = differenceOf(table, around(right, shortest));
  if (least.table.length <= rules.capacity) return least;
  // Room has to be made: entries that nobody is at work in are joined with their neighbours.
  const busy = rules.busy === undefined ? [] : right.filter(rules.busy);
  const careful = differenceOf(table, around(busy, shortest));
  return careful.table.length <= rules.capacity ? careful : differenceOf(table, shortest);
}

/** Whether `entry` says of its range what `run` says. */
function isPartOf<F>(entry: Run<F>, run: Run<F>): boolean {
  return run.start <= entry.start && entry.end <= run.end && run.file === entry.file &&
    run.fileOffset + (entry.start - run.start) === entry.fileOffset;
}

/** The entries in `kept`, and what of `runs` lies between them. */
function around<F>(kept: readonly Run<F>[], runs: readonly Run<F>[]): Run<F>[] {
  const result: Run<F>[] = [];
  let next = 0;
  for (const run of runs) {
    let at = run.start;
    for (let entry = kept[next]; entry !== undefined && entry.start < run.end; entry = kept[++next]) {
      if (at < entry.start) result.push(part(run, at, entry.start));
      result.push(entry);
      at = entry.end;
    }
    if (at < run.end) result.push(part(run, at, run.end));
  }
  return result;
}

function part<F>(run: Run<F>, start: number, end: number): Run<F> {
  return { start, end, file: run.file, fileOffset: run.fileOffset + (start - run.start) };
}

function differenceOf<F>(table: readonly Run<F>[], next: readonly Run<F>[]): TableChange<F> {
  const removed = table.filter((entry) => !next.some((other) => isSame(entry, other)));
  const added = next.filter((entry) => !table.some((other) => isSame(entry, other)));
  const disturbs = removed.some((old) => added.some((entry) => entry.start < old.end && old.start < entry.end));
  return { removed, added, table: next, disturbs };
}

function isSame<F>(a: Run<F>, b: Run<F>): boolean {
  return a.start === b.start && a.end === b.end && a.file === b.file && a.fileOffset === b.fileOffset;
}

/** The entry that holds all of `length` bytes at `gpa`. */
export function entryAt<F>(table: readonly Run<F>[], gpa: number, length: number): Run<F> | undefined {
  return table.find(({ start, end }) => start <= gpa && gpa + length <= end);
}

/** Whether `runs` have all of `entry`, of the same file. */
export function covers<F>(runs: readonly Run<F>[], entry: Run<F>): boolean {
  return joined(runs).some((run) => isPartOf(entry, run));
}
