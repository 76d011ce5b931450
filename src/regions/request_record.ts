import { MemoryRange } from "../core/memory_range.ts";
import type { Entry } from "../core/range_map.ts";
import type { State } from "../core/map/state.ts";
import { normalize } from "../core/span.ts";
import { effortOf, partText, type RequestReport } from "../requests/request_report.ts";
import { type InspectNode, inspectState } from "./inspect.ts";

/** One request that is done or has failed. */
export interface RequestRecord {
  /** What was asked for: `"map"`, `"add mapping"`, `"batch"`, ... */
  readonly name: string;
  /** The region it is about, `null` where it is about none or several. */
  readonly region: { readonly id: number; readonly name: string } | null;
  /** The range of that region. */
  readonly range: MemoryRange | null;
  /** What a batch asked for, in order: each with its region. */
  readonly parts: readonly string[];
  /** Where what the guest sees has changed, or would have if it had not failed; in order and disjoint. */
  readonly changed: readonly MemoryRange[];
  /** How many effects on host memory, partitions and DMA targets it had, or would have had. */
  readonly steps: number;
  /** How many of these are system calls. */
  readonly systemCalls: number;
  /** How many of these are slots that go or come. */
  readonly slotChanges: number;
  /** What planning it and carrying it out took, in microseconds. */
  readonly microseconds: number;
  /** What it failed for, `null` if it did not; everything it had done has been undone then, or the error says what has not. */
  readonly error: Error | null;
  /** The memory map after it, kept alive by this record: what later requests change is another one. */
  readonly map: { inspect(): InspectNode };
}

/** The memory map as a request left it. */
export class RecordedMap {
  readonly #host: { readonly base: number; readonly length: number };

  /** `host` is where guest memory is. */
  constructor(
    readonly state: State,
    readonly locks: readonly Entry<number>[],
    host: { readonly base: number; readonly length: number },
  ) {
    this.#host = host;
  }

  /** What `inspect()` of the manager would have said then. */
  inspect(): InspectNode {
    return inspectState(this.state, this.#host, this.locks);
  }
}

/** Makes the record of a request out of what the map tells. What takes time is worked out when it is asked for. */
export function recordOf(report: RequestReport, map: RecordedMap): RequestRecord {
  const { name, region, parts, microseconds, error } = report;
  return {
    name,
    region: region === null ? null : { id: region.id, name: region.name },
    range: region === null ? null : region.range,
    parts: parts.map(partText),
    ...effortOf(report.plan),
    microseconds,
    error: error === null ? null : error instanceof Error ? error : new Error(String(error)),
    map,
    get changed() {
      return normalize(report.changed).map(({ start, end }) => new MemoryRange(start, end));
    },
  };
}
