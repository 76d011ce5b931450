/**
 * Old view -> new view of host memory, as the fewest system calls that make it so.
 *
 * ```
 *   old    [ a@0 ][ a@1 ][   b   ]        [ c ]
 *   new    [ a@0 ][     d        ]
 *   steps           map d, from [a@1, b]   remove, from [c]
 * ```
 *
 * A step replaces whatever is there by one piece (one `mmap(MAP_FIXED)`), changes a protection, or gives a range back
 * to the reservation. It remembers the earlier pieces and holes of its range, which is all its inverse needs.
 *
 * @module
 */

import { MappingError } from "../errors.ts";
import { hex } from "../hex.ts";
import { MemoryRange } from "../memory_range.ts";
import type { Entry } from "../range_map.ts";
import type { Span } from "../span.ts";
import { isSameMemory, type State } from "../map/state.ts";
import { type Fragment, type Piece, pieceAt, piecesOf } from "../map/view.ts";

/** A span to compare, with who shows there before and after, in order and cut to it. */
export interface Diff extends Span {
  /** Before the request. */
  readonly before: readonly Fragment[];
  /** After it. */
  readonly after: readonly Fragment[];
}

/** One change of host memory. */
export interface VaStep {
  /** Tells it from steps on other targets. */
  readonly kind: "va";
  /** The first GPA. */
  readonly start: number;
  /** One past the last GPA. */
  readonly end: number;
  /** What to do. */
  readonly action: "map" | "protect" | "remove";
  /** What is there afterwards, `null` for nothing. */
  readonly to: Piece | null;
  /** What was there, in order; nothing in between. */
  readonly from: readonly Entry<Piece>[];
}

/** The steps that take host memory from one view to the next. */
export interface VaSteps {
  /** New pieces and new protections, in address order. */
  readonly replacements: readonly VaStep[];
  /** Ranges given back. */
  readonly removals: readonly VaStep[];
  /** Private memory given up: its contents cannot come back, so this is the last thing a request does. */
  readonly discards: readonly VaStep[];
  /** How many kernel mappings there are afterwards. */
  readonly vmas: number;
  /** The most there are on the way. */
  readonly peakVmas: number;
}

interface OpenStep {
  kind: "va";
  start: number;
  end: number;
  action: "map" | "protect" | "remove";
  to: Piece | null;
  from: Entry<Piece>[];
}

/** Whether two pieces are the same memory with the same host protection: no step is needed between them. */
function isSamePiece(a: Piece, b: Piece): boolean {
  return a.writable === b.writable && isSameMemory(a.mapping, b.mapping);
}

/** Whether one kernel mapping can hold both where they touch; private pieces merge only with themselves. */
function mergeable(a: Piece | null, b: Piece | null): boolean {
  return a === b || (a !== null && b !== null && isSamePiece(a, b));
}

/**
 * How many times the mapping changes along `entries`, the gaps between them counting as holes, from the piece left of
 * `[start, end)` to the one right of it.
 */
function boundaries(
  entries: readonly Entry<Piece>[],
  start: number,
  end: number,
  left: Piece | null,
  right: Piece | null,
): number {
  let count = 0;
  let previous = left;
  let cursor = start;
  for (let i = 0; i < entries.length; i++) {
    const entry = entries[i]!;
    if (entry.start > cursor) {
      if (previous !== null) count++;
      previous = null;
    }
    if (!mergeable(previous, entry.value)) count++;
    previous = entry.value;
    cursor = entry.end;
  }
  if (cursor < end) {
    if (previous !== null) count++;
    previous = null;
  }
  return mergeable(previous, right) ? count : count + 1;
}

/**
 * Works out the steps over `diffs`.
 *
 * @throws {MappingError} If private memory would be taken away while its mapping stays, if a huge page would be cut,
 * or if the range lost its host addresses for good.
 */
export function vaSteps(old: State, next: State, diffs: readonly Diff[]): VaSteps {
  const walk = new Walk(old, next);
  let vmas = old.vmas;
  for (let i = 0; i < diffs.length; i++) {
    const { start, end, before, after } = diffs[i]!;
    const oldPieces = piecesOf(before);
    const newPieces = piecesOf(after);
    // The neighbours stay, and may merge with what comes.
    const left = pieceAt(old, start - 1)?.value ?? null;
    const right = pieceAt(old, end)?.value ?? null;
    vmas += boundaries(newPieces, start, end, left, right) - boundaries(oldPieces, start, end, left, right);
    walk.over(start, end, oldPieces, newPieces);
  }
  const { replacements, removals, discards } = walk;
  // A system call that cuts a mapping in three needs two more for a moment.
  let running = old.vmas;
  let peakVmas = Math.max(old.vmas, vmas) + 2;
  for (const step of replacements) {
    if (step.from.length > 0) running += 1 - earlier(step).length;
    if (running + 2 > peakVmas) peakVmas = running + 2;
  }
  return { replacements, removals, discards, vmas, peakVmas };
}

/** Walks both views side by side and collects steps. */
class Walk {
  readonly replacements: VaStep[] = [];
  readonly removals: VaStep[] = [];
  readonly discards: VaStep[] = [];
  readonly #old: State;
  readonly #next: State;
  #open: OpenStep | null = null;

  constructor(old: State, next: State) {
    this.#old = old;
    this.#next = next;
  }

  over(start: number, stop: number, before: readonly Entry<Piece>[], after: readonly Entry<Piece>[]): void {
    const isDamaged = !this.#old.lost.isEmpty || !this.#old.poisoned.isEmpty;
    let cursor = start;
    let i = 0;
    let j = 0;
    while (cursor < stop) {
      while (i < before.length && before[i]!.end <= cursor) i++;
      while (j < after.length && after[j]!.end <= cursor) j++;
      const oldEntry = before[i];
      const newEntry = after[j];
      let end = stop;
      let oldPiece: Piece | null = null;
      let newPiece: Piece | null = null;
      if (oldEntry !== undefined) {
        if (oldEntry.start <= cursor) oldPiece = oldEntry.value;
        end = Math.min(end, oldPiece === null ? oldEntry.start : oldEntry.end);
      }
      if (newEntry !== undefined) {
        if (newEntry.start <= cursor) newPiece = newEntry.value;
        end = Math.min(end, newPiece === null ? newEntry.start : newEntry.end);
      }
      if (isDamaged) this.#damaged(cursor, end, oldPiece, newPiece);
      else this.#segment(cursor, end, oldPiece, newPiece);
      cursor = end;
    }
    this.#flush();
  }

  /** A segment where an earlier undo may have failed: lost memory is not what the old view says, poison is final. */
  #damaged(start: number, end: number, oldPiece: Piece | null, newPiece: Piece | null): void {
    let cursor = start;
    while (cursor < end) {
      const poison = this.#old.poisoned.overlapping(cursor, end)[0];
      const lost = this.#old.lost.overlapping(cursor, end)[0];
      const inPoison = poison !== undefined && poison.start <= cursor;
      const inLost = lost !== undefined && lost.start <= cursor;
      let stop = end;
      if (poison !== undefined) stop = Math.min(stop, inPoison ? poison.end : poison.start);
      if (lost !== undefined) stop = Math.min(stop, inLost ? lost.end : lost.start);
      if (inPoison) {
        // What was shown there when they were lost may go on being said to be there, for the sake of what is around it.
        if (newPiece !== null && (oldPiece === null || !isSameMemory(oldPiece.mapping, newPiece.mapping))) {
          throw new MappingError(
            "The host addresses of this range were lost to another mapping of the process, use another GPA range",
            new MemoryRange(cursor, stop),
          );
        }
        this.#flush();
      } else if (inLost) {
        // What is there now is unknown, so it is always replaced.
        if (newPiece !== null) this.#add("map", cursor, stop, null, newPiece);
        else this.#add("remove", cursor, stop, null, null);
      } else {
        this.#segment(cursor, stop, oldPiece, newPiece);
      }
      cursor = stop;
    }
  }

  #segment(start: number, end: number, oldPiece: Piece | null, newPiece: Piece | null): void {
    if (newPiece === null) {
      if (oldPiece === null) return;
      this.#checkCut(start, end, oldPiece);
      if (oldPiece.mapping.backing === null) {
        this.#checkDiscard(start, end, oldPiece);
        this.#flush();
        this.discards.push(removal(start, end, oldPiece));
      } else {
        this.#add("remove", start, end, oldPiece, null);
      }
    } else if (oldPiece === null) {
      this.#checkCut(start, end, newPiece);
      this.#add("map", start, end, null, newPiece);
    } else if (isSameMemory(oldPiece.mapping, newPiece.mapping)) {
      if (oldPiece.writable === newPiece.writable) this.#flush();
      else this.#add("protect", start, end, oldPiece, newPiece);
    } else {
      this.#checkCut(start, end, oldPiece);
      this.#checkCut(start, end, newPiece);
      if (oldPiece.mapping.backing === null) {
        this.#checkDiscard(start, end, oldPiece);
        throw new MappingError(
          "Private memory cannot be replaced within one request, remove it first",
          new MemoryRange(start, end),
        );
      }
      this.#add("map", start, end, oldPiece, newPiece);
    }
  }

  #add(action: VaStep["action"], start: number, end: number, from: Piece | null, to: Piece | null): void {
    let open = this.#open;
    if (open === null || open.action !== action || !continues(open, start, to)) {
      this.#flush();
      this.#open = open = { kind: "va", start, end, action, to, from: [] };
    }
    open.end = end;
    if (from !== null) open.from.push({ start, end, value: from });
  }

  #flush(): void {
    if (this.#open === null) return;
    (this.#open.action === "remove" ? this.removals : this.replacements).push(this.#open);
    this.#open = null;
  }

  /** Private memory lives only in its mapping, so it may go only together with its mapping. */
  #checkDiscard(start: number, end: number, piece: Piece): void {
    const { region, mapping } = piece;
    const owner = this.#next.regions.get(region);
    for (const entry of owner?.mappings.overlapping(start, end) ?? []) {
      if (entry.value !== mapping) continue;
      throw new MappingError(
        `Region "${region.name}" holds private memory, which cannot be unmapped or shadowed without losing its ` +
          "contents, remove the mapping or make it read-only",
        new MemoryRange(start, end),
      );
    }
  }

  /** The kernel maps and unmaps huge pages whole. */
  #checkCut(start: number, end: number, { mapping: { backing }, region }: Piece): void {
    if (backing === null || backing.pageSize <= 4096) return;
    if (start % backing.pageSize === 0 && end % backing.pageSize === 0) return;
    throw new MappingError(
      `Region "${region.name}" maps huge pages there, which cannot be cut at a multiple of less than ` +
        `${hex(backing.pageSize)}`,
      new MemoryRange(start, end),
    );
  }
}

function removal(start: number, end: number, from: Piece): VaStep {
  return { kind: "va", start, end, action: "remove", to: null, from: [{ start, end, value: from }] };
}

/** Whether the open step's one system call can take the next segment in as well. */
function continues(open: OpenStep, start: number, to: Piece | null): boolean {
  // A removal may reach across holes, and anything else would have ended it.
  if (open.to === null || to === null) return true;
  if (open.end !== start) return false;
  return open.action === "protect" ? open.to.writable === to.writable : isSamePiece(open.to, to);
}

/** What was there before `step`, without gaps: `null` for holes. */
function earlier({ start, end, from }: VaStep): Entry<Piece | null>[] {
  const parts: Entry<Piece | null>[] = [];
  let cursor = start;
  for (const piece of from) {
    if (cursor < piece.start) parts.push({ start: cursor, end: piece.start, value: null });
    parts.push(piece);
    cursor = piece.end;
  }
  if (cursor < end) parts.push({ start: cursor, end, value: null });
  return parts;
}

/** The steps that bring back what `step` changed: each earlier piece and hole of its range. */
export function inverseVaSteps(step: VaStep): VaStep[] {
  return earlier(step).map(({ start, end, value }): VaStep => ({
    kind: "va",
    start,
    end,
    // Mapping a file again over itself is harmless and mends what a failed call may have destroyed; private memory
    // must stay the mapping it is.
    action: value === null ? "remove" : value.mapping.backing === null ? "protect" : "map",
    to: value,
    from: step.to === null ? [] : [{ start, end, value: step.to }],
  }));
}
