import { assert, assertEquals, assertInstanceOf, assertRejects, assertStrictEquals, assertThrows } from "@std/assert";
import { DisposedError, type Logger, MappingError, ReentrancyError, type RegionHandle } from "membacking";
import { RecordingDmaTarget, RecordingPartition } from "membacking/testing";
import { Rig, slots, visible } from "./rig.ts";
import { range } from "../support/units.ts";

const quiet = { debug() {}, info() {}, warn() {}, error() {} } satisfies Logger;

/** What `request` throws when a callback of the manager makes it. */
function reentering(arm: (rig: Rig, reenter: () => void) => void, request: (rig: Rig, region: RegionHandle) => void) {
  using rig = new Rig();
  let error: unknown;
  let reenter = () => {};
  const region = rig.region(0x1000, 0x3000);
  region.addMapping({ rangeInRegion: range(0, 0x2000), mappable: rig.file() });
  arm(rig, () => reenter());
  reenter = () => {
    try {
      request(rig, region);
    } catch (thrown) {
      error = thrown;
    }
  };
  region.map();
  reenter = () => {};
  assertEquals(visible(region), ["0x1000-0x3000"]);
  return error;
}

const requests: Record<string, (rig: Rig, region: RegionHandle) => void> = {
  newRegion: (rig) => rig.region(0x8000, 0x9000),
  map: (_rig, region) => region.map({ writable: false }),
  unmap: (_rig, region) => region.unmap(),
  addMapping: (rig, region) => region.addMapping({ rangeInRegion: range(0, 0x1000), mappable: rig.file() }),
  removeMappings: (_rig, region) => region.removeMappings(range(0, 0x1000)),
  "region dispose": (_rig, region) => region[Symbol.dispose](),
  addPartition: (rig) => rig.manager.addPartition(new RecordingPartition()),
  addDmaTarget: (rig) => rig.manager.addDmaTarget(new RecordingDmaTarget()),
  batch: (rig) => rig.manager.batch(() => {}),
  "manager dispose": (rig) => rig.manager[Symbol.dispose](),
};

for (const [name, request] of Object.entries(requests)) {
  Deno.test(`${name} from a partition that is being told of a range is refused`, () => {
    const error = reentering((rig, reenter) => {
      rig.manager.addPartition({ mapRange: reenter, unmapRange() {} });
    }, request);
    assertInstanceOf(error, ReentrancyError);
  });

  Deno.test(`${name} from a DMA target that is being told of a mapping is refused`, () => {
    const error = reentering((rig, reenter) => {
      rig.manager.addDmaTarget({
        mapDma: () => void reenter() as undefined,
        unmapDma: () => undefined,
      });
    }, request);
    assertInstanceOf(error, ReentrancyError);
  });
}

Deno.test("detaching a target from a callback is refused", () => {
  using rig = new Rig();
  const attached: Disposable[] = [];
  let error: unknown;
  const watcher = {
    mapRange() {
      try {
        for (const handle of attached) handle[Symbol.dispose]();
      } catch (thrown) {
        error = thrown;
      }
    },
    unmapRange() {},
  };
  attached.push(rig.manager.addPartition(watcher));
  rig.backed(0x0, 0x1000);
  assertInstanceOf(error, ReentrancyError);
});

Deno.test("a request from the quiesce hook, or from disposing its hold, is refused", () => {
  const errors: unknown[] = [];
  const attempt = () => {
    try {
      rig.region(0x8000, 0x9000);
    } catch (error) {
      errors.push(error);
    }
  };
  using rig: Rig = new Rig({
    quiesce: () => {
      attempt();
      return { [Symbol.dispose]: attempt };
    },
  });
  rig.partition();
  const region = rig.backed(0x1000, 0x3000);
  region.map({ writable: false });
  assertEquals(errors.map((error) => error instanceof ReentrancyError), [true, true]);
});

Deno.test("a request from a logger is refused", () => {
  let error: unknown;
  let armed = false;
  using rig: Rig = new Rig({
    logger: {
      ...quiet,
      debug() {
        if (!armed) return;
        armed = false;
        try {
          rig.region(0x8000, 0x9000);
        } catch (thrown) {
          error = thrown;
        }
      },
    },
  });
  armed = true;
  rig.region(0x1000, 0x2000);
  assertInstanceOf(error, ReentrancyError);
});

Deno.test("a request from a callback does not keep later ones from working", () => {
  const error = reentering((rig, reenter) => {
    rig.manager.addPartition({ mapRange: reenter, unmapRange() {} });
  }, requests["newRegion"]!);
  assertInstanceOf(error, ReentrancyError);
  using rig = new Rig();
  rig.backed(0x0, 0x1000);
});

Deno.test("a partition that lets the ReentrancyError out fails the request with it", () => {
  using rig = new Rig();
  rig.manager.addPartition({ mapRange: () => void rig.region(0x8000, 0x9000), unmapRange() {} });
  const region = rig.region(0x1000, 0x3000);
  region.addMapping({ rangeInRegion: range(0, 0x2000), mappable: rig.file() });
  const error = assertThrows(() => region.map(), MappingError);
  assertInstanceOf(error.cause, ReentrancyError);
  assertEquals(rig.memory(), []);
});

Deno.test("inspect and visible may be called from a callback", () => {
  using rig = new Rig();
  const seen: unknown[] = [];
  const region = rig.region(0x1000, 0x3000);
  region.addMapping({ rangeInRegion: range(0, 0x2000), mappable: rig.file() });
  rig.manager.addPartition({
    mapRange: () => void seen.push(rig.manager.inspect().regions.length, visible(region)),
    unmapRange() {},
  });
  region.map();
  assertEquals(seen, [1, []]);
});

Deno.test("a logger that throws is ignored", () => {
  const fail = () => {
    throw new Error("disk full");
  };
  using rig = new Rig({ logger: { debug: fail, info: fail, warn: fail, error: fail } });
  const { target } = rig.partition();
  const region = rig.backed(0x1000, 0x3000);
  rig.faults.failAfter(0);
  assertThrows(() => region.map({ writable: false }), MappingError);
  region.map({ prefetch: true });
  assertEquals(slots(target), ["0x1000-0x3000 rw"]);
});

Deno.test("a logger's methods are called on the logger", () => {
  class Counting {
    lines = 0;
    debug() {
      this.lines++;
    }
    info() {}
    warn() {}
    error() {}
  }
  const logger = new Counting();
  using rig = new Rig({ logger });
  rig.backed(0x1000, 0x3000);
  assert(logger.lines > 0);
});

Deno.test("`using` removes a region at the end of its block", () => {
  using rig = new Rig();
  const { target } = rig.partition();
  {
    using region = rig.backed(0x1000, 0x3000);
    assertEquals(slots(target), ["0x1000-0x3000 rw"]);
    assertEquals(region.visible.length, 1);
  }
  assertEquals([slots(target), rig.memory()], [[], []]);
  rig.region(0x2000, 0x5000);
});

Deno.test("`await using` removes a region at the end of its block", async () => {
  using rig = new Rig();
  {
    await using region = rig.backed(0x1000, 0x3000);
    assertEquals(region.visible.length, 1);
  }
  assertEquals(rig.memory(), []);
});

Deno.test("teardown removes the region at once when nothing is locked", async () => {
  using rig = new Rig();
  const { target } = rig.partition();
  const region = rig.backed(0x1000, 0x3000);
  await region.teardown();
  assertEquals([slots(target), rig.memory()], [[], []]);
  assertThrows(() => region.map(), DisposedError);
});

Deno.test("teardown that was aborted before leaves the region as it was", async () => {
  using rig = new Rig();
  const region = rig.backed(0x1000, 0x3000);
  const reason = new Error("not now");
  assertStrictEquals(await assertRejects(() => region.teardown({ signal: AbortSignal.abort(reason) })), reason);
  assertEquals(visible(region), ["0x1000-0x3000"]);
  region.map({ writable: false });
});

Deno.test("a teardown whose step fails leaves the region as it was and may be tried again", async () => {
  using rig = new Rig();
  const { target } = rig.partition();
  const region = rig.backed(0x1000, 0x3000);
  rig.faults.failAfter(0, { on: ({ method }) => method === "unmapRange" });
  await assertRejects(() => region.teardown(), MappingError);
  assertEquals([slots(target), visible(region)], [["0x1000-0x3000 rw"], ["0x1000-0x3000"]]);
  await region.teardown();
  assertEquals(slots(target), []);
});

Deno.test("a dispose whose step fails throws, changes nothing and may be tried again", () => {
  using rig = new Rig();
  const { target, handle } = rig.partition();
  const region = rig.backed(0x1000, 0x3000);
  for (const disposable of [region, handle]) {
    rig.faults.failAfter(0, { on: ({ method }) => method === "unmapRange" });
    assertThrows(() => disposable[Symbol.dispose](), MappingError);
    assertEquals([slots(target), visible(region)], [["0x1000-0x3000 rw"], ["0x1000-0x3000"]]);
  }
  handle[Symbol.dispose]();
  region[Symbol.dispose]();
  assertEquals([slots(target), rig.memory()], [[], []]);
});

Deno.test("handles may be disposed in any order", () => {
  const orders = [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 4, 0, 3, 1], [1, 0, 4, 2, 3], [3, 1, 2, 0, 4]];
  for (const order of orders) {
    const rig = new Rig({ overlap: "any" });
    const { target, handle } = rig.partition();
    const { target: iommu, handle: iommuHandle } = rig.dmaTarget();
    const low = rig.backed(0x0, 0x4000, { priority: 0 });
    const high = rig.backed(0x1000, 0x2000, { priority: 1 });
    const things: Disposable[] = [rig.manager, low, high, handle, iommuHandle];
    for (const i of order) things[i]![Symbol.dispose]();
    assertEquals([slots(target), iommu.mappings.length, rig.memory()], [[], 0, []], `in the order ${order}`);
    rig[Symbol.dispose]();
  }
});

Deno.test("disposing the manager takes everything away from targets, then gives host memory back", () => {
  using rig = new Rig();
  rig.partition();
  rig.dmaTarget();
  rig.backed(0x0, 0x1000);
  rig.backed(0x2000, 0x3000, { file: "private" });
  rig.take();
  rig.manager[Symbol.dispose]();
  const calls = rig.take();
  const last = (text: string) => calls.findLastIndex((call) => call.includes(text));
  const first = (text: string) => calls.findIndex((call) => call.includes(text));
  assert(last("unmapDma") < first("va.remove") && last("unmapRange") < first("va.remove"), `${calls}`);
  assertEquals(rig.memory(), []);
});

Deno.test("a hundred cycles leave no file open", () => {
  using rig = new Rig();
  rig.partition();
  const file = rig.file();
  const openFiles = () => [...Deno.readDirSync("/proc/self/fd")].length;
  const before = openFiles();
  for (let i = 0; i < 100; i++) {
    using region = rig.backed(0x0, 0x4000, { file });
    region.addMapping({ rangeInRegion: range(0x1000, 0x2000), mappable: file, fileOffset: 0x8000 });
    region.removeMappings(range(0x3000, 0x4000));
    rig.faults.failAfter(1);
    assertThrows(() => region.map({ writable: false }), MappingError);
    rig.faults.reset();
  }
  assertEquals(openFiles(), before);
});

Deno.test("a failed or abandoned batch leaves no file open", () => {
  using rig = new Rig();
  rig.partition();
  const region = rig.region(0x0, 0x4000);
  region.map();
  const openFiles = () => [...Deno.readDirSync("/proc/self/fd")].length;
  const file = rig.file();
  const before = openFiles();
  for (let i = 0; i < 50; i++) {
    rig.faults.failAfter(0);
    assertThrows(() => region.addMapping({ rangeInRegion: range(0, 0x1000), mappable: file }), MappingError);
    rig.faults.reset();
    assertThrows(() =>
      rig.manager.batch(() => {
        region.addMapping({ rangeInRegion: range(0, 0x2000), mappable: file });
        region.addMapping({ rangeInRegion: range(0x1000, 0x3000), mappable: file });
        throw new Error("no");
      })
    );
  }
  assertEquals(openFiles(), before);
});

Deno.test("inspect shows each region's range, name, map params, activity, priority and mappings", () => {
  using rig = new Rig();
  const low = rig.backed(0x1000, 0x3000, { name: "low", priority: 3, file: rig.file(), fileOffset: 0x8000 });
  const high = rig.region(0x0, 0x4000, { name: "high", priority: 9, type: "device", holes: "fault" });
  high.addMapping({ rangeInRegion: range(0x1000, 0x2000), mappable: rig.file(), fileOffset: 0x4000, writable: false });
  high.addMapping({ rangeInRegion: range(0x2000, 0x3000), mappable: "private" });
  low.map({ writable: false, executable: false });
  const [first, second] = rig.manager.inspect().regions;
  assertEquals(
    [first?.name, first?.range, first?.priority, first?.active, first?.type, first?.holes, first?.id],
    ["low", "0x1000-0x3000", 3, true, "ram", "exit", low.id],
  );
  assertEquals(first?.mapParams, { writable: false, executable: false, prefetch: false });
  assertEquals(first?.visible, ["0x1000-0x3000"]);
  assertEquals(
    [second?.name, second?.mapParams, second?.active, second?.type, second?.holes],
    ["high", null, false, "device", "fault"],
  );
  assertEquals(
    second?.mappings.map(({ range, rangeInRegion, writable, fileOffset }) => [
      range,
      rangeInRegion,
      writable,
      fileOffset,
    ]),
    [["0x1000-0x2000", "0x1000-0x2000", false, 0x4000], ["0x2000-0x3000", "0x2000-0x3000", true, null]],
  );
});

Deno.test("inspect shows file offsets of the remainders after a split", () => {
  using rig = new Rig();
  const region = rig.backed(0x10000, 0x14000, { fileOffset: 0x8000 });
  region.removeMappings(range(0x1000, 0x2000));
  assertEquals(
    rig.manager.inspect().regions[0]?.mappings.map(({ range, rangeInRegion, fileOffset }) => [
      range,
      rangeInRegion,
      fileOffset,
    ]),
    [["0x10000-0x11000", "0x0-0x1000", 0x8000], ["0x12000-0x14000", "0x2000-0x4000", 0xa000]],
  );
});

Deno.test("inspect shows partitions and DMA targets with what they were told", () => {
  using rig = new Rig();
  rig.partition({ name: "vm", offset: 0x10000, pin: true });
  rig.dmaTarget({ name: "iommu" });
  rig.backed(0x1000, 0x3000);
  const { partitions, dmaTargets, base, length } = rig.manager.inspect();
  assertEquals([base, length], [rig.va.base, rig.va.length]);
  assertEquals(partitions, [{
    name: "vm",
    offset: 0x10000,
    pin: true,
    ranges: [{ range: "0x1000-0x3000", writable: true, executable: true }],
  }]);
  assertEquals(dmaTargets, [{ name: "iommu", ranges: ["0x1000-0x3000"] }]);
});

Deno.test("inspect gives plain data that JSON carries whole", () => {
  using rig = new Rig();
  rig.partition();
  rig.backed(0x1000, 0x3000);
  const node = rig.manager.inspect();
  assertEquals(JSON.parse(JSON.stringify(node)), node);
});
