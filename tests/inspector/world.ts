/**
 * A memory map that changes at random, without a kernel behind it, and what `inspect()` says about it, page by page.
 *
 * @module
 */

import { type InspectNode, Mappable, MembackingError, MemoryRange, type RegionHandle, RegionManager } from "membacking";
import { RecordingDmaTarget, RecordingPartition, RecordingVa } from "membacking/testing";
import { PAGE } from "../support/units.ts";

/** How many pages the map has. */
export const PAGES = 64;

/** Pseudo-random numbers below 1, the same for the same seed (xorshift). */
function randomFrom(seed: number): () => number {
  let x = (seed | 0) || 1;
  return () => {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    return (x >>> 0) / 2 ** 32;
  };
}

/** A memory map with two targets, and requests made of random numbers. */
export class World implements Disposable {
  readonly manager: RegionManager;
  readonly #regions: RegionHandle[] = [];
  readonly #files = [0, 1, 2].map((i) => Mappable.memfd(`file-${i}`, PAGES * PAGE));
  readonly #random: () => number;
  #count = 0;

  constructor(seed: number) {
    this.#random = randomFrom(seed * 2_654_435_761);
    this.manager = new RegionManager(new RecordingVa(PAGES * PAGE), { overlap: "any" });
    this.manager.addPartition(new RecordingPartition({ name: "vm" }));
    this.manager.addDmaTarget(new RecordingDmaTarget({ name: "nic" }));
  }

  /** Makes a request; one that is refused changes nothing. */
  step(): void {
    try {
      this.#request();
    } catch (error) {
      if (!(error instanceof MembackingError)) throw error;
    }
  }

  #request(): void {
    const region = this.#regions[this.#below(this.#regions.length)];
    const kind = this.#below(10);
    if (region === undefined || (kind < 2 && this.#regions.length < 12)) {
      const start = this.#below(PAGES - 1);
      const range = MemoryRange.of(start * PAGE, (1 + this.#below(PAGES - start)) * PAGE);
      const name = `region ${this.#count++}`;
      const type = this.#below(3) === 0 ? "device" : "ram";
      this.#regions.push(this.manager.newRegion({ name, range, priority: this.#below(4), type }));
    } else if (kind === 2) {
      region[Symbol.dispose]();
      this.#regions.splice(this.#regions.indexOf(region), 1);
    } else if (kind < 6) {
      const rangeInRegion = this.#part(region);
      const mappable = this.#files[this.#below(4)] ?? "private";
      const fileOffset = mappable === "private" ? 0 : this.#below(PAGES - rangeInRegion.length / PAGE) * PAGE;
      region.addMapping({ rangeInRegion, mappable, fileOffset, writable: this.#below(2) === 0 });
    } else if (kind === 6) region.removeMappings(this.#part(region));
    else if (kind === 7) region.unmap();
    else region.map({ writable: this.#below(3) > 0 });
  }

  #part(region: RegionHandle): MemoryRange {
    const pages = region.range.length / PAGE;
    const start = this.#below(pages);
    return MemoryRange.of(start * PAGE, (1 + this.#below(pages - start)) * PAGE);
  }

  #below(limit: number): number {
    return Math.floor(this.#random() * limit);
  }

  [Symbol.dispose](): void {
    this.manager[Symbol.dispose]();
    for (const file of this.#files) file[Symbol.dispose]();
  }
}

/** A range as numbers. */
export function bounds(range: string): [number, number] {
  const [start = NaN, end = NaN] = range.split("-").map(Number);
  return [start, end];
}

/** What a guest sees at each page, by `inspect()` alone. */
export function pagesSeen(map: InspectNode): string[] {
  const pages = Array<string>(PAGES).fill("");
  for (const { name, visible, mappings, mapParams } of map.regions) {
    for (const [from, to] of visible.map(bounds)) {
      for (let at = from; at < to; at += PAGE) pages[at / PAGE] = `hole ${name}`;
      for (const { range, backing, writable } of mappings) {
        const [start, end] = bounds(range);
        const look = writable && mapParams?.writable ? "writable" : "read-only";
        const file = backing.match(/"(.*)"/)?.[1] ?? "private";
        for (let at = Math.max(from, start); at < Math.min(to, end); at += PAGE) {
          pages[at / PAGE] = `${look} ${name} · ${file}`;
        }
      }
    }
  }
  return pages;
}

/** The pages that pieces of a lane cover, as the page draws it. */
export function pagesDrawn(pieces: Iterable<readonly [number, number, string, string, ...unknown[]]>): string[] {
  const pages = Array<string>(PAGES).fill("");
  for (const [start, end, look, text] of pieces) {
    for (let page = Math.floor(start / PAGE); page < Math.min(PAGES, Math.ceil(end / PAGE)); page++) {
      pages[page] = `${look} ${text}`;
    }
  }
  return pages;
}
