import { assert, assertEquals, assertLess } from "@std/assert";
import { Mappable, MemoryRange, RegionManager } from "membacking";
import { RecordingVa } from "membacking/testing";
import { Axis, Window } from "../../src/inspector/axis.ts";
import { compare } from "../../src/inspector/compare.ts";
import { type Lane, lanesOf } from "../../src/inspector/lanes.ts";
import { Layouts } from "../../src/inspector/layout.ts";
import { internalsOf } from "../../src/regions/region_manager.ts";
import { EVERYWHERE } from "../../src/core/span.ts";
import { PAGE } from "../support/units.ts";
import { bounds, PAGES, pagesDrawn, pagesSeen, World } from "./world.ts";

function drawn(manager: RegionManager): Map<string, Lane> {
  const state = internalsOf(manager).state();
  const { devices } = new Layouts().of(state.layers);
  const window = new Window(Axis.STRAIGHT, 0, PAGES * PAGE, PAGES);
  return new Map(lanesOf(state, window, devices).map((lane) => [lane.key, lane]));
}

Deno.test("the lanes of a random map show what inspect() says of it", () => {
  for (let seed = 1; seed <= 40; seed++) {
    using world = new World(seed);
    for (let i = 0; i < 30; i++) {
      world.step();
      const map = world.manager.inspect();
      const lanes = drawn(world.manager);
      assertEquals(pagesDrawn(lanes.get("seen")?.pieces ?? []), pagesSeen(map), `seed ${seed}, step ${i}`);
      const told = map.partitions[0]?.ranges
        .map(({ range, writable }) => [...bounds(range), writable ? "slot-rw" : "slot-ro"]);
      const slots = [...lanes.values()].find(({ kind }) => kind === "partition")?.pieces ?? [];
      assertEquals(slots.map(([start, end, look]) => [start, end, look]), told);
      const layers = [...lanes.values()].filter(({ kind }) => kind === "layer").flatMap(({ pieces }) => pieces);
      for (const { id, range, mapParams, visible } of map.regions) {
        const own = layers.filter(([, , , , region]) => region === id);
        const [start, end] = bounds(range);
        const length = (pieces: readonly (readonly [number, number, ...unknown[]])[]) =>
          pieces.reduce((sum, [from, to]) => sum + to - from, 0);
        assertEquals(length(own), end - start);
        if (mapParams === null) assertEquals(new Set(own.map(([, , look]) => look)), new Set(["unmapped"]));
        else assertEquals(length(own.filter(([, , look]) => look !== "hidden")), length(visible.map(bounds)));
      }
    }
  }
});

Deno.test("what two states differ in is what inspect() says differently, page by page", () => {
  for (let seed = 100; seed <= 140; seed++) {
    using world = new World(seed);
    for (let i = 0; i < 20; i++) world.step();
    // As the inspector does it, old states are kept.
    using _kept = world.manager.watchRequests(() => {});
    const old = internalsOf(world.manager).state();
    const before = content(world.manager);
    for (let i = 0; i < 6; i++) world.step();
    const state = internalsOf(world.manager).state();
    const after = content(world.manager);
    const found = Array<string>(PAGES).fill("");
    for (const { start, end, kind } of compare(old, state, EVERYWHERE, new Layouts()).seen) {
      for (let page = start / PAGE; page < end / PAGE; page++) found[page] = kind;
    }
    const expected = before.map((was, page) => {
      const is = after[page];
      if (was === null || is === null) return was === is ? "" : was === null ? "appeared" : "vanished";
      if (was.memory !== is?.memory) return "other memory";
      return was.writable === is.writable ? "" : "access";
    });
    assertEquals(found, expected, `seed ${seed}`);
  }
});

/** File, offset and access of each page, by `inspect()` alone. */
function content(manager: RegionManager): ({ memory: string; writable: boolean } | null)[] {
  const pages: ({ memory: string; writable: boolean } | null)[] = Array(PAGES).fill(null);
  for (const { id, visible, mappings, mapParams } of manager.inspect().regions) {
    for (const [from, to] of visible.map(bounds)) {
      for (const { range, backing, fileOffset, writable } of mappings) {
        const [start, end] = bounds(range);
        for (let at = Math.max(from, start); at < Math.min(to, end); at += PAGE) {
          const memory = fileOffset === null ? `private ${id}` : `${backing} ${fileOffset + at - start}`;
          pages[at / PAGE] = { memory, writable: writable && (mapParams?.writable ?? false) };
        }
      }
    }
  }
  return pages;
}

Deno.test("lanes of 30,000 regions have no more pieces than columns, and cost less than inspect()", () => {
  const count = 30_000;
  using manager = new RegionManager(new RecordingVa(count * 2 * PAGE), { overlap: "any" });
  using file = Mappable.memfd("pages", PAGE);
  manager.batch(() => {
    for (let i = 0; i < count; i++) {
      const range = MemoryRange.of(2 * i * PAGE, PAGE);
      const region = manager.newRegion({ name: `region ${i}`, range, priority: i % 3 });
      region.addMapping({ rangeInRegion: new MemoryRange(0, PAGE), mappable: file });
      region.map();
    }
  });
  const state = internalsOf(manager).state();
  const { axis } = new Layouts().of(state.layers);
  const whole = new Window(axis, 0, axis.total, 1200);
  for (const { key, pieces } of lanesOf(state, whole, [])) {
    assert(pieces.length <= 1201, `${key}: ${pieces.length}`);
    // Of what cannot be told apart nothing is said but that.
    assertEquals(new Set(pieces.map(([, , look]) => look)), new Set(["many"]), key);
  }

  // A hundred pages of it, in which each region is wide enough to be seen.
  const some = new Window(axis, axis.placeOf(20_000 * PAGE), axis.placeOf(20_100 * PAGE), 1200);
  const seen = lanesOf(state, some, []).find(({ key }) => key === "seen");
  assertEquals(
    seen?.pieces.map(([start, , , text]) => [start, text]),
    Array.from({ length: 50 }, (_, i) => [(20_000 + 2 * i) * PAGE, `region ${10_000 + i} · pages`]),
  );

  const fastest = (work: () => unknown) =>
    Math.min(...Array.from({ length: 5 }, () => {
      const began = performance.now();
      work();
      return performance.now() - began;
    }));
  assertLess(fastest(() => lanesOf(state, whole, [])), fastest(() => manager.inspect()));
});
