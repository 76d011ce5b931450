/**
 * Makes random requests with an inspector's history, and prints what it says that it takes, and what it really takes of
 * the heap. Needs --v8-flags=--expose-gc.
 *
 * @module
 */

import { Mappable, MemoryRange, type RegionHandle, RegionManager } from "membacking";
import { RecordingPartition, RecordingVa } from "membacking/testing";
import { History } from "../../src/inspector/history.ts";
import { PAGE } from "../support/units.ts";

const [count = 0, requests = 0, limit = 0] = Deno.args.map(Number);

function heap(): number {
  const { gc } = globalThis as unknown as { gc(): void };
  for (let i = 0; i < 3; i++) gc();
  return Deno.memoryUsage().heapUsed;
}

const manager = new RegionManager(new RecordingVa(count * 2 * PAGE));
manager.addPartition(new RecordingPartition());
const file = Mappable.memfd("pages", PAGE);
const page = new MemoryRange(0, PAGE);
const regions: RegionHandle[] = manager.batch(() =>
  Array.from({ length: count }, (_, i) => {
    const region = manager.newRegion({ name: `r${i}`, range: MemoryRange.of(2 * i * PAGE, PAGE), priority: i % 3 });
    region.addMapping({ rangeInRegion: page, mappable: file });
    region.map();
    return region;
  })
);

function run(requests: number): void {
  for (let i = 0; i < requests; i++) {
    const region = regions[(i * 7919) % count];
    if (region === undefined) continue;
    if (i % 4 === 3) region.removeMappings(page);
    else if (i % 4 === 2) region.addMapping({ rangeInRegion: page, mappable: file, writable: i % 8 === 2 });
    else if (region.mapParams === null) region.map();
    else region.unmap();
  }
}

// What an engine and recording targets need of their own is there before it is counted.
run(2000);
const history = new History(limit);
const watching = manager.watchRequests((record) => history.add(record));
const before = heap();
run(requests);
const taken = heap() - before;
watching[Symbol.dispose]();
console.log(JSON.stringify({ said: history.bytes, taken, kept: history.last - history.first + 1 }));
