import { fileOf } from "../../ffi/files/mappable.ts";
import type { OpenFile } from "../../ffi/files/open_file.ts";
import type { View } from "../core/map/overlap.ts";
import type { Mapping, Piece, Region } from "../core/map/region.ts";
import type { State } from "../core/map/state.ts";
import { piecesIn } from "../core/map/view.ts";
import { MemoryRange } from "../core/memory_range.ts";
import { type Entry, RangeMap } from "../core/range_map.ts";
import { gaps, type Span } from "../core/span.ts";
import { sharedFileOf } from "../memory/file_backing.ts";
import { type RegionHandle, regionOf } from "../regions/region_handle.ts";
import { internalsOf, type RegionManager } from "../regions/region_manager.ts";
import type { Report } from "../targets/report.ts";

/** A range of RAM that another process can map, as a vhost-user front end announces it. */
export interface SharedRegion {
  /** The GPA range, in bytes. */
  readonly range: MemoryRange;
  /** The file behind it. Stays the manager's, and open until the region leaves the list: duplicate it to keep it. */
  readonly fd: number;
  /** Where in the file the range begins, in bytes. */
  readonly fileOffset: number;
  /** The host address of `range.start` in this process. */
  readonly hva: number;
  /** The parts that the guest cannot write for now: read-only, or switched off. */
  readonly readOnly: readonly MemoryRange[];
}

/** Is told of the list as it is now. */
export type SharedRegionsListener = (regions: SharedRegion[]) => void;

/** A run of RAM that lies in one file without a gap. */
interface Run {
  readonly start: number;
  readonly end: number;
  /** Not a handle: those go with their mappings, while the file is there as long as some mapping of the run is. */
  readonly file: OpenFile;
  /** File offset minus GPA, in bytes. */
  readonly delta: number;
  /** What users are told of it, once somebody has asked. */
  listed: SharedRegion | null;
}

const NO_RUNS: RangeMap<Run> = RangeMap.EMPTY;

/**
 * RAM that can be shared, and who wants to know when that changes.
 *
 * What there is is kept from request to request while somebody watches, and looked at anew only where a request changed
 * something.
 */
export class ShareableRegions {
  readonly #regions: RegionManager;
  readonly #ram: () => readonly RegionHandle[];
  readonly #report: Report;
  readonly #listeners = new Set<{ readonly listener: SharedRegionsListener }>();
  #watching: Disposable | undefined;
  #runs = NO_RUNS;
  /** The regions whose memory counts whatever is visible of it, by range, and the list they were made of. */
  #own: RangeMap<Region> = RangeMap.EMPTY;
  #ownMadeOf: readonly RegionHandle[] = [];
  #changed = false;
  #telling = false;

  /** `ram` are the regions whose memory counts whatever is visible of it: the same list as long as they are the same. */
  constructor(regions: RegionManager, ram: () => readonly RegionHandle[], report: Report) {
    this.#regions = regions;
    this.#ram = ram;
    this.#report = report;
  }

  /** RAM that has a file, parts that continue each other in both as one. */
  list(): SharedRegion[] {
    const internals = internalsOf(this.#regions);
    internals.check();
    const state = internals.state();
    if (this.#watching === undefined) this.#findAll(state);
    // In a batch, or after one that failed, what is watched is another list.
    else if (this.#ram() !== this.#ownMadeOf) {
      return new ShareableRegions(this.#regions, this.#ram, this.#report).list();
    }
    return this.#list(state);
  }

  /** Calls `listener` after each request that changed the list, until the result is disposed. */
  watch(listener: SharedRegionsListener): Disposable {
    if (typeof listener !== "function") throw new TypeError("A listener must be a function");
    if (this.#listeners.size === 0) {
      const internals = internalsOf(this.#regions);
      internals.check();
      this.#changed = false;
      this.#findAll(internals.state());
      this.#watching = internals.watch((old, state, changed) => this.#onRequest(old, state, changed));
    }
    const entry = { listener };
    this.#listeners.add(entry);
    return {
      [Symbol.dispose]: () => {
        if (!this.#listeners.delete(entry) || this.#listeners.size > 0) return;
        this.#watching?.[Symbol.dispose]();
        this.#watching = undefined;
      },
    };
  }

  #list(state: State): SharedRegion[] {
    const { base } = internalsOf(this.#regions);
    const all = this.#runs.overlapping(-Infinity, Infinity);
    return all.map(({ value: run }) => run.listed ??= sharedRegion(run, state, base));
  }

  #findAll(state: State): void {
    this.#findOwn();
    this.#runs = withRuns(NO_RUNS, this.#runsIn(state, 0, Number.MAX_SAFE_INTEGER));
  }

  #findOwn(): void {
    const ram = this.#ram();
    if (ram === this.#ownMadeOf) return;
    let own: RangeMap<Region> = RangeMap.EMPTY;
    for (const handle of ram) own = own.set(handle.range.start, handle.range.end, regionOf(handle));
    this.#own = own;
    this.#ownMadeOf = ram;
  }

  /** RAM with a file in `[start, end)`: all of our own, and what else is visible and writable. In order, as long as can be. */
  #runsIn(state: State, start: number, end: number): Run[] {
    const found: Run[] = [];
    let at = start;
    for (const own of this.#own.overlapping(start, end)) {
      const [from, to] = [Math.max(own.start, start), Math.min(own.end, end)];
      this.#addOthers(found, state, at, from);
      for (const entry of state.regions.get(own.value)?.mappings.overlapping(from, to) ?? []) {
        add(found, Math.max(entry.start, from), Math.min(entry.end, to), entry.value);
      }
      at = to;
    }
    this.#addOthers(found, state, at, end);
    return found;
  }

  #addOthers(found: Run[], state: State, start: number, end: number): void {
    if (start >= end || !hasRam(state, start, end)) return;
    for (const { start: from, end: to, value } of piecesIn(state, start, end)) {
      if (value.region.type === "ram" && value.writable) add(found, from, to, value.mapping);
    }
  }

  #onRequest(old: View, state: State, changed: readonly Span[]): void {
    if (this.#ram() !== this.#ownMadeOf) {
      const before = this.#runs;
      this.#findAll(state);
      this.#changed ||= !isSameRuns([...before], [...this.#runs]);
    } else {
      for (let i = 0; i < changed.length; i++) this.#look(old, state, changed[i]!);
    }
    // A listener may make requests: those end here as well, and the loop below tells of them in turn.
    if (!this.#changed || this.#telling) return;
    this.#telling = true;
    try {
      while (this.#changed && this.#listeners.size > 0 && !this.#regions.disposed) {
        this.#changed = false;
        for (const entry of [...this.#listeners]) if (this.#listeners.has(entry)) this.#tell(entry.listener);
      }
    } finally {
      this.#telling = false;
    }
  }

  /** Looks anew at one span. */
  #look(old: View, state: State, { start, end }: Span): void {
    if (!hasRam(state, start, end) && (old.visible === state.visible || !hasRam(old, start, end))) return;
    const before = this.#runs.overlapping(start, end);
    const now = this.#runsIn(state, start, end);
    const isSame = now.length === before.length && now.every((run, i) => {
      const known = before[i]?.value;
      return known !== undefined && known.file === run.file && known.delta === run.delta &&
        Math.max(known.start, start) === run.start && Math.min(known.end, end) === run.end;
    });
    // Parts of it may have become read-only, or be so no longer.
    for (const { value } of before) value.listed = null;
    if (isSame) return;
    this.#changed = true;
    // What is around it may have been one with it, or become so.
    const left = this.#runs.entryAt(start - 1)?.value;
    const right = this.#runs.entryAt(end)?.value;
    const from = left === undefined ? start : left.start;
    const to = right === undefined ? end : right.end;
    const runs: Run[] = [];
    if (left !== undefined) append(runs, { ...left, end: start, listed: null });
    for (const run of now) append(runs, run);
    if (right !== undefined) append(runs, { ...right, start: end, listed: null });
    this.#runs = withRuns(this.#runs.delete(from, to), runs);
  }

  /** What a listener throws is not the requester's fault. */
  #tell(listener: SharedRegionsListener): void {
    const failed = (error: unknown) => this.#report("error", "A listener for shareable regions failed", error);
    try {
      const result: unknown = listener(this.#list(internalsOf(this.#regions).state()));
      if (result instanceof Promise) result.catch(failed);
    } catch (error) {
      failed(error);
    }
  }
}

function sharedRegion({ start, end, file, delta }: Run, state: State, base: number): SharedRegion {
  // What shows there instead is no part of it, whether the guest may write that or not.
  const isOfRun = ({ mapping }: Piece) => {
    const mappable = sharedFileOf(mapping);
    return mappable !== null && fileOf(mappable) === file && mapping.delta === delta;
  };
  const writable = piecesIn(state, start, end).filter(({ value }) => value.writable && isOfRun(value));
  const readOnly = gaps(start, end, writable).map((gap) => new MemoryRange(gap.start, gap.end));
  const range = new MemoryRange(start, end);
  return Object.freeze({ range, fd: file.handOut(), fileOffset: start + delta, hva: base + start, readOnly });
}

/** Whether RAM shows somewhere in `[start, end)`. */
function hasRam({ visible }: View, start: number, end: number): boolean {
  const only = visible.throughout(start, end);
  if (only !== undefined) return only !== null && only.type === "ram";
  return visible.overlapping(start, end).some(({ value }) => value.type === "ram");
}

/** The map with `runs` in it, where nothing is. */
function withRuns(map: RangeMap<Run>, runs: readonly Run[]): RangeMap<Run> {
  for (const run of runs) map = map.set(run.start, run.end, run);
  return map;
}

/** Adds what a mapping has in `[start, end)`, if it is a file's. */
function add(runs: Run[], start: number, end: number, mapping: Mapping): void {
  const mappable = sharedFileOf(mapping);
  if (mappable !== null) append(runs, { start, end, file: fileOf(mappable), delta: mapping.delta, listed: null });
}

/** Adds what lies behind all of `runs`; what continues the last one is one with it. */
function append(runs: Run[], run: Run): void {
  const last = runs[runs.length - 1];
  const goesOn = last !== undefined && last.end === run.start && last.delta === run.delta && last.file === run.file;
  if (goesOn) runs[runs.length - 1] = { ...last, end: run.end };
  else runs.push(run);
}

function isSameRuns(a: readonly Entry<Run>[], b: readonly Entry<Run>[]): boolean {
  return a.length === b.length && a.every(({ value: x }, i) => {
    const y = b[i]?.value;
    return y !== undefined && x.start === y.start && x.end === y.end && x.delta === y.delta &&
      x.file === y.file;
  });
}
