import { assert, assertEquals, assertThrows } from "@std/assert";
import { GuestMemoryManager, type Logger, MappingError, type RequestRecord } from "membacking";
import { range } from "../support/units.ts";
import { Rig } from "./rig.ts";

/** A rig, and the records of its requests from now on. */
function watched(options: ConstructorParameters<typeof Rig>[0] = {}): { rig: Rig; records: RequestRecord[] } {
  const rig = new Rig(options);
  const records: RequestRecord[] = [];
  rig.manager.watchRequests((record) => records.push(record));
  return { rig, records };
}

Deno.test("watchRequests() tells of each request by its name, region, range and effect", () => {
  const { rig, records } = watched();
  using _rig = rig;
  const { target } = rig.partition();
  rig.dmaTarget();
  records.length = 0;
  const region = rig.region(0x1000, 0x5000, { name: "card" });
  region.addMapping({ rangeInRegion: range(0, 0x2000), mappable: rig.file() });
  rig.take();
  region.map();
  const calls = rig.take();
  region.removeMappings(range(0, 0x1000));
  region.unmap();
  region[Symbol.dispose]();
  assertEquals(records.map(({ name }) => name), ["add", "add mapping", "map", "remove mappings", "unmap", "remove"]);
  for (const record of records) {
    assertEquals([record.region?.name, String(record.range), record.error], ["card", "0x1000-0x5000", null]);
    assert(record.microseconds > 0);
  }
  const map = records[2];
  assertEquals(map?.changed.map(String), ["0x1000-0x5000"]);
  assertEquals(map?.steps, calls.length);
  assertEquals(map?.slotChanges, calls.filter((call) => call.startsWith(target.name)).length);
  // One change of host memory and one slot; a DMA target is told by a call of its own.
  assertEquals(map?.systemCalls, 2);
  assertEquals(records[0]?.steps, 0);
});

Deno.test("a batch is one record that names its parts, and forgets those of an inner batch that threw", () => {
  const { rig, records } = watched();
  using _rig = rig;
  rig.manager.batch(() => {
    const region = rig.region(0, 0x2000, { name: "a" });
    assertThrows(() =>
      rig.manager.batch(() => {
        region.unmap();
        region.addMapping({ rangeInRegion: range(0, 0x1000), mappable: rig.file() });
        throw new Error("no");
      })
    );
    region.map();
  });
  assertEquals(records.map(({ name, region, parts }) => [name, region, parts]), [
    ["batch", null, ['add: region "a" 0x0-0x2000', 'map: region "a" 0x0-0x2000']],
  ]);
});

Deno.test("a request that fails is told of with its error, and the map as it was put back", () => {
  const { rig, records } = watched();
  using _rig = rig;
  rig.partition();
  const region = rig.region(0, 0x2000);
  region.addMapping({ rangeInRegion: range(0, 0x2000), mappable: rig.file() });
  const before = JSON.stringify(rig.manager.inspect());
  records.length = 0;
  rig.faults.failAfter(1);
  const error = assertThrows(() => region.map(), MappingError);
  const [record] = records;
  assertEquals(records.length, 1);
  assert(record?.error === error);
  assertEquals(record.steps, 2);
  assertEquals(JSON.stringify(record.map.inspect()), before);
  // Refused before there was anything to undo.
  assertThrows(() => rig.region(0x1000, 0x3000, { name: "half" }));
  assertEquals(records[1]?.region?.name, "half");
  assertEquals([records[1]?.error?.name, records[1]?.steps], ["RegionOverlapError", 0]);
});

Deno.test("a record keeps the map as the request left it, whatever comes later, to the end of the manager", () => {
  const { rig, records } = watched({ overlap: "any" });
  const then: string[] = [];
  const file = rig.file();
  {
    using _rig = rig;
    rig.partition();
    const regions = [0, 1, 2].map((i) => rig.region(i * 0x1000, (i + 3) * 0x1000, { priority: i }));
    for (let i = 0; i < 40; i++) {
      const region = regions[i % 3]!;
      if (i % 5 === 4) region.removeMappings(range(0, 0x1000));
      else if (i % 7 === 6) region.unmap();
      else if (i % 2 === 0) region.addMapping({ rangeInRegion: range(0, (1 + i % 3) * 0x1000), mappable: file });
      else region.map({ writable: i % 4 === 1 });
      then[records.length - 1] = JSON.stringify(rig.manager.inspect());
    }
    regions[1]?.[Symbol.dispose]();
  }
  let compared = 0;
  for (const [i, said] of then.entries()) {
    if (said === undefined) continue;
    assertEquals(JSON.stringify(records[i]?.map.inspect()), said, `after request ${i}`);
    compared++;
  }
  assert(compared > 20);
});

Deno.test("a record has the locks of its moment", () => {
  using guest = GuestMemoryManager.create({ maxAddress: 0x10_0000, ram: [{ ranges: [range(0, 0x10_0000)] }] });
  const { regions } = guest;
  const records: RequestRecord[] = [];
  using _watching = regions.watchRequests((record) => records.push(record));
  const toggle = () => regions.newRegion({ name: "r", range: range(0, 0x1000), priority: 0 })[Symbol.dispose]();
  const lock = guest.memory.lock(range(0x2000, 0x4000));
  toggle();
  lock[Symbol.dispose]();
  toggle();
  assertEquals(records.map(({ map }) => map.inspect().locks.map(({ range }) => range)), [
    ["0x2000-0x4000"],
    ["0x2000-0x4000"],
    [],
    [],
  ]);
});

Deno.test("a listener can neither make requests nor fail one, and is told nothing more once it is disposed", () => {
  using rig = new Rig();
  const seen: string[] = [];
  const watching = rig.manager.watchRequests(({ name }) => {
    seen.push(name);
    rig.region(0x8000, 0x9000);
  });
  const region = rig.region(0, 0x1000);
  region.map();
  assertEquals(seen, ["add", "map"]);
  assertEquals(rig.manager.inspect().regions.length, 1);
  watching[Symbol.dispose]();
  region.unmap();
  assertEquals(seen, ["add", "map"]);
  // @ts-expect-error: no function
  assertThrows(() => rig.manager.watchRequests({}), TypeError);
});

Deno.test("the logger is told the same in one line each", () => {
  const lines: [string, Record<string, number>][] = [];
  const nothing = () => {};
  const debug: Logger["debug"] = (message, ...args) => {
    lines.push([message, args[0] as Record<string, number>]);
  };
  using rig = new Rig({ logger: { debug, info: nothing, warn: nothing, error: nothing } });
  rig.partition();
  const region = rig.backed(0, 0x1000, { name: "ram" });
  rig.faults.failAfter(0);
  assertThrows(() => region.unmap(), MappingError);
  rig.manager.batch(() => {
    for (let i = 1; i < 12; i++) rig.region(i * 0x1000, (i + 1) * 0x1000, { name: `r${i}` });
  });
  assertEquals(lines.map(([line]) => line), [
    "add a partition",
    'add: region "ram" 0x0-0x1000',
    'add mapping: region "ram" 0x0-0x1000',
    'map: region "ram" 0x0-0x1000',
    'unmap: region "ram" 0x0-0x1000 failed',
    `batch of ${
      Array.from({ length: 8 }, (_, i) => `add: region "r${i + 1}" 0x${i + 1}000-0x${i + 2}000`).join(", ")
    }, ` +
    "and 3 more",
  ]);
  const [, effect] = lines[3] ?? [];
  assertEquals([effect?.steps, effect?.systemCalls, effect?.slotChanges], [2, 2, 1]);
  assert((effect?.microseconds ?? -1) >= 0);
});
