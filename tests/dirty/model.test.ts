// Random writes and requests against a naive model: a set of pages for each tracker, and what shows at each page. With
// vCPUs held by a hook a tracker finds what was written and what changed, and nothing else.

import { assertEquals } from "@std/assert";
import * as fc from "fast-check";
import type { DirtyTracker, Mappable, RegionHandle } from "membacking";
import { PageSet } from "membacking";
import { DirtyRig, pages, text } from "./rig.ts";
import { PAGE } from "../support/units.ts";

const RUNS = 150;
const PAGES = 48;
/** The regions: where they begin and end, in pages; later ones lie above earlier ones. */
const REGIONS = [[0, 32], [8, 24], [20, 44], [12, 14]] as const;

type Action =
  | { kind: "guest" | "owner" | "remove" | "read"; at: number; length: number }
  | { kind: "add"; at: number; length: number; file: number; region: number; writable: boolean }
  | { kind: "map"; region: number; writable: boolean; executable: boolean }
  | { kind: "unmap"; region: number }
  | { kind: "track" | "end" | "take" | "giveBack"; tracker: number; at: number };

const page = fc.nat(PAGES - 1);
const length = fc.integer({ min: 1, max: 6 });
const region = fc.nat(REGIONS.length - 1);
const action: fc.Arbitrary<Action> = fc.oneof(
  { weight: 6, arbitrary: fc.record({ kind: fc.constantFrom("guest", "owner"), at: page, length }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constantFrom("remove", "read"), at: page, length }) },
  {
    weight: 2,
    arbitrary: fc.record({
      ...{ kind: fc.constant("add" as const), at: page, length, region },
      ...{ file: fc.nat(2), writable: fc.boolean() },
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      kind: fc.constant("map" as const),
      region,
      writable: fc.boolean(),
      executable: fc.boolean(),
    }),
  },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("unmap" as const), region }) },
  {
    weight: 4,
    arbitrary: fc.record({
      kind: fc.constantFrom("track", "end", "take", "take", "take", "giveBack"),
      tracker: fc.nat(2),
      at: page,
    }),
  },
);

/** What shows at a page: which page of which file, and whether it may be written. */
type Shown = { readonly file: number; readonly offset: number; readonly writable: boolean } | null;

class Model {
  readonly regions = REGIONS.map(([start, end]) => ({
    start,
    params: null as { writable: boolean } | null,
    mappings: Array.from({ length: end - start }, (): Shown => null),
  }));
  readonly trackers = new Map<number, Set<number>>();
  /** Pages where there was nothing before or after some request: what shows nothing may count as written with the rest. */
  readonly empty = new Set<number>();

  shown(): Shown[] {
    return Array.from({ length: PAGES }, (_, page) => {
      // The last one that is mapped there wins; all of it hides what is below.
      const winner = this.regions.findLast(({ start, params, mappings }) =>
        params !== null && page >= start && page < start + mappings.length
      );
      const mapping = winner?.mappings[page - winner.start] ?? null;
      return mapping === null ? null : { ...mapping, writable: mapping.writable && winner?.params?.writable === true };
    });
  }

  mark(page: number): void {
    for (const found of this.trackers.values()) found.add(page);
  }

  /** A page that is written, and wherever else it shows. */
  write(page: number): boolean {
    const shown = this.shown();
    const here = shown[page];
    if (here === null || here === undefined || !here.writable) return false;
    shown.forEach((there, at) => {
      if (there !== null && there.file === here.file && there.offset === here.offset) this.mark(at);
    });
    return true;
  }

  change(change: () => void): void {
    const before = this.shown();
    change();
    this.shown().forEach((after, page) => {
      const same = (a: Shown, b: Shown) =>
        a?.file === b?.file && a?.offset === b?.offset && a?.writable === b?.writable;
      if (after === null && before[page] === null) this.empty.add(page);
      if (same(before[page] ?? null, after)) return;
      this.mark(page);
      // What was or is there may be another place's too: it counts as written as a whole.
      for (const [shown, list] of [[before[page], before], [after, this.shown()]] as const) {
        list.forEach((there, at) => {
          if (shown !== null && shown !== undefined && there?.file === shown.file && there.offset === shown.offset) {
            this.mark(at);
          }
        });
      }
    });
  }
}

Deno.test("DirtyTracker finds what a naive model says was written, through random requests", () => {
  fc.assert(
    fc.property(fc.array(action, { minLength: 20, maxLength: 60 }), (actions) => {
      using rig = new DirtyRig({ overlap: "any", quiesce: () => ({ [Symbol.dispose]() {} }) });
      const vm = rig.partition();
      const files: Mappable[] = Array.from({ length: 3 }, () => rig.file(PAGES));
      const handles: RegionHandle[] = REGIONS.map(([start, end], i) =>
        rig.manager.newRegion({ name: `region-${i}`, range: pages(start, end), priority: i })
      );
      const model = new Model();
      const trackers = new Map<number, DirtyTracker>();
      for (const action of actions) perform(action, { rig, vm, files, handles, model, trackers });
      for (const [id, tracker] of trackers) check(tracker, model.trackers.get(id) ?? new Set(), model);
    }),
    { numRuns: RUNS },
  );
});

interface World {
  readonly rig: DirtyRig;
  readonly vm: ReturnType<DirtyRig["partition"]>;
  readonly files: readonly Mappable[];
  readonly handles: readonly RegionHandle[];
  readonly model: Model;
  readonly trackers: Map<number, DirtyTracker>;
}

function check(tracker: DirtyTracker, expected: ReadonlySet<number>, { empty }: Model): void {
  const setOf = (numbers: Iterable<number>) => PageSet.of(Array.from(numbers, (page) => pages(page)));
  const found = tracker.take();
  const allowed = setOf(empty).difference(setOf(expected));
  assertEquals(text(found.difference(allowed)), text(setOf(expected)));
}

function perform(action: Action, { rig, vm, files, handles, model, trackers }: World): void {
  switch (action.kind) {
    case "guest":
    case "owner":
      for (let page = action.at; page < Math.min(PAGES, action.at + action.length); page++) {
        if (!model.write(page)) continue;
        if (action.kind === "guest") vm.write(pages(page));
        else rig.manager.memory.writeUint8(page * PAGE + page, 1);
      }
      return;
    case "read":
      rig.manager.memory.isMapped(action.at * PAGE, action.length * PAGE);
      return;
    case "add":
    case "remove": {
      const index = action.kind === "add" ? action.region : action.at % REGIONS.length;
      const [start, end] = REGIONS[index]!;
      const size = end - start;
      const from = action.at % size;
      const to = Math.min(size, from + action.length);
      const { mappings } = model.regions[index]!;
      model.change(() => {
        for (let page = from; page < to; page++) {
          mappings[page] = action.kind === "add"
            ? { file: action.file, offset: page - from + (action.at % 8), writable: action.writable }
            : null;
        }
      });
      if (action.kind !== "add") return handles[index]!.removeMappings(pages(from, to));
      return handles[index]!.addMapping({
        ...{ rangeInRegion: pages(from, to), mappable: files[action.file]!, writable: action.writable },
        fileOffset: (action.at % 8) * PAGE,
      });
    }
    case "map": {
      const { region, writable, executable } = action;
      model.change(() => model.regions[region]!.params = { writable });
      return handles[region]!.map({ writable, executable });
    }
    case "unmap":
      model.change(() => model.regions[action.region]!.params = null);
      return handles[action.region]!.unmap();
    case "track":
      if (trackers.has(action.tracker)) return;
      trackers.set(action.tracker, rig.manager.trackDirty());
      model.trackers.set(action.tracker, new Set());
      return;
    case "end":
      trackers.get(action.tracker)?.[Symbol.dispose]();
      trackers.delete(action.tracker);
      model.trackers.delete(action.tracker);
      return;
    case "take": {
      const tracker = trackers.get(action.tracker);
      if (tracker === undefined) return;
      check(tracker, model.trackers.get(action.tracker) ?? new Set(), model);
      model.trackers.set(action.tracker, new Set());
      return;
    }
    case "giveBack":
      trackers.get(action.tracker)?.giveBack(PageSet.of([pages(action.at)]));
      model.trackers.get(action.tracker)?.add(action.at);
  }
}
