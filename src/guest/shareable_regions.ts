import { fileOf, type Mappable } from "../../ffi/files/mappable.ts";
import { gaps, type Span } from "../core/span.ts";
import type { View } from "../core/map/overlap.ts";
import { MemoryRange } from "../core/memory_range.ts";
import { sharedFileOf } from "../memory/file_backing.ts";
import type { RegionHandle } from "../regions/region_handle.ts";
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

interface Shared {
  readonly start: number;
  end: number;
  readonly mappable: Mappable;
  readonly fileOffset: number;
}

/** RAM that can be shared, as it is visible now, and who wants to know when that changes. */
export class ShareableRegions {
  readonly #regions: RegionManager;
  readonly #ram: () => readonly RegionHandle[];
  readonly #report: Report;
  readonly #listeners = new Set<{ readonly listener: SharedRegionsListener }>();
  #watching: Disposable | undefined;
  /** What the listeners were told last. */
  #told: readonly Shared[] = [];
  #toldRam = "";
  #telling = false;

  /** `ram` are the regions whose memory counts whatever is visible of it. */
  constructor(regions: RegionManager, ram: () => readonly RegionHandle[], report: Report) {
    this.#regions = regions;
    this.#ram = ram;
    this.#report = report;
  }

  /** RAM that has a file, parts that continue each other in both as one. */
  list(): SharedRegion[] {
    const { memory } = this.#regions;
    const base = internalsOf(this.#regions).base;
    return this.#find().map(({ start, end, mappable, fileOffset }) => {
      const range = new MemoryRange(start, end);
      const writable = [...memory.pieces(range)].filter(({ writable }) => writable).map(({ range }) => range);
      const readOnly = gaps(start, end, writable).map((gap) => new MemoryRange(gap.start, gap.end));
      return { range, fd: mappable.fd, fileOffset, hva: base + start, readOnly };
    });
  }

  /** Calls `listener` after each request that changed the list, until the result is disposed. */
  watch(listener: SharedRegionsListener): Disposable {
    if (typeof listener !== "function") throw new TypeError("A listener must be a function");
    if (this.#listeners.size === 0) {
      this.#told = this.#find();
      this.#toldRam = this.#ramIds();
      this.#watching = internalsOf(this.#regions).watch((old, state, changed) => this.#onRequest(old, state, changed));
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
    const { pieces, mappings } = internalsOf(this.#regions);
    const ram = this.#ram();
    const own = new Set(ram.map(({ id }) => id));
    const others = pieces(0, Number.MAX_SAFE_INTEGER)
      .filter(({ value: { region, writable } }) => region.type === "ram" && writable && !own.has(region.id))
      .map(({ start, end, value: { mapping } }) => ({ start, end, value: mapping }));
    const all = [...ram.flatMap(mappings), ...others].sort((a, b) => a.start - b.start);
    const found: Shared[] = [];
    for (const { start, end, value: mapping } of all) {
      const mappable = sharedFileOf(mapping);
      if (mappable === null) continue;
      const fileOffset = start + mapping.delta;
      const last = found.at(-1);
      if (
        last !== undefined && last.end === start && fileOf(last.mappable) === fileOf(mappable) &&
        last.fileOffset + start - last.start === fileOffset
      ) {
        last.end = end;
      } else {
        found.push({ start, end, mappable, fileOffset });
      }
    }
    return found;
  }

  #ramIds(): string {
    return this.#ram().map(({ id }) => id).join();
  }

  #onRequest(old: View, state: View, changed: readonly Span[]): void {
    const touchesRam = changed.some(({ start, end }) =>
      [old, state].some(({ visible }) => visible.overlapping(start, end).some(({ value }) => value.type === "ram"))
    );
    const ram = this.#ramIds();
    const isSameRam = ram === this.#toldRam;
    this.#toldRam = ram;
    // A listener may make requests: those end here as well, and the loop below tells of them in turn.
    if ((!touchesRam && isSameRam) || this.#telling) return;
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
      fileOf(x.mappable) === fileOf(y.mappable);
  });
}
