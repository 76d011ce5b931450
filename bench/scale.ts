/**
 * How the manager's own time grows: requests against targets that do nothing, in maps of four sizes and several shapes,
 * and slot changes in a real VM with up to 32,000 slots.
 *
 * @module
 */

import {
  Mappable,
  MemoryRange,
  type OverlapRule,
  type Partition,
  type RegionHandle,
  RegionManager,
  VaMapper,
  type VaTarget,
} from "membacking";
import type { Kvm } from "membacking/kvm";
import { BARE, sameSlots } from "./bare.ts";
import type { Effort } from "./contest.ts";
import { PAGE } from "./layout.ts";
import { type Figure, figure, ratio } from "./stats.ts";

/** How many regions or mappings. */
export const SIZES = [100, 1_000, 10_000, 30_000] as const;

/** How many slots. */
export const SLOT_SIZES = [100, 1_000, 10_000, 31_900] as const;

/** Far more than any shape needs. */
const LENGTH = 2 ** 40;
/** From one region to the next. */
const STRIDE = 16 * PAGE;
/** How many requests a round has before it starts over. */
const PLACES = 256;

/** A VA target that does nothing. */
function idleVa(): VaTarget<Mappable> {
  return { base: 2 ** 40, length: LENGTH, map() {}, protect() {}, remove() {}, park() {}, restore() {}, discard() {} };
}

/** A partition that does nothing, and has room for everything. */
function idlePartition(): Partition {
  return { mapRange() {}, unmapRange() {} };
}

/** A map, and a pair of requests on its part number `i` that leaves it as it was. */
type Pair = (i: number) => void;

interface Shape {
  readonly name: string;
  readonly title: string;
  readonly overlap: OverlapRule;
  build(regions: RegionManager, size: number, file: Mappable): Pair;
}

/** A region with one mapping of one page at its start. */
function region(regions: RegionManager, file: Mappable, range: MemoryRange, priority = 0): RegionHandle {
  const made = regions.newRegion({ name: "scale", range, priority });
  made.addMapping({ rangeInRegion: MemoryRange.of(0, PAGE), mappable: file });
  return made;
}

/** Many regions side by side, mapped. */
function many(regions: RegionManager, file: Mappable, count: number, priority = 0): RegionHandle[] {
  const made = Array.from(
    { length: count },
    (_, i) => region(regions, file, MemoryRange.of(i * STRIDE, 4 * PAGE), priority),
  );
  for (const handle of made) handle.map();
  return made;
}

function unmapAndMap(handles: readonly RegionHandle[]): Pair {
  return (i) => {
    const handle = handles[i]!;
    handle.unmap();
    handle.map();
  };
}

/** The shapes, each with the request that is measured in it. */
export const SHAPES: readonly Shape[] = [
  {
    name: "disjoint",
    title: "disjoint regions: unmap + map one",
    overlap: "nested",
    build: (regions, size, file) => unmapAndMap(many(regions, file, size)),
  },
  {
    name: "nested",
    title: "regions in one that hides them: unmap + map one",
    overlap: "nested",
    build(regions, size, file) {
      region(regions, file, MemoryRange.of(0, size * STRIDE), 1).map();
      return unmapAndMap(many(regions, file, size));
    },
  },
  {
    name: "over-one",
    title: "regions over one that shows between them: unmap + map one",
    overlap: "any",
    build(regions, size, file) {
      region(regions, file, MemoryRange.of(0, size * STRIDE)).map();
      return unmapAndMap(many(regions, file, size, 1));
    },
  },
  {
    name: "stacked",
    title: "regions on one range, equal: unmap + map the visible one",
    overlap: "nested",
    build(regions, size, file) {
      const handles = Array.from({ length: size }, () => region(regions, file, MemoryRange.of(0, 4 * PAGE)));
      for (const handle of handles) handle.map();
      const visible = handles.slice(0, 1);
      return () => unmapAndMap(visible)(0);
    },
  },
  {
    name: "mappings",
    title: "mappings in one region: remove + add one",
    overlap: "nested",
    build(regions, size, file) {
      const only = regions.newRegion({ name: "scale", range: MemoryRange.of(0, size * STRIDE), priority: 0 });
      const ranges = Array.from({ length: size }, (_, i) => MemoryRange.of(i * STRIDE, PAGE));
      regions.batch(() => {
        for (const rangeInRegion of ranges) only.addMapping({ rangeInRegion, mappable: file });
      });
      only.map();
      return (i) => {
        const rangeInRegion = ranges[i]!;
        only.removeMappings(rangeInRegion);
        only.addMapping({ rangeInRegion, mappable: file });
      };
    },
  },
];

/** What was measured of one shape. */
export interface ScaleRow {
  readonly name: string;
  readonly title: string;
  /** How many regions, mappings or slots, in order. */
  readonly sizes: readonly number[];
  /** Microseconds per request, by size. */
  readonly time: readonly Figure[];
  /** The time at the largest size as a multiple of that at the smallest. */
  readonly growth: Figure;
}

/** The same pseudo-random places in every run. */
function places(size: number): number[] {
  let seed = 12345;
  return Array.from({ length: PLACES }, () => {
    seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
    return Math.floor(seed / 2 ** 32 * size);
  });
}

/** Runs pairs of requests in maps of several sizes, in turns, and times each. */
function measure(pairs: readonly Pair[], sizes: readonly number[], { rounds, warmUp }: Effort) {
  const at = sizes.map(places);
  const round = (k: number): number => {
    const pair = pairs[k]!;
    const start = performance.now();
    for (const i of at[k]!) pair(i);
    return (performance.now() - start) * 1e3 / (2 * PLACES);
  };
  for (const until = performance.now() + warmUp * sizes.length; performance.now() < until;) {
    sizes.forEach((_, k) => round(k));
  }
  const times = sizes.map((): number[] => []);
  for (let n = 0; n < rounds; n++) sizes.forEach((_, k) => times[k]!.push(round(k)));
  return { time: times.map(figure), growth: ratio(times.at(-1)!, times[0]!) };
}

/** The manager's own time per request, by shape and size. */
export function ownTime(effort: Effort, shapes: readonly Shape[] = SHAPES): ScaleRow[] {
  using file = Mappable.memfd("scale", PAGE);
  return shapes.map(({ name, title, overlap, build }) => {
    using stack = new DisposableStack();
    const pairs = SIZES.map((size) => {
      const regions = stack.use(new RegionManager(idleVa(), { overlap }));
      regions.addPartition(idlePartition());
      return build(regions, size, file);
    });
    return { name, title, sizes: SIZES, ...measure(pairs, SIZES, effort) };
  });
}

/** Whole requests that change a slot, in a VM that has many. */
export interface SlotRow {
  /** How many slots. */
  readonly size: number;
  /** Microseconds per request: of this package, of the same calls at the same places, and of one slot over and over. */
  readonly ours: Figure;
  readonly bare: Figure;
  readonly one: Figure;
  /** Ours by the second, and by the third. */
  readonly ratio: Figure;
  readonly ratioToOne: Figure;
}

/** The time of requests that add and delete a slot beside many others, and that of the same calls bare. */
export function slotTime(kvm: Kvm, effort: Effort): SlotRow[] {
  const most = SLOT_SIZES.at(-1)!;
  using file = Mappable.memfd("slots", most * PAGE);
  // One size after the other: the host mappings of all together would be more than a process may have.
  return SLOT_SIZES.map((size): SlotRow => {
    using va = VaMapper.reserve(2 ** 30);
    using vm = kvm.createVm();
    using regions = new RegionManager(va);
    regions.addPartition(vm);
    const only = regions.newRegion({ name: "slots", range: MemoryRange.of(0, size * PAGE), priority: 0 });
    // In reverse order, so that no two mappings can be one to the host.
    const mappings = Array.from({ length: size }, (_, i) => ({
      rangeInRegion: MemoryRange.of(i * PAGE, PAGE),
      mappable: file,
      fileOffset: (size - 1 - i) * PAGE,
    }));
    only.map();
    regions.batch(() => {
      for (const mapping of mappings) only.addMapping(mapping);
    });
    const at = places(size);
    const ours = () => {
      for (const i of at) {
        only.removeMappings(mappings[i]!.rangeInRegion);
        only.addMapping(mappings[i]!);
      }
    };
    using one = BARE["slot-4k"]!({ kvm, vm, file });
    const bare = sameSlots(vm, va.base, file.fd, at.map((i) => i * PAGE), (gpa) => (size - 1) * PAGE - gpa);
    const times = { ours: [] as number[], bare: [] as number[], one: [] as number[] };
    const round = (run: () => void) => {
      const start = performance.now();
      run();
      return (performance.now() - start) * 1e3 / (2 * PLACES);
    };
    for (const until = performance.now() + effort.warmUp; performance.now() < until;) ours();
    for (let n = 0; n < effort.rounds / 2; n++) {
      times.ours.push(round(ours));
      times.bare.push(round(bare));
      times.one.push(round(() => one.run(PLACES)));
    }
    const { ours: own } = times;
    return {
      ...{ size, ours: figure(own), bare: figure(times.bare), one: figure(times.one) },
      ...{ ratio: ratio(own, times.bare), ratioToOne: ratio(own, times.one) },
    };
  });
}
