// No request goes another way because somebody looks on.

import { assertEquals, assertGreater } from "@std/assert";
import {
  Mappable,
  type RegionHandle,
  RegionManager,
  RegionManagerClient,
  type RequestRecord,
  VaMapper,
  type VaTarget,
} from "membacking";
import { type RecordedCall, RecordingDmaTarget, RecordingPartition } from "membacking/testing";
import { hostOf } from "../../ffi/host/va_mapper.ts";
import { internalsOf } from "../../src/regions/region_manager.ts";
import { PAGE, range } from "../support/units.ts";

/** Real host memory that logs what is asked of it. */
function logging(host: VaTarget<Mappable>, log: string[]): VaTarget<Mappable> {
  const note = (what: string, ...args: unknown[]) =>
    void log.push(`${what} ${args.filter((arg) => typeof arg !== "object").join(" ")}`);
  return {
    base: host.base,
    length: host.length,
    map: (...args) => (note("map", ...args), host.map(...args)),
    protect: (...args) => (note("protect", ...args), host.protect(...args)),
    remove: (...args) => (note("remove", ...args), host.remove(...args)),
    park: (...args) => (note("park", ...args), host.park(...args)),
    restore: (...args) => (note("restore", ...args), host.restore(...args)),
    discard: (...args) => (note("discard", ...args), host.discard(...args)),
    view: (start, end) => host.view?.(start, end) ?? new ArrayBuffer(0),
  };
}

/** What becomes of a list of requests, each with the calls it made. */
async function run(watched: boolean): Promise<{ calls: string[][]; records: RequestRecord[] }> {
  await using stack = new AsyncDisposableStack();
  const log: string[] = [];
  const va = stack.use(VaMapper.reserve(0x100_0000));
  const quiet = () => {};
  const manager = stack.use(
    new RegionManager(logging(hostOf(va), log), {
      overlap: "any",
      ...(watched && { logger: { debug: quiet, info: quiet, warn: quiet, error: quiet } }),
    }),
  );
  const calls: RecordedCall[] = [];
  manager.addPartition(new RecordingPartition({ name: "vm", calls }));
  manager.addDmaTarget(new RecordingDmaTarget<Mappable>({ name: "iommu", calls }));
  const file = stack.use(Mappable.memfd("file", 64 * PAGE));
  const other = stack.use(Mappable.memfd("other", 64 * PAGE));
  const elsewhere = manager.newRegion({ name: "elsewhere", range: range(0x80_0000, 0x80_4000), priority: 0 });
  elsewhere.addMapping({ rangeInRegion: range(0, 0x4000), mappable: file });
  elsewhere.map();
  const records: RequestRecord[] = [];
  if (watched) {
    const { port1, port2 } = new MessageChannel();
    manager.serve(port1);
    stack.use(await RegionManagerClient.connect(port2));
    stack.use(manager.watchRequests((record) => void records.push(record)));
    stack.use(internalsOf(manager).watch(quiet));
    stack.use(manager.memory.lock(range(0x80_0000, 0x80_1000), { write: true }));
  }
  const region = (start: number, end: number, priority: number, holes: "exit" | "fault" = "exit") =>
    manager.newRegion({ name: `${start}`, range: range(start, end), priority, holes });
  const add = (region: RegionHandle, at: number, end: number, mappable: Mappable | "private", writable = true) =>
    region.addMapping({ rangeInRegion: range(at, end), mappable, writable });
  const [low, high, window] = [region(0, 0x8000, 1), region(0, 0x8000, 2), region(0x2_0000, 0x4_0000, 0, "fault")];
  const requests: (() => void)[] = [
    () => low.map(),
    () => add(low, 0, 0x8000, file),
    () => add(low, 0x2000, 0x3000, other),
    () => add(low, 0x4000, 0x5000, other, false),
    () => low.removeMappings(range(0x1000, 0x2000)),
    () => add(high, 0, 0x8000, other),
    () => high.map(),
    () => high.unmap(),
    () => low.map({ writable: false }),
    () => low.map({ prefetch: true }),
    () => window.map(),
    () => add(window, 0x4000, 0x8000, file),
    () => add(window, 0x4000, 0x8000, other),
    () => window.removeMappings(range(0x4000, 0x8000)),
    () => add(window, 0x8000, 0xc000, "private"),
    () => window.unmap(),
    () => window.map(),
    () => manager.batch(() => (window[Symbol.dispose](), low.unmap(), high.map())),
  ];
  const done = requests.map((request) => {
    log.length = calls.length = 0;
    request();
    return [...log, ...calls.map(({ target, method, range, writable }) => `${target} ${method} ${range} ${writable}`)];
  });
  return { calls: done, records };
}

Deno.test("a client, watchers, a lock elsewhere and a logger change nothing of what a request does", async () => {
  const quiet = await run(false);
  const { calls, records } = await run(true);
  assertEquals(calls, quiet.calls);
  assertGreater(calls.filter((made) => made.length > 0).length, 14);
  // The regions were added by requests of their own.
  assertEquals(records.length, calls.length + 3);
});
