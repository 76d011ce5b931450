import type { Entry } from "../core/range_map.ts";
import type { State } from "../core/map/state.ts";
import { RecordedMap, type RequestRecord } from "../regions/request_record.ts";

/** One point of the past: a request, and the map as it left it. */
export interface Point {
  /** Ascending, without gaps. */
  readonly number: number;
  /** When it was over, in milliseconds since the Unix epoch. */
  readonly time: number;
  /** The request; `null` where the inspector began to look, and may have missed some. */
  readonly record: RequestRecord | null;
  /** The map after it. */
  readonly state: State;
  /** The locks then; `null` where the inspector began to look. */
  readonly locks: readonly Entry<number>[] | null;
  /** What keeping it costs at most, in bytes. */
  readonly bytes: number;
}

/** A record, with its strings and arrays. */
const RECORD = 1000;
/** A range. */
const RANGE = 80;
/** A leaf of a range map, with as many addresses of its own as fit. */
const LEAF = 450;
/** An inner node of a range map. */
const NODE = 560;
/** Entries of a leaf and children of an inner node, as few as they usually have. */
const LEAF_ENTRIES = 8;
const NODE_CHILDREN = 24;

/**
 * The points of the past, as many as fit into so many bytes.
 *
 * States share what did not change, so a point costs the paths to what did: that is what is counted, from above.
 */
export class History {
  /** The most bytes. */
  readonly limit: number;
  readonly #points: (Point | undefined)[] = [];
  /** How many slots at the beginning of the array are free. */
  #free = 0;
  #next = 1;
  #bytes = 0;

  constructor(limit: number) {
    this.limit = limit;
  }

  /** What the points cost at most, in bytes. */
  get bytes(): number {
    return this.#bytes;
  }

  /** The number of the oldest point; one more than `last` where there is none. */
  get first(): number {
    return this.#next - (this.#points.length - this.#free);
  }

  /** The number of the newest point. */
  get last(): number {
    return this.#next - 1;
  }

  /** The point of that number, `undefined` where it is gone or still to come. */
  at(number: number): Point | undefined {
    return this.#points[this.#free + number - this.first];
  }

  /** Adds a request. */
  add(record: RequestRecord): void {
    const { map } = record;
    // The inspector listens to nothing but a RegionManager.
    if (!(map instanceof RecordedMap)) return;
    const { state, locks } = map;
    const ranges = record.changed.length + locks.length;
    this.#add({ record, state, locks }, RECORD + ranges * RANGE + costOf(state, record.changed.length));
  }

  /** Adds the map as it is, without a request that led there. */
  begin(state: State): void {
    this.#add({ record: null, state, locks: null }, RECORD);
  }

  #add(what: Pick<Point, "record" | "state" | "locks">, bytes: number): void {
    const { record, state, locks } = what;
    this.#points.push({ number: this.#next++, time: Date.now(), record, state, locks, bytes });
    this.#bytes += bytes;
    // The newest one stays: it is what is looked at.
    while (this.#bytes > this.limit && this.#free < this.#points.length - 1) {
      this.#bytes -= this.#points[this.#free]?.bytes ?? 0;
      this.#points[this.#free++] = undefined;
    }
    if (this.#free > 64 && this.#free > this.#points.length / 2) {
      this.#points.splice(0, this.#free);
      this.#free = 0;
    }
  }
}

/** What a state at most does not share with the one before it, if it differs in so many spans. */
function costOf(state: State, spans: number): number {
  // Of the mappings of one region it is only known that there are no more than that.
  let paths = pathOf(state.visible.size) + pathOf(state.hostMappings);
  for (const { slots } of state.partitions) paths += pathOf(slots.held.size);
  for (const { mappings } of state.dmaTargets) paths += pathOf(mappings.held.size);
  return paths * Math.max(1, spans);
}

/** A path from the root of a range map of so many entries. */
function pathOf(size: number): number {
  let bytes = LEAF;
  for (let nodes = size / LEAF_ENTRIES; nodes > 1; nodes /= NODE_CHILDREN) bytes += NODE;
  return bytes;
}
