import { assert, assertEquals } from "@std/assert";
import { Mappable, MemoryRange, RegionManager } from "membacking";
import { RecordingVa } from "membacking/testing";
import { History } from "../../src/inspector/history.ts";
import { internalsOf } from "../../src/regions/region_manager.ts";
import { PAGE } from "../support/units.ts";

/** A history of `limit` bytes, and a request that always changes something. */
function recorded(limit: number): { history: History; manager: RegionManager; toggle: () => void } {
  const manager = new RegionManager(new RecordingVa(0x10_0000));
  const region = manager.newRegion({ name: "lamp", range: new MemoryRange(0, PAGE), priority: 0 });
  using file = Mappable.memfd("light", PAGE);
  region.addMapping({ rangeInRegion: new MemoryRange(0, PAGE), mappable: file });
  const history = new History(limit);
  manager.watchRequests((record) => history.add(record));
  return { history, manager, toggle: () => region.mapParams === null ? region.map() : region.unmap() };
}

Deno.test("a history numbers its points from 1 on, and keeps what fits", () => {
  const { history, toggle } = recorded(100_000);
  assertEquals([history.first, history.last, history.bytes], [1, 0, 0]);
  for (let i = 1; i <= 1000; i++) {
    toggle();
    assertEquals(history.last, i);
    assert(history.bytes <= 100_000);
    assertEquals(history.at(i)?.record?.name, i % 2 === 1 ? "map" : "unmap");
  }
  assert(history.first > 900);
  assertEquals(history.at(history.first - 1), undefined);
  assertEquals(history.at(history.last + 1), undefined);
  assertEquals(history.at(NaN), undefined);
  assertEquals(history.at(history.last - 0.5), undefined);
  for (let number = history.first; number <= history.last; number++) assertEquals(history.at(number)?.number, number);
});

Deno.test("the newest point is kept whatever it costs", () => {
  const { history, toggle, manager } = recorded(0);
  history.begin(internalsOf(manager).state());
  toggle();
  toggle();
  assertEquals([history.first, history.last], [3, 3]);
  assertEquals(history.at(3)?.record?.name, "unmap");
});

for (const [regions, requests] of [[20, 20_000], [20_000, 20_000]] as const) {
  Deno.test(`a history takes no more of the heap than it says: ${regions} regions`, async () => {
    const { success, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
      args: [
        "run",
        "-A",
        "--no-check",
        "--v8-flags=--expose-gc",
        "heap_child.ts",
        `${regions}`,
        `${requests}`,
        `${8 << 20}`,
      ],
      cwd: import.meta.dirname!,
    }).output();
    assert(success, new TextDecoder().decode(stderr));
    const { said, taken, kept } = JSON.parse(new TextDecoder().decode(stdout));
    assert(said <= 8 << 20 && said > 4 << 20, `${said} bytes for ${kept} points: hardly anything was kept`);
    assert(taken <= said, `${taken} bytes were taken for ${kept} points, ${said} said`);
  });
}
