/**
 * Where one page of a file shows at more than one GPA: a write at the one place is a write at the other.
 *
 * ```
 *   GPA   | bar, file 0-4 |        | window, file 2-4 |
 *                 ^ a page written here       ^ has changed here too
 * ```
 *
 * @module
 */

import { PageMarks } from "../page_marks.ts";
import { eachSpan, type PageSet } from "../page_set.ts";
import { MemoryRange } from "../memory_range.ts";
import type { State } from "./state.ts";
import { piecesIn } from "./view.ts";

/** A piece that shows a part of a file that shows elsewhere too. */
interface Shown {
  readonly start: number;
  readonly end: number;
  /** File offset minus GPA, in bytes. */
  readonly delta: number;
  /** Whether what is written there reaches the file; what the file becomes shows in any case. */
  readonly isShared: boolean;
}

/** The pieces of each file that shows somewhere twice. */
export type Echoes = readonly (readonly Shown[])[];

const NONE: Echoes = [];
const known = new WeakMap<State, Echoes>();

/** What shows twice in `state`. */
export function echoesIn(state: State): Echoes {
  let echoes = known.get(state);
  if (echoes === undefined) known.set(state, echoes = findEchoes(state));
  return echoes;
}

function findEchoes(state: State): Echoes {
  const files = new Map<object, Shown[]>();
  for (const { start, end, value: { mapping } } of piecesIn(state)) {
    if (mapping.backing === null) continue;
    const shown: Shown = { start, end, delta: mapping.delta, isShared: mapping.kind === "shared" };
    const others = files.get(mapping.backing.file);
    if (others === undefined) files.set(mapping.backing.file, [shown]);
    else others.push(shown);
  }
  const echoes: (readonly Shown[])[] = [];
  for (const pieces of files.values()) {
    if (pieces.length < 2) continue;
    pieces.sort((a, b) => a.start + a.delta - (b.start + b.delta));
    let reached = 0;
    const isTwice = pieces.some(({ start, end, delta }) => {
      const overlaps = start + delta < reached;
      reached = Math.max(reached, end + delta);
      return overlaps;
    });
    if (isTwice) echoes.push(pieces);
  }
  return echoes.length === 0 ? NONE : echoes;
}

/** `pages`, and wherever else what is in them shows. */
export function withEchoes(pages: PageSet, echoes: Echoes): PageSet {
  if (echoes.length === 0 || pages.count === 0) return pages;
  const marks = new PageMarks();
  for (const pieces of echoes) {
    for (const source of pieces) {
      if (!source.isShared) continue;
      eachSpan(pages.within(new MemoryRange(source.start, source.end)), (start, end) => {
        for (const other of pieces) {
          if (other === source) continue;
          const shift = source.delta - other.delta;
          const from = Math.max(start + shift, other.start);
          const to = Math.min(end + shift, other.end);
          if (from < to) marks.add(from, to);
        }
      });
    }
  }
  return pages.union(marks.take());
}
