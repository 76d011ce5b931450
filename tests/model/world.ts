/**
 * A real region manager with recording targets around it, driven by the same requests as the naive model, and the
 * comparison of the two.
 *
 * @module
 */

import { assert, assertEquals, assertStrictEquals, fail } from "@std/assert";
import {
  type Explanation,
  Mappable,
  type MemoryPolicy,
  MemoryRange,
  type OutOfStep,
  type RegionHandle,
  RegionManager,
} from "membacking";
import {
  Faults,
  type RecordedBacking,
  type RecordedCall,
  type RecordedDmaMapping,
  RecordingDmaTarget,
  RecordingPartition,
  RecordingVa,
} from "membacking/testing";
import { isOwn, type Model, type ModelFile, type Request } from "./model.ts";
import { PAGE } from "../support/units.ts";

/** The policies that mappings may have, by number. None has an effect on a recording target but being passed on. */
const POLICIES: readonly (MemoryPolicy | undefined)[] = [undefined, { transparentHugepages: true }];

/** A range of `pages` pages from page `start` on. */
export function pageRange(start: number, pages: number): MemoryRange {
  return MemoryRange.of(start * PAGE, pages * PAGE);
}

/** What a batch throws that is abandoned on purpose. */
export class Abandoned extends Error {
  override name = "Abandoned";
}

/** The files of a world: memfds, opened read-only where the model says so. One set serves any number of worlds. */
export class Files implements Disposable {
  readonly mappables: Mappable[];
  /** Handles that were seen while they were open: after an undo that failed a target may hold a closed one. */
  readonly #seen = new WeakMap<Mappable, number>();

  constructor(readonly files: readonly ModelFile[]) {
    this.mappables = files.map(({ pages, writable }, i) => {
      const memfd = Mappable.memfd(`file-${i}`, pages * PAGE);
      if (writable) return memfd;
      using _writable = memfd;
      return Mappable.open(`/proc/self/fd/${memfd.fd}`);
    });
  }

  /** The number of the file that `mappable` is a handle of. */
  indexOf(mappable: Mappable | null): number | "private" {
    if (mappable === null) return "private";
    const seen = this.#seen.get(mappable);
    if (seen !== undefined) return seen;
    const index = this.mappables.findIndex((file) => file.fd === mappable.fd);
    if (index < 0) fail(`a target was given file descriptor ${mappable.fd}, which is no file of this world`);
    this.#seen.set(mappable, index);
    return index;
  }

  [Symbol.dispose](): void {
    for (const mappable of this.mappables) mappable[Symbol.dispose]();
  }
}

/** How often each kind of step was carried out, in all worlds so far. */
export const exercised = new Map<RecordedCall["method"], number>();

/** A stretch of time in which the guest was held. */
interface Hold {
  /** How many calls had been made when it began. */
  readonly from: number;
  /** How many had been made when it ended. */
  to: number;
}

/** Notes which file each handle is of, while it is open. */
class WorldVa extends RecordingVa<Mappable> {
  readonly #files: Files;

  constructor(files: Files, ...rest: ConstructorParameters<typeof RecordingVa<Mappable>>) {
    super(...rest);
    this.#files = files;
  }

  override map(...args: Parameters<RecordingVa<Mappable>["map"]>): void {
    this.#files.indexOf(args[2]);
    super.map(...args);
  }
}

/** Notes which file each handle is of, while it is open. */
class WorldDmaTarget extends RecordingDmaTarget<Mappable> {
  readonly #files: Files;

  constructor(files: Files, ...rest: ConstructorParameters<typeof RecordingDmaTarget<Mappable>>) {
    super(...rest);
    this.#files = files;
  }

  override mapDma(request: RecordedDmaMapping<Mappable>): undefined {
    this.#files.indexOf(request.mappable);
    return super.mapDma(request);
  }
}

interface Attached<T> {
  readonly target: T;
  readonly handle: Disposable;
}

/** What a world is made with. */
export interface WorldOptions {
  /** The length of the reservation in pages. */
  readonly pages: number;
  /** The overlap rule. */
  readonly overlap?: "nested" | "any";
  /** The files to map. */
  readonly files: Files;
  /** How many ranges each partition can hold. */
  readonly capacity?: number;
  /** How many pieces the host range can hold. */
  readonly limit?: number;
}

/** A region manager whose every target is a recording one. */
export class World implements Disposable {
  /** All calls of all targets, in order. Emptied by `run`. */
  readonly calls: RecordedCall[] = [];
  readonly faults: Faults = new Faults();
  readonly va: RecordingVa<Mappable>;
  readonly manager: RegionManager;
  readonly regions: RegionHandle[] = [];
  readonly partitions: (Attached<RecordingPartition> & { readonly offset: number; readonly pin: boolean })[] = [];
  readonly dmaTargets: Attached<RecordingDmaTarget<Mappable>>[] = [];
  /** When the guest was held during the last request. */
  readonly holds: Hold[] = [];
  readonly #options: WorldOptions;
  /** Targets whose attachment failed or was abandoned. Nothing may be left in them. */
  readonly #turnedAway: (RecordingPartition | RecordingDmaTarget<Mappable>)[] = [];
  /** The target's generation of each page of memory that is in no file: it stays that memory, wherever it was meanwhile. */
  readonly #private = new Map<string, number>();

  constructor(options: WorldOptions) {
    const { calls, faults } = this;
    this.#options = options;
    this.va = new WorldVa(options.files, options.pages * PAGE, {
      calls,
      faults,
      ...(options.limit !== undefined && { limit: options.limit }),
    });
    this.manager = new RegionManager(this.va, {
      overlap: options.overlap ?? "nested",
      quiesce: () => {
        const hold = { from: calls.length, to: Infinity };
        this.holds.push(hold);
        return {
          [Symbol.dispose]() {
            hold.to = calls.length;
          },
        };
      },
    });
  }

  /** Makes the request. Throws what the manager throws. */
  run(request: Request): void {
    for (const { method, error } of this.calls) {
      if (error === undefined) exercised.set(method, (exercised.get(method) ?? 0) + 1);
    }
    this.calls.length = 0;
    this.holds.length = 0;
    const lengths = [this.regions.length, this.partitions.length, this.dmaTargets.length] as const;
    try {
      this.#run(request);
    } catch (error) {
      this.regions.length = lengths[0];
      this.#turnedAway.push(...this.partitions.splice(lengths[1]).map(({ target }) => target));
      this.#turnedAway.push(...this.dmaTargets.splice(lengths[2]).map(({ target }) => target));
      throw error;
    }
  }

  /** What the manager says that the request would do. Nothing of it stays. */
  explain(request: Request): Explanation {
    const lengths = [this.regions.length, this.partitions.length, this.dmaTargets.length] as const;
    try {
      return this.manager.explain(() => this.#run(request));
    } finally {
      this.regions.length = lengths[0];
      this.partitions.length = lengths[1];
      this.dmaTargets.length = lengths[2];
    }
  }

  #run(request: Request): void {
    switch (request.kind) {
      case "newRegion": {
        const { start, pages, priority, type, holes } = request;
        const name = `region-${this.regions.length}`;
        this.regions.push(
          this.manager.newRegion({ name, range: pageRange(start, pages), priority, type, holes }),
        );
        return;
      }
      case "map": {
        const { writable, executable, prefetch } = request;
        return this.regions[request.region]!.map({ writable, executable, prefetch });
      }
      case "unmap":
        return this.regions[request.region]!.unmap();
      case "addMapping": {
        const { at, pages, file, filePage, writable, policy } = request;
        const chosen = POLICIES[policy ?? 0];
        return this.regions[request.region]!.addMapping({
          rangeInRegion: pageRange(at, pages),
          mappable: file === "private" ? "private" : this.#options.files.mappables[file]!,
          ...(file !== "private" && { fileOffset: filePage * PAGE }),
          writable,
          copyOnWrite: file !== "private" && (request.copyOnWrite ?? false),
          ...(chosen !== undefined && { policy: chosen }),
        });
      }
      case "removeMappings":
        return this.regions[request.region]!.removeMappings(pageRange(request.at, request.pages));
      case "disposeRegion":
        return this.regions[request.region]![Symbol.dispose]();
      case "addPartition": {
        const { calls, faults } = this;
        const { capacity } = this.#options;
        const target = new RecordingPartition({
          name: `partition-${this.partitions.length}`,
          calls,
          faults,
          ...(capacity !== undefined && { capacity }),
        });
        const { offset, pin } = request;
        this.#turnedAway.push(target);
        const handle = this.manager.addPartition(target, { offset: offset * PAGE, pin });
        this.#turnedAway.pop();
        this.partitions.push({ target, handle, offset, pin });
        return;
      }
      case "detachPartition":
        return this.partitions[request.partition]!.handle[Symbol.dispose]();
      case "addDmaTarget": {
        const { calls, faults } = this;
        const target = new WorldDmaTarget(this.#options.files, {
          name: `dma-${this.dmaTargets.length}`,
          calls,
          faults,
        });
        this.#turnedAway.push(target);
        const handle = this.manager.addDmaTarget(target);
        this.#turnedAway.pop();
        this.dmaTargets.push({ target, handle });
        return;
      }
      case "detachDmaTarget":
        return this.dmaTargets[request.target]!.handle[Symbol.dispose]();
      case "batch":
        return this.manager.batch(() => {
          for (const inner of request.requests) this.#run(inner);
          if (request.abandon) throw new Abandoned();
        });
    }
  }

  /** Everything that can be seen of the world, as plain data: equal before and after a request that failed. */
  snapshot(): unknown {
    const { files } = this.#options;
    const backing = ({ mappable, writable, fileOffset }: {
      readonly mappable: Mappable | null;
      readonly writable: boolean;
      readonly fileOffset: number;
    }) => `file ${files.indexOf(mappable)} at ${fileOffset} ${writable ? "rw" : "ro"}`;
    const left = this.#turnedAway.flatMap((target): readonly { readonly range: MemoryRange }[] =>
      "ranges" in target ? target.ranges : target.mappings
    );
    return {
      // Pieces may have been cut and mapped anew, which only private memory would notice: so page by page.
      va: Array.from({ length: this.#options.pages }, (_, page) => {
        const there = this.va.at(page * PAGE);
        return there && backing(there) + (isPrivate(there) ? ` generation ${there.generation}` : "");
      }),
      parked: this.va.parkedBytes,
      partitions: this.partitions.map(({ target }) => ({
        ranges: target.ranges.map(({ range, hva, access }) => ({ range: `${range}`, hva, ...access })),
        pinned: target.pinned.map(String),
      })),
      dmaTargets: this.dmaTargets.map(({ target }) =>
        target.mappings.map((mapping) => `${mapping.range} ${mapping.hva} ${mapping.type} ${backing(mapping)}`)
      ),
      regions: this.regions.map((region) => ({ visible: region.visible.map(String), mapParams: region.mapParams })),
      left: left.map(({ range }) => `${range}`),
      inspect: JSON.parse(JSON.stringify(this.manager.inspect())),
    };
  }

  /** Throws unless every target holds what the model says, page by page. */
  compare(model: Model): void {
    for (const difference of this.differences(model)) fail(difference.what);
    this.#compareBooks(model);
    const { hostMappings, outOfStep } = this.manager.inspect();
    if (outOfStep.length === 0) assertEquals(hostMappings, model.hostMappings(), "the count of kernel mappings");
  }

  /** What the targets hold that the model does not, and the other way round. */
  *differences(model: Model): Generator<{ target: string; page: number; what: string }> {
    const { files } = this.#options;
    type Seen = readonly unknown[] | boolean | null;
    const different = (target: string, page: number, what: string, actual: Seen, expected: Seen) => {
      const same = Array.isArray(actual) && Array.isArray(expected)
        ? actual.every((value, i) => value === expected[i])
        : actual === expected;
      if (same) return NO_DIFFERENCE;
      const [has, wants] = [JSON.stringify(actual), JSON.stringify(expected)];
      return [{ target, page, what: `${target} ${what} page ${page} as ${has}, not ${wants}` }];
    };
    const pages = Array.from({ length: model.pages }, (_, page) => page);
    for (const page of pages) {
      const there = this.va.at(page * PAGE);
      const actual = there && [
        files.indexOf(there.mappable),
        there.fileOffset / PAGE,
        there.writable,
        POLICIES.findIndex((policy) => policy?.transparentHugepages === there.policy?.transparentHugepages),
        there.copyOnWrite,
      ];
      const backing = model.backing(page);
      yield* different(
        this.va.name,
        page,
        "holds",
        actual,
        backing && [backing.file, backing.filePage, backing.writable, backing.policy, backing.copyOnWrite],
      );
    }
    for (const [i, { target, offset, pin }] of this.partitions.entries()) {
      const attached = !model.state.partitions[i]!.detached;
      const allPinned = target.pinned;
      for (const page of pages) {
        const gpa = (page + offset) * PAGE;
        const wanted = attached ? model.access(page) : null;
        const access = target.accessAt(gpa);
        const actual = access && [access.writable, access.executable, target.hvaAt(gpa)];
        yield* different(
          target.name,
          page,
          "holds",
          actual,
          wanted && [wanted.writable, wanted.executable, this.va.base + page * PAGE],
        );
        const pinned = allPinned.some((range) => range.containsAddress(gpa));
        const pins = attached && pin && model.backing(page) !== null;
        yield* different(target.name, page, "pins", pinned, pins);
      }
      const stray = target.ranges.find(({ range }) =>
        range.start < offset * PAGE || range.end > (offset + model.pages) * PAGE
      );
      if (stray) yield { target: target.name, page: -1, what: `${target.name} holds ${stray.range}` };
    }
    for (const [i, { target }] of this.dmaTargets.entries()) {
      const attached = !model.state.dmaTargets[i]!.detached;
      for (const page of pages) {
        const gpa = page * PAGE;
        const there = target.at(gpa);
        const offset = there && there.mappable && there.fileOffset + gpa - there.range.start;
        const actual = there
          ? [
            files.indexOf(there.mappable),
            (offset ?? 0) / PAGE,
            there.writable,
            there.type,
            there.hva - there.range.start,
          ]
          : null;
        const wanted = attached ? model.dma(page) : null;
        yield* different(
          target.name,
          page,
          "holds",
          actual,
          wanted && [wanted.file, wanted.filePage, wanted.writable, wanted.type, this.va.base],
        );
      }
    }
  }

  /** What the manager itself says, against the model; and that private memory kept its bytes. */
  #compareBooks(model: Model): void {
    for (const [i, region] of this.regions.entries()) {
      const { params, disposed } = model.state.regions[i]!;
      if (disposed) continue;
      const visible = model.visible(i).map(([start, end]) => `${pageRange(start, end - start)}`);
      assertEquals(region.visible.map(String), visible, `${region.name} is visible at`);
      assertEquals(
        region.mapParams && { ...region.mapParams },
        params && { ...params },
        `${region.name} is mapped with`,
      );
    }
    for (const target of this.#turnedAway) {
      assertEquals("ranges" in target ? target.ranges : target.mappings, [], `${target.name} was turned away`);
    }
    for (let page = 0; page < model.pages; page++) {
      const backing = model.backing(page);
      if (backing === null || !isOwn(backing)) continue;
      const memory = `${backing.serial} at ${page}`;
      const { generation } = this.va.at(page * PAGE)!;
      const before = this.#private.get(memory) ?? generation;
      assertStrictEquals(generation, before, `the private memory at page ${page} was replaced`);
      this.#private.set(memory, before);
    }
  }

  /** Accepts what an error says could not be put back: targets that were turned away, private memory that is lost. */
  accept(outOfStep: readonly OutOfStep[]): void {
    this.#turnedAway.length = 0;
    for (const { target, range } of outOfStep) {
      if (target !== this.va.name) continue;
      for (const page of pagesOf(range, 0)) {
        for (const memory of this.#private.keys()) if (memory.endsWith(` at ${page}`)) this.#private.delete(memory);
      }
    }
  }

  /** Disposes the manager; `scarred` if an undo failed before, so that it may find less to take away than it thinks. */
  dispose(scarred = false): void {
    this.faults.reset();
    try {
      this.manager[Symbol.dispose]();
    } catch (error) {
      if (!scarred) throw error;
    }
    assertEquals(this.va.ranges, [], "host memory after dispose");
    assertEquals(this.va.parkedBytes, 0, "parked memory after dispose");
    for (const { target } of this.partitions) assertEquals(target.ranges, [], `${target.name} after dispose`);
    for (const { target } of this.dmaTargets) assertEquals(target.mappings, [], `${target.name} after dispose`);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

const NO_DIFFERENCE: readonly { target: string; page: number; what: string }[] = [];

/** What the targets were to hold before and after a request, for judging the calls in between. */
export interface Wanted {
  readonly va: (string | null)[];
  readonly contents: (string | null)[];
  readonly access: (string | null)[];
  readonly dma: (string | null)[];
  readonly prefetch: boolean[];
  readonly partitions: boolean[];
  readonly dmaTargets: boolean[];
}

/** Whether what is mapped lives in its mapping alone. */
function isPrivate({ mappable, copyOnWrite }: RecordedBacking<Mappable>): boolean {
  return mappable === null || copyOnWrite;
}

/** What the model wants of each page now. */
export function wantedNow(model: Model): Wanted {
  const pages = Array.from({ length: model.pages }, (_, page) => page);
  const text = (value: unknown) => value === null ? null : JSON.stringify(value);
  const backings = pages.map((page) => model.backing(page));
  const identity = (backing: ReturnType<Model["backing"]>, writable: boolean) =>
    backing && text({
      file: backing.file,
      filePage: backing.filePage,
      policy: backing.policy,
      ...(writable && { writable: backing.writable }),
      copyOnWrite: backing.copyOnWrite,
      ...(isOwn(backing) && { serial: backing.serial }),
    });
  return {
    va: backings.map((backing) => identity(backing, true)),
    contents: backings.map((backing) => identity(backing, false)),
    access: pages.map((page) => text(model.access(page))),
    dma: pages.map((page) => {
      const dma = model.dma(page);
      return dma && text({ ...dma, ...(dma.file === "private" && { serial: model.backing(page)!.serial }) });
    }),
    prefetch: pages.map((page) => backings[page] !== null && model.winner(page)!.params!.prefetch),
    partitions: model.state.partitions.map(({ detached }) => !detached),
    dmaTargets: model.state.dmaTargets.map(({ detached }) => !detached),
  };
}

/** The order of effects: each call belongs to a phase, and phases do not go back. */
const PHASES: Readonly<Record<RecordedCall["method"], number>> = {
  unmapDma: 0,
  takeDirty: 0,
  unpinRange: 1,
  unmapRange: 2,
  park: 3,
  map: 4,
  protect: 4,
  restore: 4,
  remove: 5,
  mapDma: 6,
  mapRange: 7,
  pinRange: 8,
  prefetchRange: 8,
  setDirtyLog: 8,
  // Nothing may fail any more.
  discard: 9,
};

/** Throws unless the calls of a request that succeeded are in order and no target was disturbed without need. */
export function checkEconomy(world: World, before: Wanted, after: Wanted): void {
  const { calls } = world;
  let phase = 0;
  for (const call of calls) {
    const next = PHASES[call.method];
    assert(next >= phase, `${call.method}(${call.range}) comes too late: ${describe(calls)}`);
    phase = next;
  }

  const touched = new Set<number>();
  for (const call of calls.filter(({ target }) => target === world.va.name)) {
    if (call.method === "discard") continue;
    const pages = pagesOf(call.range, 0);
    for (const page of call.method === "park" ? [] : pages) {
      assert(!touched.has(page), `host page ${page} is changed twice: ${describe(calls)}`);
      touched.add(page);
    }
    // One removal may reach across holes: it makes no difference there.
    const inHole = (page: number) => call.method === "remove" && before.va[page] === null && after.va[page] === null;
    const idle = pages.find((page) => before.va[page] === after.va[page] && !inHole(page));
    assert(idle === undefined, `host page ${idle} did not change, and yet: ${describe(calls)}`);
    const remapped = call.method === "map" &&
      pages.find((page) => before.contents[page] === after.contents[page] && before.contents[page] !== null);
    assert(
      remapped === false || remapped === undefined,
      `host page ${remapped} needs protect only: ${describe(calls)}`,
    );
  }

  for (const [i, { target, offset }] of world.partitions.entries()) {
    const own = calls.filter((call) => call.target === target.name);
    const changed = (page: number) =>
      (before.partitions[i] ? before.access[page] : null) !== (after.partitions[i] ? after.access[page] : null);
    checkRanges(own, "unmapRange", "mapRange", offset, changed);
    checkHeld(world, own);
    if (after.partitions[i]) checkPrefetched(own, offset, before, after);
  }
  for (const [i, { target }] of world.dmaTargets.entries()) {
    const own = calls.filter((call) => call.target === target.name);
    const changed = (page: number) =>
      (before.dmaTargets[i] ? before.dma[page] : null) !== (after.dmaTargets[i] ? after.dma[page] : null);
    checkRanges(own, "unmapDma", "mapDma", 0, changed);
  }
}

/** No range goes unless a page of it changed, and none comes but for pages that changed or whose range went. */
function checkRanges(
  calls: readonly RecordedCall[],
  unmap: RecordedCall["method"],
  map: RecordedCall["method"],
  offset: number,
  changed: (page: number) => boolean,
): void {
  const gone = new Set<number>();
  for (const call of calls.filter(({ method }) => method === unmap)) {
    const pages = pagesOf(call.range, offset);
    assert(pages.some(changed), `${call.target} lost ${call.range} though nothing changed there: ${describe(calls)}`);
    for (const page of pages) gone.add(page);
  }
  for (const call of calls.filter(({ method }) => method === map)) {
    const idle = pagesOf(call.range, offset).find((page) => !changed(page) && !gone.has(page));
    assert(idle === undefined, `${call.target} got ${call.range} though page ${idle} has it: ${describe(calls)}`);
  }
}

/** Memory of a region with prefetch is brought in when it is new there or the region is new to prefetch; no other is. */
function checkPrefetched(own: readonly RecordedCall[], offset: number, before: Wanted, after: Wanted): void {
  const brought = new Set(
    own.filter(({ method }) => method === "prefetchRange").flatMap(({ range }) => pagesOf(range, offset)),
  );
  after.prefetch.forEach((prefetch, page) => {
    if (!prefetch) assert(!brought.has(page), `page ${page} is brought in unasked: ${describe(own)}`);
    const fresh = before.contents[page] !== after.contents[page] || !before.prefetch[page];
    if (prefetch && fresh) assert(brought.has(page), `page ${page} is not brought in: ${describe(own)}`);
  });
}

/** Where a range goes and comes back, or several partition steps tear, the guest is held. */
function checkHeld(world: World, own: readonly RecordedCall[]): void {
  const steps = own.filter(({ method }) => method === "unmapRange" || method === "mapRange");
  if (steps.length < 2 || !steps.some(({ method }) => method === "unmapRange")) return;
  for (const step of steps) {
    const at = world.calls.indexOf(step);
    const held = world.holds.some(({ from, to }) => from <= at && at < to);
    assert(held, `the guest runs during ${step.method}(${step.range}): ${describe(world.calls)}`);
  }
}

function pagesOf(range: MemoryRange, offset: number): number[] {
  return Array.from({ length: range.length / PAGE }, (_, i) => range.start / PAGE - offset + i);
}

/** The calls on one line. */
export function describe(calls: readonly RecordedCall[]): string {
  return calls.map(({ target, method, range, writable, error }) => {
    const access = writable === undefined ? "" : writable ? " rw" : " ro";
    return `${target}.${method}(${range}${access})${error === undefined ? "" : " failed"}`;
  }).join(", ");
}
