// Partitions and DMA targets as sources of written pages: those that log, those that cannot, and those that go.

import { assert, assertEquals, assertInstanceOf, assertStrictEquals, assertThrows } from "@std/assert";
import {
  type DmaRequest,
  type DmaTarget,
  MembackingError,
  type MemoryRange,
  PageSet,
  type Partition,
  ReentrancyError,
} from "membacking";
import { RecordingPartition } from "membacking/testing";
import { DirtyRig, taken } from "./rig.ts";
import { PAGE, range } from "../support/units.ts";

const HOLD = { [Symbol.dispose]() {} };
const quiesce = () => HOLD;

Deno.test("DirtyTracker: who cannot say what it has written has written all it may, and inspect() says so", () => {
  using rig = new DirtyRig({ quiesce });
  const bare = new RecordingPartition();
  const handle = rig.manager.addPartition(bare);
  const told: string[] = [];
  const iommu: DmaTarget = {
    name: "iommu",
    mapDma: ({ range }: DmaRequest) => void told.push(`map ${range}`) as undefined,
    unmapDma: (range: MemoryRange) => void told.push(`unmap ${range}`) as undefined,
  };
  rig.region(0, 8);
  rig.region(8, 16).map({ writable: false });
  assertEquals(rig.manager.inspect().partitions[0]?.writesAll, undefined);
  using tracker = rig.manager.trackDirty();
  assertStrictEquals(rig.manager.inspect().partitions[0]?.writesAll, true);
  for (let i = 0; i < 2; i++) assertEquals(taken(tracker), "0-7");
  handle[Symbol.dispose]();
  assertEquals(taken(tracker), "0-7");
  assertEquals(taken(tracker), "");

  const dma = rig.manager.addDmaTarget(iommu);
  assertStrictEquals(rig.manager.inspect().dmaTargets[0]?.writesAll, true);
  for (let i = 0; i < 2; i++) assertEquals(taken(tracker), "0-7");
  dma[Symbol.dispose]();
  assertEquals(taken(tracker), "0-7");
  assertEquals(taken(tracker), "");
});

Deno.test("DirtyTracker: a DMA target that logs is asked at each take, and before a mapping goes", () => {
  using rig = new DirtyRig();
  const written: [number, number][] = [];
  const device: DmaTarget = {
    mapDma() {},
    unmapDma() {},
    takeDirty(mark) {
      for (const [start, end] of written.splice(0)) mark(start, end);
    },
  };
  const handle = rig.manager.addDmaTarget(device);
  const region = rig.region(0, 8);
  rig.region(8, 16);
  written.push([PAGE, 2 * PAGE]); // before anybody looked
  using tracker = rig.manager.trackDirty();
  assertEquals(taken(tracker), "");
  assertEquals(rig.manager.inspect().dmaTargets[0]?.writesAll, undefined);
  // Single bytes, and what is no guest memory or no number at all.
  written.push([3 * PAGE + 5, 3 * PAGE + 6], [-5, 1], [2 ** 24, 2 ** 25], [2 ** 52, Infinity]);
  assertEquals(taken(tracker), "0 3");
  written.push([4 * PAGE, 5 * PAGE]);
  region.unmap();
  assertEquals(written, []);
  assertEquals(taken(tracker), "0-7");
  written.push([9 * PAGE, 10 * PAGE]);
  handle[Symbol.dispose]();
  assertEquals(taken(tracker), "9");
});

Deno.test("DirtyTracker: a partition may tell by a bitmap, which is input like runs", () => {
  using rig = new DirtyRig();
  let bitmaps: [unknown, unknown][] = [];
  const vm: Partition = {
    mapRange() {},
    unmapRange() {},
    setDirtyLog() {},
    takeDirty(_range, mark, markBitmap) {
      assert(markBitmap !== undefined);
      if (bitmaps.length > 0) mark(5 * PAGE, 6 * PAGE);
      for (const [start, words] of bitmaps.splice(0)) markBitmap(start as number, words as Uint32Array);
    },
  };
  rig.manager.addPartition(vm, { offset: 2 ** 30 });
  rig.region(0, 8);
  using tracker = rig.manager.trackDirty();
  const words = Uint32Array.of(0b1011, 0);
  bitmaps = [[2 ** 30, words]];
  assertEquals(taken(tracker), "0-1 3");
  words.fill(0);
  assertEquals(taken(tracker), "");
  // Pages before and behind what was asked for are left out.
  bitmaps = [[2 ** 30 - 2 * PAGE, Uint32Array.of(0b10111)], [2 ** 40, Uint32Array.of(1)]];
  assertEquals(taken(tracker), "0 2");
  // It is the words that count, whatever an object says of itself, and they are not kept.
  class Words extends Uint32Array<ArrayBuffer> {
    override slice(): Words {
      return this;
    }
  }
  const own = Object.defineProperty(Words.from({ length: 64 }, () => 0b101), "length", { value: NaN }) as Words;
  bitmaps = [[2 ** 30, own]];
  const set = tracker.take();
  own.fill(0);
  assertStrictEquals(set.within(range(0, 64 * 32 * PAGE)).count, 128);
  // Of what is none, nobody knows what it says.
  const gone = new Uint32Array(4);
  structuredClone(gone.buffer, { transfer: [gone.buffer] });
  const all = `0-${rig.manager.memory.length / PAGE - 1}`;
  const garbage: [unknown, unknown][] = [[NaN, words], [5, words], [2 ** 30, [1]], [2 ** 30, undefined], [
    2 ** 30,
    gone,
  ]];
  for (const [start, given] of garbage) {
    bitmaps = [[start, given]];
    assertEquals(taken(tracker), all, Deno.inspect([start, given]));
  }
});

Deno.test("DirtyTracker: what a target says when it is not asked is refused, and counts as no other target's", () => {
  using rig = new DirtyRig();
  const kept: ((start: number, end: number) => void)[] = [];
  const keptBitmap: ((start: number, words: Uint32Array) => void)[] = [];
  const partition = (): Partition => ({
    mapRange() {},
    unmapRange() {},
    setDirtyLog() {},
    takeDirty(_range, mark, markBitmap) {
      kept.push(mark);
      if (markBitmap !== undefined) keptBitmap.push(markBitmap);
    },
  });
  rig.manager.addPartition(partition());
  rig.manager.addPartition(partition(), { offset: 64 * PAGE });
  rig.region(0, 8);
  using tracker = rig.manager.trackDirty();
  tracker.take();
  for (const mark of kept) assertThrows(() => mark(5 * PAGE, 6 * PAGE), TypeError, "not asked");
  for (const mark of keptBitmap) assertThrows(() => mark(0, Uint32Array.of(1)), TypeError, "not asked");
  assertEquals(taken(tracker), "");
});

Deno.test("DirtyTracker.giveBack() refuses what only looks like a PageSet, and other trackers see nothing of it", () => {
  using rig = new DirtyRig();
  rig.region(0, 8);
  using first = rig.manager.trackDirty();
  using second = rig.manager.trackDirty();
  const set = PageSet.of([range(0, PAGE)]);
  for (const forged of [new Proxy(set, {}), Object.create(PageSet.prototype) as PageSet]) {
    assertThrows(() => first.giveBack(forged), TypeError, "PageSet");
    assertThrows(() => set.union(forged), TypeError, "PageSet");
  }
  rig.manager.memory.writeUint8(3 * PAGE, 1);
  assertEquals([taken(first), taken(second)], ["3", "3"]);
});

Deno.test("DirtyTracker: a partition that is disposed by itself is asked once more", () => {
  using rig = new DirtyRig();
  const left: [number, number][] = [];
  let gone = false;
  const vm: Partition = {
    mapRange() {},
    unmapRange() {},
    setDirtyLog() {},
    takeDirty(_range, mark) {
      for (const [start, end] of left.splice(0)) mark(start, end);
    },
    get disposed() {
      return gone;
    },
  };
  rig.manager.addPartition(vm);
  rig.region(0, 8);
  using tracker = rig.manager.trackDirty();
  left.push([2 * PAGE, 3 * PAGE]);
  gone = true;
  rig.region(16, 17); // a request, in which it leaves
  assertEquals(left, []);
  assertEquals(taken(tracker), "2 16");
});

Deno.test("DirtyTracker: a target that would say later what it has written has failed to, and none can make requests", async () => {
  using rig = new DirtyRig();
  let act: () => unknown = () => {};
  const vm = {
    mapRange() {},
    unmapRange() {},
    setDirtyLog() {},
    takeDirty: (_range: MemoryRange, mark: (start: number, end: number) => void) => {
      mark(0, 1);
      return act() as void;
    },
  } satisfies Partition;
  rig.manager.addPartition(vm);
  const region = rig.region(0, 8);
  using tracker = rig.manager.trackDirty();
  act = () => Promise.reject(new Error("later"));
  assertThrows(() => tracker.take(), MembackingError, "take again");
  let seen: unknown;
  act = () => {
    try {
      region.unmap();
    } catch (error) {
      seen = error;
    }
  };
  assertEquals(taken(tracker), "0");
  assertInstanceOf(seen, ReentrancyError);
  // Going without an answer, it has written all it may.
  act = () => Promise.resolve();
  region.unmap();
  act = () => {};
  assertEquals(taken(tracker), "0-7");
  await Promise.resolve();
});
