/**
 * Host memory, as the fewest system calls that take it from one view to the next.
 *
 * ```
 *   before   [ a@0 ][ a@1 ][   b   ]        [ c ]
 *   after    [ a@0 ][     d        ]
 *   steps           map d over a@1, b        remove c
 * ```
 *
 * A step replaces whatever is there by one mapping (one `mmap(MAP_FIXED)`), changes a protection, or gives a range back
 * to the reservation.
 *
 * @module
 */

import { LimitError, MappingError } from "../errors.ts";
import { hex } from "../hex.ts";
import { MemoryRange, PAGE_SIZE } from "../memory_range.ts";
import { isSameMemory, type Mapping, type Region } from "../map/region.ts";
import type { Sight } from "../map/sight.ts";
import type { OwnRange } from "../map/edits.ts";
import { NOTHING_PARKED, type Parked, type State } from "../map/state.ts";
import { Parking } from "./parking.ts";
import type { HostStep } from "./steps.ts";
import type { Track } from "./walk.ts";

/** A step that may still take in what comes next. */
interface OpenStep {
  readonly kind: "host";
  readonly action: "map" | "protect" | "remove";
  readonly start: number;
  end: number;
  readonly mapping: Mapping | null;
  readonly writable: boolean;
}

const NONE: HostStep[] = [];
const NO_DISCARDS: readonly OwnRange[] = [];

/** Whether a segment's memory is another one afterwards, so that what was attached to it is gone. */
export function isReplaced(before: Sight, after: Sight): boolean {
  if (before.poisoned) return false;
  const [from, to] = [before.mapping, after.mapping];
  if (before.lost) return true;
  return from === null || to === null ? from !== to : !isSameMemory(from, to);
}

/** The track of host memory. */
export class HostTrack implements Track {
  /** New mappings and new protections, in address order. */
  arriving: HostStep[] = NONE;
  /** Ranges given back. */
  leaving: HostStep[] = NONE;
  /** Memory in no file that is given up once the request has happened. */
  discards: readonly OwnRange[] = NO_DISCARDS;
  #parked: Parked = NOTHING_PARKED;
  #before = 0;
  #parking: Parking | null = null;
  #open: OpenStep | null = null;
  // What was and what will be just below the segment, and how many kernel mappings there are more than before up to it:
  // afterwards, and when everything new is in place and nothing has been given back yet.
  #from: Mapping | null = null;
  #fromWritable = false;
  #to: Mapping | null = null;
  #toWritable = false;
  #growth = 0;
  #midway = 0;

  /** Begins anew: what follows leads away from `old`. */
  follow(old: State): void {
    this.#parked = old.parked;
    this.#before = old.hostMappings;
    this.arriving = this.leaving = NONE;
    this.discards = NO_DISCARDS;
    this.#parking = null;
    this.#open = null;
    this.#growth = this.#midway = 0;
  }

  /** Memory in no file that goes where it does not show, before anything takes its place. */
  get parking(): readonly HostStep[] {
    return this.#parking === null ? NONE : this.#parking.steps;
  }

  /** All steps, in the order of effects. */
  get steps(): readonly HostStep[] {
    if (this.#parking === null && this.leaving.length === 0) return this.arriving;
    if (this.#parking === null && this.arriving.length === 0) return this.leaving;
    return [...this.parking, ...this.arriving, ...this.leaving];
  }

  /** How many kernel mappings there are afterwards. */
  get hostMappings(): number {
    return this.#before + this.#growth;
  }

  begin(_start: number, left: Sight): void {
    this.#from = this.#to = left.mapping;
    this.#fromWritable = this.#toWritable = left.writable;
  }

  segment(start: number, end: number, before: Sight, after: Sight): void {
    const from = before.mapping;
    const to = after.mapping;
    this.#pass(from, before.writable, to, after.writable);
    if (before.poisoned || before.lost) return this.#damaged(start, end, before, after);
    if (from !== null && to !== null && isSameMemory(from, to)) {
      if (before.writable === after.writable) this.#close();
      else this.#add("protect", start, end, to, after.writable);
      return;
    }
    if (from !== null) {
      checkHugePages(start, end, from, before.region);
      if (from.own !== null) this.#own().park(start, end, from, before.writable);
    }
    if (to === null) {
      if (from !== null) this.#add("remove", start, end, null, false);
    } else {
      checkHugePages(start, end, to, after.region);
      if (to.own === null) this.#add("map", start, end, to, after.writable);
      else this.#showOwn(start, end, to, after.writable);
    }
  }

  finish(_end: number, right: Sight): void {
    this.#close();
    this.#pass(right.mapping, right.writable, right.mapping, right.writable);
  }

  /**
   * Throws unless `spare` more kernel mappings are enough.
   *
   * @throws {LimitError} If they are not, and the request does not give any back.
   */
  checkLimit(spare: number): void {
    // A system call that cuts a mapping in three needs two more for a moment. Whatever gives mappings back is let
    // through: it is the way out.
    // What is parked takes mappings of its own.
    const most = Math.max(this.#growth, this.#midway) + 2 + 3 * this.parking.length;
    if (most > spare && this.#growth > 0) throw tooMany(Math.max(0, this.#before + spare), this.#before + most);
  }

  /** A segment where an earlier undo failed: lost memory is not what the old view says, poison is final. */
  #damaged(start: number, end: number, before: Sight, after: Sight): void {
    const to = after.mapping;
    if (before.poisoned) {
      // What was shown there when they were lost may go on being said to be there, for the sake of what is around it.
      if (to !== null && (before.mapping === null || !isSameMemory(before.mapping, to))) {
        throw new MappingError(
          "The host addresses of this range were lost to another mapping of the process, use another GPA range",
          new MemoryRange(start, end),
        );
      }
      this.#close();
    } else {
      // What is there now is unknown, so it is always replaced. But memory that is in no file may be there.
      // What is parked already stays so, whatever is there.
      for (const from of [before.stranded, before.mapping]) {
        if (from === null || from.own === null || (to !== null && isSameMemory(from, to))) continue;
        this.#own().park(start, end, from, before.writable);
      }
      if (to === null) this.#add("remove", start, end, null, false);
      else if (to.own === null) this.#add("map", start, end, to, after.writable);
      else if (before.mapping === null || !isSameMemory(before.mapping, to)) {
        this.#showOwn(start, end, to, after.writable);
      } else {
        this.#close();
        const step: HostStep = { kind: "host", action: "restore", start, end, mapping: to, writable: after.writable };
        this.arriving = appended(this.arriving, step);
      }
    }
  }

  /** Counts where kernel mappings end and begin at the start of the next segment, holes included. */
  #pass(from: Mapping | null, fromWritable: boolean, to: Mapping | null, toWritable: boolean): void {
    const was = edge(this.#from, this.#fromWritable, from, fromWritable);
    const growth = edge(this.#to, this.#toWritable, to, toWritable) - was;
    this.#growth += growth;
    // Half-way is as afterwards, but for what is to be removed and is still there.
    const below = this.#to ?? this.#from;
    const above = to ?? from;
    if (below === this.#to && above === to) this.#midway += growth;
    else {
      const isBelowWritable = this.#to === null ? this.#fromWritable : this.#toWritable;
      const isAboveWritable = to === null ? fromWritable : toWritable;
      this.#midway += edge(below, isBelowWritable, above, isAboveWritable) - was;
    }
    this.#from = from;
    this.#fromWritable = fromWritable;
    this.#to = to;
    this.#toWritable = toWritable;
  }

  #own(): Parking {
    return this.#parking ??= new Parking();
  }

  #showOwn(start: number, end: number, mapping: Mapping, writable: boolean): void {
    this.#close();
    this.#own().show(start, end, mapping, writable);
  }

  #add(action: OpenStep["action"], start: number, end: number, mapping: Mapping | null, writable: boolean): void {
    const open = this.#open;
    if (open !== null && continues(open, action, start, mapping, writable)) {
      open.end = end;
      return;
    }
    this.#close();
    this.#open = { kind: "host", action, start, end, mapping, writable };
  }

  /** Nothing more can be taken in by the open step. */
  #close(): void {
    const open = this.#open;
    if (open === null) return;
    this.#open = null;
    if (open.action === "remove") this.leaving = appended(this.leaving, open);
    else this.arriving = appended(this.arriving, open);
  }

  /**
   * Says that the walk is over, what is parked then, and what can be given up. `removed` is what is in no region any more.
   */
  complete(removed: readonly OwnRange[]): Parked {
    const parking = this.#parking;
    if (parking === null && removed.length === 0) return this.#parked;
    const { parked, shown, discards } = (parking ?? new Parking()).complete(this.#parked, removed);
    for (const step of shown) this.arriving = appended(this.arriving, step);
    this.discards = discards;
    return parked;
  }
}

function tooMany(limit: number, needed: number): LimitError {
  const remedy = "use fewer or larger mappings, or raise the sysctl vm.max_map_count";
  return new LimitError("host mappings", limit, needed, remedy);
}

function appended(steps: HostStep[], step: HostStep): HostStep[] {
  if (steps.length === 0) return [step];
  steps.push(step);
  return steps;
}

/** Whether one kernel mapping, or hole, ends and another begins where the one thing lies below the other: 1 or 0. */
function edge(
  below: Mapping | null,
  isBelowWritable: boolean,
  above: Mapping | null,
  isAboveWritable: boolean,
): number {
  if (below === above && isBelowWritable === isAboveWritable) return 0;
  if (below === null || above === null) return below === above ? 0 : 1;
  return isBelowWritable === isAboveWritable && isSameMemory(below, above) ? 0 : 1;
}

/** Whether the open step's one system call can take the next segment in as well. */
function continues(
  open: OpenStep,
  action: OpenStep["action"],
  start: number,
  mapping: Mapping | null,
  writable: boolean,
): boolean {
  if (open.action !== action) return false;
  // A removal may reach across holes, and anything else would have ended it.
  if (open.mapping === null || mapping === null) return true;
  if (open.end !== start || open.writable !== writable) return false;
  return action === "protect" || isSameMemory(open.mapping, mapping);
}

/** The kernel maps and unmaps huge pages whole. */
function checkHugePages(start: number, end: number, { backing }: Mapping, region: Region | null): void {
  if (backing !== null && backing.pageSize > PAGE_SIZE) checkAreWhole(backing.pageSize, start, end, region);
}

function checkAreWhole(pageSize: number, start: number, end: number, region: Region | null): void {
  if (start % pageSize === 0 && end % pageSize === 0) return;
  throw new MappingError(
    `Region "${region?.name}" maps huge pages there, which cannot be cut at a multiple of less than ${hex(pageSize)}`,
    new MemoryRange(start, end),
  );
}
