import { REGION_ROW, ROW, UNITS_PER_NUMBER } from "./page_codes.ts";

/** A region as the map knows it. It never changes. */
export interface MapRegion {
  readonly id: number;
  readonly name: string;
  readonly priority: number;
  readonly type: "ram" | "device";
}

/** Who has the rows. */
export interface RowStore {
  /** A row that nothing else is written to. */
  take(): number;
  /** Writes all numbers of a row. */
  write(row: number, numbers: Float64Array): void;
  /** Takes a row back. */
  give(row: number): void;
}

/** A region that is written down. */
interface Written {
  readonly rows: readonly number[];
  /** How many rows of memory name it. */
  references: number;
}

/** How many regions that show nowhere stay written down at least: most of them show again next. */
const KEPT = 64;

/** The regions that rows of memory name, written down in rows of their own: once, while they come and go. */
export class RegionRows {
  readonly #store: RowStore;
  readonly #written = new Map<MapRegion, Written>();
  readonly #numbers = new Float64Array(ROW.length);
  #idle = 0;
  #rows = 0;

  constructor(store: RowStore) {
    this.#store = store;
  }

  /** How many rows regions take. */
  get count(): number {
    return this.#rows;
  }

  /** The first row of a region, which one more row of memory names. */
  refer(region: MapRegion): number {
    let written = this.#written.get(region);
    if (written === undefined) this.#written.set(region, written = this.#write(region));
    else if (written.references === 0) this.#idle--;
    written.references++;
    return written.rows[0]!;
  }

  /** One row of memory less names it. */
  release(region: MapRegion): void {
    const written = this.#written.get(region);
    if (written === undefined || --written.references > 0) return;
    this.#idle++;
    // Whoever looks through all of them has made as many idle before.
    if (this.#idle > KEPT && this.#idle > this.#written.size / 2) this.#sweep();
  }

  #sweep(): void {
    for (const [region, { rows, references }] of this.#written) {
      if (references > 0) continue;
      this.#written.delete(region);
      this.#rows -= rows.length;
      for (const row of rows) this.#store.give(row);
    }
    this.#idle = 0;
  }

  /** Writes from the last row to the first, each of which names the one behind it. */
  #write({ id, name, priority, type }: MapRegion): Written {
    const numbers = this.#numbers;
    const own = (ROW.length - REGION_ROW.text) * UNITS_PER_NUMBER;
    const more = (ROW.length - REGION_ROW.more) * UNITS_PER_NUMBER;
    const rows: number[] = [];
    let next = 0;
    for (let left = Math.ceil(Math.max(0, name.length - own) / more) - 1; left >= 0; left--) {
      numbers[REGION_ROW.next] = next;
      this.#writeText(name, own + left * more, REGION_ROW.more);
      rows.push(next = this.#store.take());
      this.#store.write(next, numbers);
    }
    numbers[REGION_ROW.next] = next;
    numbers[REGION_ROW.id] = id;
    numbers[REGION_ROW.traits] = 2 * priority + (type === "device" ? 1 : 0);
    numbers[REGION_ROW.units] = name.length;
    this.#writeText(name, 0, REGION_ROW.text);
    rows.push(next = this.#store.take());
    this.#store.write(next, numbers);
    rows.reverse();
    this.#rows += rows.length;
    return { rows, references: 0 };
  }

  /** Writes what of a text fits behind `at`. */
  #writeText(text: string, from: number, at: number): void {
    // Behind the end of the text there are no codes, which count as 0.
    const unit = (i: number) => text.charCodeAt(i) || 0;
    for (let i = from; at < ROW.length; at++, i += UNITS_PER_NUMBER) {
      this.#numbers[at] = unit(i) + unit(i + 1) * 2 ** 16 + unit(i + 2) * 2 ** 32;
    }
  }
}
