import type { Mappable } from "../../ffi/files/mappable.ts";
import type { Span } from "../core/span.ts";
import type { View } from "../core/map/overlap.ts";
import { MemoryRange } from "../core/memory_range.ts";
import { sharedFileOf } from "../memory/file_backing.ts";
import type { RegionManager } from "../regions/region_manager.ts";
import type { Report } from "../targets/report.ts";

/** A range of RAM that another process can map, as a vhost-user front end announces it. */
export interface SharedRegion {
  /** The GPA range, in bytes. */
  readonly range: MemoryRange;
  /** The file behind it. Stays the manager's, and open until the region leaves the list: duplicate it to keep it. */
  readonly fd: number;
  /** Where in the file the range begins, in bytes. */
  readonly fileOffset: number;
}

/** Is told of the list as it is now. */
export type SharedRegionsListener = (regions: SharedRegion[]) => void;

interface Shared {
  readonly start: number;
  end: number;
  readonly mappable: Mappable;
  readonly fileOffset: number;
}

/** RAM that can be shared, as it is visible now, and who wants to know when that changes. */
export class ShareableRegions {
  readonly #regions: RegionManager;
  readonly #report: Report;
  readonly #listeners = new Set<{ readonly listener: SharedRegionsListener }>();
  #watching: Disposable | undefined;
  /** What the listeners were told last. */
  #told: readonly Shared[] = [];
  #telling = false;

  constructor(regions: RegionManager, report: Report) {
    this.#regions = regions;
    this.#report = report;
  }

  /** RAM that the guest may write and that has a file, parts that continue each other in both as one. */
  list(): SharedRegion[] {
    return this.#find().map(({ start, end, mappable, fileOffset }) => ({
      range: new MemoryRange(start, end),
      fd: mappable.fd,
      fileOffset,
    }));
  }

  /** Calls `listener` after each request that changed the list, until the result is disposed. */
  watch(listener: SharedRegionsListener): Disposable {
    if (typeof listener !== "function") throw new TypeError("A listener must be a function");
    if (this.#listeners.size === 0) {
      this.#told = this.#find();
      this.#watching = this.#regions.watch((old, state, changed) => this.#onRequest(old, state, changed));
    }
    const entry = { listener };
    this.#listeners.add(entry);
    return {
      [Symbol.dispose]: () => {
        if (this.#listeners.delete(entry) && this.#listeners.size === 0) this.#watching?.[Symbol.dispose]();
      },
    };
  }

  #find(): Shared[] {
    const found: Shared[] = [];
    for (const { start, end, value } of this.#regions.pieces(0, Number.MAX_SAFE_INTEGER)) {
      const mappable = sharedFileOf(value.mapping);
      if (mappable === null || value.region.type !== "ram" || !value.writable) continue;
      const fileOffset = start + value.mapping.delta;
      const last = found.at(-1);
      if (
        last !== undefined && last.end === start && last.mappable.file === mappable.file &&
        last.fileOffset + start - last.start === fileOffset
      ) {
        last.end = end;
      } else {
        found.push({ start, end, mappable, fileOffset });
      }
    }
    return found;
  }

  #onRequest(old: View, state: View, changed: readonly Span[]): void {
    const touchesRam = changed.some(({ start, end }) =>
      [old, state].some(({ visible }) => visible.overlapping(start, end).some(({ value }) => value.type === "ram"))
    );
    // A listener may make requests: those end here as well, and the loop below tells of them in turn.
    if (!touchesRam || this.#telling) return;
    this.#telling = true;
    try {
      while (this.#listeners.size > 0 && !this.#regions.disposed) {
        const now = this.#find();
        if (isSame(now, this.#told)) return;
        this.#told = now;
        for (const { listener } of [...this.#listeners]) this.#tell(listener);
      }
    } finally {
      this.#telling = false;
    }
  }

  /** What a listener throws is not the requester's fault. */
  #tell(listener: SharedRegionsListener): void {
    const failed = (error: unknown) => this.#report("error", "A listener for shareable regions failed", error);
    try {
      const result: unknown = listener(this.list());
      if (result instanceof Promise) result.catch(failed);
    } catch (error) {
      failed(error);
    }
  }
}

function isSame(a: readonly Shared[], b: readonly Shared[]): boolean {
  return a.length === b.length && a.every((x, i) => {
    const y = b[i];
    return y !== undefined && x.start === y.start && x.end === y.end && x.fileOffset === y.fileOffset &&
      x.mappable.file === y.mappable.file;
  });
}
