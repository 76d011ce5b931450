import { MemoryRange } from "../core/memory_range.ts";
import type { Entry } from "../core/range_map.ts";
import type { Region } from "../core/map/region.ts";
import type { State } from "../core/map/state.ts";
import { normalize, type Span } from "../core/span.ts";
import { effortOf, partText, type RequestPart, type RequestReport } from "../requests/request_report.ts";
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

/** A record made of what the map tells. It keeps little, and works out what takes time when it is asked. */
export class RecordedRequest implements RequestRecord {
  readonly name: string;
  readonly steps: number;
  readonly systemCalls: number;
  readonly slotChanges: number;
  readonly microseconds: number;
  readonly error: Error | null;
  readonly map: RecordedMap;
  readonly #region: Region | null;
  readonly #parts: readonly RequestPart[];
  readonly #changed: readonly Span[];

  constructor({ name, region, parts, changed, plan, microseconds, error }: RequestReport, map: RecordedMap) {
    const { steps, systemCalls, slotChanges } = effortOf(plan);
    this.name = name;
    this.steps = steps;
    this.systemCalls = systemCalls;
    this.slotChanges = slotChanges;
    this.microseconds = microseconds;
    this.error = error === null ? null : error instanceof Error ? error : new Error(String(error));
    this.map = map;
    this.#region = region;
    this.#parts = parts;
    this.#changed = changed;
  }

  get region(): { readonly id: number; readonly name: string } | null {
    return this.#region === null ? null : { id: this.#region.id, name: this.#region.name };
  }

  get range(): MemoryRange | null {
    return this.#region === null ? null : this.#region.range;
  }

  get parts(): readonly string[] {
    return this.#parts.map(partText);
  }

  get changed(): readonly MemoryRange[] {
    return normalize(this.#changed).map(({ start, end }) => new MemoryRange(start, end));
  }
}
