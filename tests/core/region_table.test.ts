import { assertEquals, assertStrictEquals, assertThrows } from "@std/assert";
import * as fc from "fast-check";
import { MemoryRange } from "../../src/core/memory_range.ts";
import { paramsOf, type Region, type RegionState } from "../../src/core/map/region.ts";
import { RangeMap } from "../../src/core/range_map.ts";
import { RegionTable } from "../../src/core/map/region_table.ts";

const REGIONS = 4;

function newRegion(id: number): Region {
  return {
    id,
    age: id,
    name: `r${id}`,
    range: MemoryRange.of(id * 0x1000, 0x1000),
    priority: 0,
    type: "ram",
    holes: "exit",
    latest: undefined,
  };
}

function newState(region: Region): RegionState {
  return { region, params: paramsOf(true, true, false), mappings: RangeMap.EMPTY };
}

/** A version, and what a plain map says it holds. */
interface Version {
  readonly table: RegionTable;
  readonly model: ReadonlyMap<Region, RegionState>;
}

function check({ table, model }: Version, regions: readonly Region[]): void {
  for (const region of regions) assertStrictEquals(table.get(region), model.get(region));
}

function next({ table, model }: Version, region: Region, state: RegionState | undefined): Version {
  const changed = new Map(model);
  if (state === undefined) changed.delete(region);
  else changed.set(region, state);
  return { table: table.with(region, state), model: changed };
}

Deno.test("RegionTable: every version says what it said when it was made, whichever is asked or continued", () => {
  const edit = fc.record({
    // How far back the version lies that is continued: most often it is the newest.
    back: fc.oneof({ weight: 3, arbitrary: fc.constant(0) }, fc.nat(10)),
    region: fc.nat(REGIONS - 1),
    remove: fc.boolean(),
    look: fc.array(fc.nat(20), { maxLength: 3 }),
  });
  fc.assert(
    fc.property(fc.array(edit, { maxLength: 60, size: "max" }), (edits) => {
      const regions = Array.from({ length: REGIONS }, (_, id) => newRegion(id));
      const versions: Version[] = [{ table: new RegionTable(), model: new Map() }];
      for (const { back, region, remove, look } of edits) {
        const from = versions[Math.max(0, versions.length - 1 - back)]!;
        const changed = regions[region]!;
        versions.push(next(from, changed, remove ? undefined : newState(changed)));
        for (const at of look) check(versions[at % versions.length]!, regions);
      }
      for (const version of versions) check(version, regions);
    }),
    { numRuns: 500 },
  );
});

Deno.test("RegionTable: the version before a long batch says the same after it, as often as it is asked", () => {
  const regions = Array.from({ length: 2000 }, (_, id) => newRegion(id));
  const before = regions.reduce((table, region) => table.with(region, newState(region)), new RegionTable());
  const states = regions.map((region) => before.get(region));
  let after = before;
  for (const region of regions) after = after.with(region, undefined);
  for (let pass = 0; pass < 2; pass++) {
    regions.forEach((region, i) => assertStrictEquals(before.get(region), states[i]));
  }
  assertEquals(regions.filter((region) => after.get(region) !== undefined), []);
});

Deno.test("RegionTable: a retired version refuses to answer, the newest one goes on", () => {
  const region = newRegion(0);
  const old = new RegionTable();
  const state = newState(region);
  const now = old.with(region, state);
  old.retire();
  assertThrows(() => old.get(region), Error, "retired");
  assertThrows(() => old.with(region, undefined), Error, "retired");
  assertEquals(now.get(region), state);
});
