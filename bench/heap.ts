/**
 * Prints how many bytes of heap a region and a mapping take. Run with `--v8-flags=--expose-gc`.
 *
 * @module
 */

import { Mappable, MemoryRange, RegionManager } from "membacking";
import { PAGE } from "./layout.ts";

/** Bytes of heap, each measured over `HEAP_SIZE` of them. */
export interface Heap {
  /** Per mapped region that has one mapping. */
  readonly region: number;
  /** Per mapping of a region that has many. */
  readonly mapping: number;
}

/** How many regions and mappings are made. */
export const HEAP_SIZE = 30_000;

function used(): number {
  const { gc } = globalThis as { gc?: () => void };
  if (gc === undefined) throw new Error("Run with --v8-flags=--expose-gc");
  gc();
  gc();
  return Deno.memoryUsage().heapUsed;
}

function manager(): RegionManager {
  const regions = new RegionManager({
    base: 2 ** 40,
    length: 2 ** 40,
    map() {},
    protect() {},
    remove() {},
    park() {},
    restore() {},
    discard() {},
  });
  regions.addPartition({ mapRange() {}, unmapRange() {} });
  return regions;
}

function perRegion(file: Mappable): number {
  const regions = manager();
  const before = used();
  const handles = Array.from({ length: HEAP_SIZE }, (_, i) => {
    const region = regions.newRegion({ name: "heap", range: MemoryRange.of(i * 2 * PAGE, PAGE), priority: 0 });
    region.addMapping({ rangeInRegion: MemoryRange.of(0, PAGE), mappable: file });
    region.map();
    return region;
  });
  const bytes = (used() - before) / HEAP_SIZE;
  if (handles.length === 0) throw new Error("Kept alive until here");
  return bytes;
}

function perMapping(file: Mappable): number {
  const regions = manager();
  const region = regions.newRegion({ name: "heap", range: MemoryRange.of(0, HEAP_SIZE * 2 * PAGE), priority: 0 });
  region.map();
  const before = used();
  regions.batch(() => {
    for (let i = 0; i < HEAP_SIZE; i++) {
      region.addMapping({ rangeInRegion: MemoryRange.of(i * 2 * PAGE, PAGE), mappable: file });
    }
  });
  const bytes = (used() - before) / HEAP_SIZE;
  if (regions.memory.length === 0) throw new Error("Kept alive until here");
  return bytes;
}

const MEASURES: Readonly<Record<string, (file: Mappable) => number>> = { region: perRegion, mapping: perMapping };

if (import.meta.main) {
  using file = Mappable.memfd("heap", PAGE);
  const [what = ""] = Deno.args;
  const measure = MEASURES[what];
  if (measure === undefined) throw new TypeError(`Say which to measure: ${Object.keys(MEASURES).join(", ")}`);
  console.log(measure(file));
}
