/**
 * What it costs to be looked at: a request with and without a page open, and what a page asks for.
 *
 * `deno bench -A bench/inspector.bench.ts`
 *
 * @module
 */

import { Mappable, MemoryRange, RegionManager, VaMapper } from "membacking";
import { serveInspector } from "membacking/inspector";
import { RecordingVa } from "membacking/testing";

const PAGE = 0x1000;
const FEW = 100;
const MANY = 30_000;

/** A manager with regions, and one more that is switched. Host memory is left out of where it is not the point. */
function manager(count: number): { regions: RegionManager; toggle: () => void } {
  const length = (count + 1) * 2 * PAGE;
  const regions = new RegionManager(count > FEW ? new RecordingVa(length) : VaMapper.reserve(length));
  using file = Mappable.memfd("pages", PAGE);
  const rangeInRegion = new MemoryRange(0, PAGE);
  const add = (i: number) => {
    const region = regions.newRegion({
      name: `region ${i}`,
      range: MemoryRange.of(2 * i * PAGE, PAGE),
      priority: i % 3,
    });
    region.addMapping({ rangeInRegion, mappable: file });
    region.map();
    return region;
  };
  regions.batch(() => {
    for (let i = 0; i < count; i++) add(i);
  });
  const last = add(count);
  return {
    regions,
    toggle() {
      last.unmap();
      last.map();
    },
  };
}

const quiet = manager(FEW);
const served = manager(FEW);
const watched = manager(FEW);
const large = manager(MANY);
serveInspector(served.regions);
// Those that are served stay so for as long as the benchmarks run.
const inspector = serveInspector(watched.regions);
const largest = serveInspector(large.regions);
await fetch(`${inspector.url}events`);
await inspector.opened;
const VIEW = "view?axis=folded&layout=0&from=0&to=0&start=0&end=0&columns=1200";

Deno.bench("unmap and map, without an inspector", { group: "requests", baseline: true }, () => quiet.toggle());
Deno.bench("the same, no page open", { group: "requests" }, () => served.toggle());
Deno.bench("the same, a page open", { group: "requests" }, () => watched.toggle());

Deno.bench("a picture of 30,000 regions, asked for over HTTP", { group: "views", baseline: true }, async () => {
  const response = await fetch(largest.url + VIEW);
  await response.arrayBuffer();
});
Deno.bench("inspect() of the same", { group: "views" }, () => void large.regions.inspect());
