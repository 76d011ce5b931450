import { assert, assertEquals, assertThrows } from "@std/assert";
import { Mappable, MemoryRange, RegionManager, VaMapper } from "membacking";
import { internalsOf } from "../../src/regions/region_manager.ts";
import { LANE_BYTES, LaneReceiver, LaneSender } from "../../src/serving/lane.ts";
import { ProtocolError } from "../../src/serving/protocol_error.ts";
import { Remote } from "./remote.ts";
import { RemoteProcess } from "./remote_process.ts";

const LENGTH = 0x10_0000;

class Rig implements Disposable {
  readonly #stack = new DisposableStack();
  readonly va = this.#stack.use(VaMapper.reserve(LENGTH));
  readonly regions = this.#stack.use(new RegionManager(this.va));
  readonly file = this.#stack.use(Mappable.memfd("rig", LENGTH));

  [Symbol.dispose](): void {
    this.#stack.dispose();
  }
}

const NEW_REGION = `
  kept.region = await client.newRegion({ name: "theirs", range: MemoryRange.of(at, 0x4000), priority: 1 });
  await kept.region.addMapping({ rangeInRegion: new MemoryRange(0, 0x4000), mappable: await client.memfd("theirs", 0x4000) });
  await kept.region.map();
`;

Deno.test("a client's requests are served and answered in order, whether they go by the bell or by the port", async () => {
  using rig = new Rig();
  await using remote = await Remote.start(rig.regions);
  await remote.run(NEW_REGION, { at: 0x1_0000 });
  const result = await remote.run<{ wrong: string[]; answers: number }>(`
    const { region } = kept;
    const wrong = [];
    let answers = 0, state = 12345;
    const random = (below) => (state = (state * 1103515245 + 12345) % 0x80000000) % below;
    let writable = true, mapped = true;
    const expect = (order, promise, check) =>
      promise.then((value) => {
        if (answers++ !== order) wrong.push("answer " + order + " came as " + (answers - 1));
        if (check !== undefined && !check(value)) wrong.push("answer " + order + " is " + JSON.stringify(value));
      });
    const all = [];
    for (let order = 0; order < 4000; order++) {
      const [w, m] = [writable, mapped];
      switch (random(7)) {
        case 0: writable = random(2) === 0; mapped = true; all.push(expect(order, region.map({ writable }))); break;
        case 1: mapped = false; all.push(expect(order, region.unmap())); break;
        case 2: case 3: all.push(expect(order, region.mapParams, (params) => m ? params.writable === w : params === null)); break;
        case 4: all.push(expect(order, region.visible, (ranges) => ranges.length === (m ? 1 : 0))); break;
        case 5: all.push(expect(order, client.inspect(), ({ regions }) => regions.length === 1)); break;
        case 6: {
          writable = !writable; mapped = true;
          all.push(expect(order, client.batch(() => { void region.unmap(); void region.map({ writable }); })));
        }
      }
      // Some in bursts, more than the lane has room for, and some one by one.
      if (random(300) === 0) await all.at(-1);
    }
    await Promise.all(all);
    return { wrong, answers };
  `);
  assertEquals(result, { wrong: [], answers: 4000 });
});

Deno.test("an owner that is busy answers when it comes back, in order, and loses nothing", async () => {
  using rig = new Rig();
  const counts: number[] = [];
  using _watch = internalsOf(rig.regions).watch(() => counts.push(1));
  const REQUESTS = 600;
  const clients = await Promise.all(
    [true, true, false, true].map(async (sync, index) => {
      const remote = await Remote.start(rig.regions, { sync, timeout: 60_000 });
      await remote.run(NEW_REGION, { at: 0x1_0000 * (index + 1) });
      return remote;
    }),
  );
  counts.length = 0;
  let isDone = false;
  const done = Promise.all(clients.map((remote) =>
    remote.run<number>(
      `let last = null, wrong = 0;
      for (let i = 0; i < requests; i++) {
        const writable = i % 2 === 0;
        await kept.region.map({ writable });
        if ((await kept.region.mapParams).writable !== writable) wrong++;
      }
      return wrong;`,
      { requests: REQUESTS },
    )
  )).finally(() => isDone = true);
  const busy = new Int32Array(new SharedArrayBuffer(4));
  while (!isDone) {
    Atomics.wait(busy, 0, 0, 3); // Its event loop stands still.
    await new Promise((resolve) => setTimeout(resolve, 0));
  }
  assertEquals(await done, [0, 0, 0, 0]);
  // The first one of each asks for what is so already.
  assertEquals(counts.length, 4 * (REQUESTS - 1));
  for (const remote of clients) await remote[Symbol.asyncDispose]();
});

Deno.test("RegionManager.poll serves clients of all kinds while the owner does not come back to its event loop", async () => {
  using rig = new Rig();
  await using sync = await Remote.start(rig.regions, { sync: true, timeout: 60_000 });
  await using async = await Remote.start(rig.regions);
  await using process = await RemoteProcess.start(rig.regions);
  for (const [index, remote] of [sync, async, process].entries()) {
    await remote.run(NEW_REGION, { at: 0x1_0000 * (index + 1) });
  }
  const done = Promise.all([sync, async, process].map((remote, index) =>
    remote.run(
      `for (let i = 0; i < 300; i++) { await kept.region.unmap(); await kept.region.map(); }
      client.memory.writeUint32(at, at);
      await client.inspect();`,
      { at: 0x1_0000 * (index + 1) },
    )
  ));
  const end = performance.now() + 20_000;
  const nap = new Int32Array(new SharedArrayBuffer(4));
  let served = 0;
  const isDone = (at: number) => rig.regions.memory.isMapped(at, 4) && rig.regions.memory.readUint32(at) === at;
  while (![0x1_0000, 0x2_0000, 0x3_0000].every(isDone)) {
    assert(performance.now() < end, `only ${served} were served`);
    served += rig.regions.poll();
    Atomics.wait(nap, 0, 0, 0.1);
  }
  assert(served > 300, `${served} served`);
  await done;
  assertEquals(rig.regions.inspect().regions.length, 3);
  assertThrows(() => rig.regions.batch(() => rig.regions.poll()), TypeError, "batch");
  // A process may still say that it has let go of what changed; then there is silence.
  for (let polls = 0; rig.regions.poll() > 0; polls++) assert(polls < 100, "something goes on arriving");
});

/** All kinds of request, many times, each answer counted at `counter`; with `waits`, teardowns wait for a lock too. */
const ALL_KINDS = `
  const { region } = kept;
  for (let i = 1; i <= count; i++) {
    switch (i % 6) {
      case 0:
        await client.inspect();
        break;
      case 1:
        await region.unmap();
        await region.map();
        break;
      case 2: {
        using lent = await client.memfd("lent", 0x1000), own = Mappable.memfd("own", 0x1000);
        for (const mappable of [lent, own]) {
          await region.addMapping({ rangeInRegion: new MemoryRange(0x2000, 0x3000), mappable });
        }
        break;
      }
      case 3:
        await client.batch(() => { for (let i = 0; i < 300; i++) void region.map({ writable: i % 2 === 1 }); });
        break;
      case 4: {
        const range = MemoryRange.of(at + 0x8000, 0x1000);
        const more = await client.newRegion({ name: "x".repeat(50_000), range, priority: 1 });
        using file = await client.memfd("more", 0x1000);
        await more.addMapping({ rangeInRegion: new MemoryRange(0, 0x1000), mappable: file });
        await more.map();
        const lock = client.memory.lock(range);
        if (!waits) lock[Symbol.dispose]();
        const gone = more.teardown();
        if (waits) lock[Symbol.dispose]();
        await gone;
        break;
      }
      case 5:
        await client.regions();
    }
    client.memory.writeUint32(counter, i);
  }
`;

Deno.test("an owner that is synchronous from any moment on answers all by RegionManager.poll, whichever way it comes", async () => {
  using rig = new Rig();
  await using sync = await Remote.start(rig.regions, { sync: true, timeout: 60_000 });
  await using async = await Remote.start(rig.regions);
  await using other = await Remote.start(rig.regions);
  await using process = await RemoteProcess.start(rig.regions);
  const remotes = [async, other, sync, process];
  const PARTS = 20, COUNT = 30;
  const words = new MemoryRange(0, 0x1000);
  const counters = remotes.map((_, index) => 4 * index);
  const ram = rig.regions.newRegion({ name: "counters", range: words, priority: 0 });
  ram.addMapping({ rangeInRegion: words, mappable: rig.file });
  ram.map();
  const place = (index: number) => 0x1_0000 * (index + 1);
  for (const [index, remote] of remotes.entries()) await remote.run(NEW_REGION, { at: place(index) });
  const nap = new Int32Array(new SharedArrayBuffer(4));
  for (let part = 0; part < PARTS; part++) {
    const done = remotes.map((remote, index) => {
      const [at, counter] = [place(index), 4 * index];
      rig.regions.memory.writeUint32(counter, 0);
      return remote.run(ALL_KINDS, { at, counter, count: COUNT, waits: remote !== sync });
    });
    for (const each of done) each.catch(() => {});
    const end = performance.now() + 20_000;
    const answered = () => counters.map((at) => rig.regions.memory.readUint32(at));
    // In the middle of that the owner leaves its event loop, which has begun with whatever there was.
    for (let turns = part % 7; turns > 0 || answered().includes(0); turns--) {
      assert(performance.now() < end, `in part ${part} not all began: ${answered()}`);
      await new Promise((resolve) => setTimeout(resolve, 0));
    }
    while (answered().some((count) => count < COUNT)) {
      assert(performance.now() < end, `in part ${part} only ${answered()} were answered`);
      rig.regions.poll();
      Atomics.wait(nap, 0, 0, 0.1);
    }
    await Promise.all(done);
  }
  assertEquals(rig.regions.inspect().regions.length, remotes.length + 1);
});

Deno.test("who sends on while a lane is drained does not keep it from its end", () => {
  const lane = new SharedArrayBuffer(LANE_BYTES);
  const sender = new LaneSender(lane, "to-owner");
  let received = 0;
  const receiver = new LaneReceiver(lane, "to-owner", () => {
    if (++received === 1000) throw new Error("It goes on and on");
    sender.send(1, () => 1);
  });
  for (let i = 0; i < 3; i++) sender.send(1, () => 1);
  assertEquals([receiver.drain(), receiver.drain()], [3, 3]);
  assertEquals(received, 6);
});

Deno.test("a lane hands on its messages and those that went by another way in one order", () => {
  const lane = new SharedArrayBuffer(LANE_BYTES);
  const sender = new LaneSender(lane, "to-owner");
  const seen: number[] = [];
  const receiver = new LaneReceiver(lane, "to-owner", (id, code, numbers) => {
    assertEquals([code, numbers[0]], [7, id * 2]);
    seen.push(id);
  });
  const byPort: { id: number; order: number }[] = [];
  for (let id = 1; id <= 200; id++) {
    const order = sender.send(id, (numbers) => {
      numbers[0] = id * 2;
      return id % 5 === 0 ? 0 : 7;
    });
    if (order > 0) byPort.push({ id, order });
    if (id % 37 !== 0) continue;
    receiver.drain();
    for (const { id, order } of byPort.splice(0)) receiver.accept(order, () => seen.push(id));
  }
  receiver.drain();
  for (const { id, order } of byPort) receiver.accept(order, () => seen.push(id));
  assertEquals(seen, Array.from({ length: 200 }, (_, i) => i + 1));
});

Deno.test("a lane with garbage in it is seen as such, and a full one is not written over", () => {
  for (
    const [head, order, id] of [[-1, 1, 1], [65, 1, 1], [0x7fff_ffff, 1, 1], [1, NaN, 1], [1, 0, 1], [1, 1, NaN], [
      1,
      1,
      0.5,
    ]] as const
  ) {
    const lane = new SharedArrayBuffer(LANE_BYTES);
    const receiver = new LaneReceiver(lane, "to-owner", () => {});
    new Float64Array(lane, 128).set([order, id, 7]);
    new Int32Array(lane)[0] = head;
    assertThrows(() => receiver.drain(), ProtocolError);
  }
  const lane = new SharedArrayBuffer(LANE_BYTES);
  const sender = new LaneSender(lane, "to-client");
  let went = 0;
  while (sender.send(went + 1, () => 7) === 0) went++;
  assertEquals(went, 64);
  const seen: number[] = [];
  new LaneReceiver(lane, "to-client", (id) => seen.push(id)).drain();
  assertEquals(seen.length, 64);
  assertThrows(() => new LaneReceiver(lane, "to-client", () => {}).accept(5, () => {}), ProtocolError, "order");
});
