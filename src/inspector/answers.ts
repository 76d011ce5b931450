import type { State } from "../core/map/state.ts";
import { EVERYWHERE, type Span } from "../core/span.ts";
import { drawMemoryMap } from "../drawing/draw.ts";
import { drawMemoryMapSvg } from "../drawing/draw_svg.ts";
import { inspectState } from "../regions/inspect.ts";
import { about, rangeText } from "./about.ts";
import { compare, type Comparison } from "./compare.ts";
import { find } from "./find.ts";
import { Heat } from "./heat.ts";
import type { History, Point } from "./history.ts";
import { Layouts } from "./layout.ts";
import type { PageFile } from "./page_files.ts";
import type { Source } from "./source.ts";
import { holderLanes, type Holders, summaryOf, viewOf } from "./view.ts";
import type { Watch } from "./watch.ts";

/** A question that cannot be answered. */
export class NoAnswer extends Error {}

/** Answers what the page asks, about the present and the past. */
export class Answers implements Disposable {
  readonly #source: Source;
  readonly #history: History;
  readonly #layouts = new Layouts();
  readonly #watch: Watch;
  readonly #heat: Heat;

  constructor(source: Source, history: History, watch: Watch) {
    this.#source = source;
    this.#history = history;
    this.#watch = watch;
    this.#heat = new Heat(source, watch.notify);
  }

  /** Whether there is an answer of that name. */
  readonly names: ReadonlySet<string> = new Set(["view", "about", "find", "requests", "compare"]);

  /** Answers: plain data. Takes time on the thread of whoever makes requests, so it takes little. */
  answer(name: string, query: URLSearchParams): unknown {
    const began = performance.now();
    const said = this.#answer(name, query);
    return { ...this.#news(), ...said, milliseconds: performance.now() - began };
  }

  /**
   * The map as a file: `null` where there is none of that name. What is in it, `inspect()` said at that moment, locks of
   * the past included.
   */
  file(name: string, query: URLSearchParams): PageFile | null {
    const type = FILE_TYPES.get(name);
    if (type === undefined) return null;
    const at = query.get("at");
    const { map } = this.#source;
    const inspected = inspectState(this.#stateAt(at), map, this.#holdersAt(at).locks);
    if (name === "map.json") return { type, text: `${JSON.stringify(inspected, null, 2)}\n` };
    return { type, text: name === "map.svg" ? drawMemoryMapSvg(inspected) : `${drawMemoryMap(inspected)}\n` };
  }

  /** Looks at nothing any more. */
  [Symbol.dispose](): void {
    this.#heat[Symbol.dispose]();
  }

  /** What has become of the history. */
  #news(): Record<string, unknown> {
    const { first, last, bytes, limit } = this.#history;
    return { first, last, bytes, limit, gone: this.#source.regions.disposed, watching: this.#watch.isWatching };
  }

  #answer(name: string, query: URLSearchParams): object {
    switch (name) {
      case "view":
        return this.#view(query);
      case "about": {
        const gpa = numberOf(query, "gpa");
        if (gpa < 0 || gpa > Number.MAX_SAFE_INTEGER) throw new NoAnswer("There is no such address");
        return about(this.#stateAt(query.get("at")), Math.floor(gpa), this.#source.map.base);
      }
      case "find": {
        const state = this.#stateAt(query.get("at"));
        return { found: find(state, this.#layouts.of(state.layers), query.get("q") ?? "") };
      }
      case "compare": {
        const { seen, notes } = this.#compared(query);
        return {
          count: seen.length,
          seen: seen.slice(0, MOST_DIFFERENCES).map(rowOf),
          notes: notes.slice(0, MOST_DIFFERENCES),
        };
      }
      default:
        return this.#requests(numberOf(query, "from"), numberOf(query, "count"));
    }
  }

  #view(query: URLSearchParams): object {
    const at = query.get("at");
    const state = this.#stateAt(at);
    const layout = this.#layouts.of(state.layers);
    const { map } = this.#source;
    const other = query.get("with");
    const request = {
      axis: query.get("axis") === "straight" ? "straight" as const : "folded" as const,
      layout: numberOf(query, "layout"),
      from: numberOf(query, "from"),
      to: numberOf(query, "to"),
      start: numberOf(query, "start"),
      end: numberOf(query, "end"),
      columns: Math.max(1, Math.min(MOST_COLUMNS, numberOf(query, "columns"))),
    };
    const isLive = at === null;
    const isHot = query.get("heat") === "1";
    return {
      ...viewOf(
        state,
        layout,
        request,
        map.length,
        (window) => [...(isHot && isLive ? this.#heat.lanes(window) : []), ...holderLanes(this.#holdersAt(at), window)],
        other === null ? null : { state: this.#stateAt(other), differences: this.#compared(query).seen },
      ),
      summary: summaryOf(state, layout, isLive ? this.#source.devices() : null),
    };
  }

  /** Who holds what; of the past the locks alone are known. */
  #holdersAt(at: string | null): Holders {
    if (at === null) return this.#source.map.holders();
    return { locks: this.#pointAt(at).locks ?? [], clients: [] };
  }

  /** The state after a request, or the present one. */
  #stateAt(at: string | null): State {
    if (at === null) return this.#source.map.state();
    return this.#pointAt(at).state;
  }

  #pointAt(at: string): Point {
    const point = this.#history.at(Number(at));
    if (point === undefined) throw new NoAnswer(`Request ${Number(at)} is not in the history any more`);
    return point;
  }

  #compared(query: URLSearchParams): Comparison {
    const other = query.get("with");
    if (other === null) throw new NoAnswer("With what?");
    const now = this.#stateAt(query.get("at"));
    const was = this.#pointAt(other);
    const at = query.get("at") === null ? this.#history.last : Number(query.get("at"));
    return compare(was.state, now, this.#changedBetween(was.number, at), this.#layouts);
  }

  /** Where states after two requests may differ. */
  #changedBetween(a: number, b: number): readonly Span[] {
    const spans: Span[] = [];
    for (let number = Math.min(a, b) + 1; number <= Math.max(a, b); number++) {
      const point = this.#history.at(number);
      // Something was missed there, or it is cheaper to look everywhere.
      if (point === undefined || point.record === null || spans.length > MOST_SPANS) return EVERYWHERE;
      spans.push(...point.record.changed);
    }
    return this.#watch.isWatching ? spans : EVERYWHERE;
  }

  #requests(from: number, count: number): object {
    const rows: object[] = [];
    const end = Math.min(this.#history.last, from + Math.min(count, MOST_ROWS) - 1);
    for (let number = Math.max(this.#history.first, Math.floor(from)); number <= end; number++) {
      const point = this.#history.at(number);
      if (point !== undefined) rows.push(requestRow(point));
    }
    return { rows };
  }
}

const FILE_TYPES: ReadonlyMap<string, string> = new Map([
  ["map.json", "application/json; charset=utf-8"],
  ["map.svg", "image/svg+xml; charset=utf-8"],
  ["map.txt", "text/plain; charset=utf-8"],
]);

const MOST_ROWS = 500;
const MOST_COLUMNS = 4096;
const MOST_SPANS = 10_000;
const MOST_DIFFERENCES = 500;
const MOST_RANGES = 4;

function numberOf(query: URLSearchParams, name: string): number {
  const number = Number(query.get(name) ?? "NaN");
  if (!Number.isFinite(number)) throw new NoAnswer(`"${name}" must be a number`);
  return number;
}

function rowOf<D extends Span>(difference: D): object {
  return { ...difference, range: rangeText(difference.start, difference.end) };
}

/** A request as the page lists it. */
function requestRow({ number, time, record }: Point): object {
  if (record === null) return { number, time, name: null };
  const { name, region, range, parts, changed, steps, systemCalls, slotChanges, microseconds, error } = record;
  return {
    ...{ number, time, name, parts, steps, systemCalls, slotChanges, microseconds },
    region: region === null ? null : region.name,
    range: range === null ? null : String(range),
    changed: changed.slice(0, MOST_RANGES).map(({ start, end }) => rangeText(start, end)),
    changes: changed.length,
    start: changed[0]?.start ?? range?.start ?? null,
    end: changed.at(-1)?.end ?? range?.end ?? null,
    error: error === null ? null : errorLines(error),
  };
}

/** What went wrong, and why, from the outside in. */
function errorLines(error: unknown): string[] {
  const lines: string[] = [];
  for (let at = error; at instanceof Error && lines.length < 8; at = at.cause) lines.push(`${at.name}: ${at.message}`);
  return lines.length === 0 ? [String(error)] : lines;
}
