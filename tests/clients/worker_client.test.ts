import { internalsOf } from "../../src/regions/region_manager.ts";
import { assert, assertEquals } from "@std/assert";
import {
  Mappable,
  MemoryLockedError,
  MemoryRange,
  type RegionHandle,
  RegionManager,
  type RegionManagerClient,
  type SyncRegionManagerClient,
  VaMapper,
} from "membacking";
import { isAlive } from "../../ffi/os/thread.ts";
import { openFds } from "../support/proc.ts";
import { SLOWNESS } from "../support/require.ts";
import { Remote } from "./remote.ts";
import { remoteError } from "./remote_error.ts";
import { until } from "./runner.ts";

const LENGTH = 0x10_0000;

/** A manager with some memory. */
class Rig implements Disposable {
  readonly #stack = new DisposableStack();
  readonly va = this.#stack.use(VaMapper.reserve(LENGTH));
  readonly regions: RegionManager;
  readonly file = this.#stack.use(Mappable.memfd("rig", LENGTH));
  readonly ram: RegionHandle;

  constructor() {
    this.regions = this.#stack.use(new RegionManager(this.va));
    this.ram = this.regions.newRegion({ name: "ram", range: new MemoryRange(0, 0x8000), priority: 0 });
    this.ram.addMapping({ rangeInRegion: new MemoryRange(0, 0x8000), mappable: this.file });
    this.ram.map();
  }

  /** The names of the regions, the RAM's left out. */
  get others(): string[] {
    return this.regions.inspect().regions.map(({ name }) => name).filter((name) => name !== "ram");
  }

  [Symbol.dispose](): void {
    this.#stack.dispose();
  }
}

const NEW_REGION = `
  kept.region = await client.newRegion({ name: "theirs", range: MemoryRange.of(at, 0x4000), priority: 1 });
  const file = await client.memfd("theirs", 0x4000);
  await kept.region.addMapping({ rangeInRegion: new MemoryRange(0, 0x4000), mappable: file });
  await kept.region.map();
`;

for (const sync of [false, true]) {
  const kind = sync ? "a synchronous client" : "a client";

  Deno.test(`${kind} in a Worker changes memory that everybody sees`, async () => {
    using rig = new Rig();
    await using first = await Remote.start(rig.regions, { sync });
    await using second = await Remote.start(rig.regions);
    await first.run(`${NEW_REGION} client.memory.writeUint32(at + 4, 7);`, { at: 0x10_000 });
    assertEquals(rig.regions.memory.readUint32(0x10_004), 7);
    assertEquals(await second.run("return client.memory.readUint32(0x10_004);"), 7);
    await first.run("await kept.region.unmap();");
    const error = await remoteError(second.run("client.memory.readUint32(0x10_004);"));
    assertEquals([error.className, error.fields.kind], ["GuestMemoryError", "not-mapped"]);
    assertEquals(
      await first.run(`return [await kept.region.mapParams, String(await kept.region.visible)];`),
      [null, ""],
    );
  });

  Deno.test(`what ${kind} has is gone soon after its Worker was terminated`, async () => {
    using rig = new Rig();
    const before = openFds();
    await using remote = await Remote.start(rig.regions, { sync });
    await remote.run(`${NEW_REGION} kept.lock = client.memory.lock(new MemoryRange(0, 0x1000));`, { at: 0x10_000 });
    assertEquals([rig.others, rig.regions.inspect().locks.length], [["theirs"], 1]);
    remote.terminate();
    await until(() => rig.others.length === 0, "the region is gone");
    assertEquals(rig.regions.inspect().locks, []);
    rig.ram.unmap();
    await until(() => openFds() <= before + 4, "the files are closed"); // Deno keeps four for all Workers
  });

  Deno.test(`${kind} gets the errors of the manager`, async () => {
    using rig = new Rig();
    await using remote = await Remote.start(rig.regions, { sync });
    const code = `await client.newRegion({ name: "b", range: new MemoryRange(0x4000, 0xc000), priority: 0 });`;
    const overlap = await remoteError(remote.run(code));
    assertEquals(overlap.className, "RegionOverlapError");
    assertEquals(overlap.fields.existing, { name: "ram", range: { start: 0, end: 0x8000 }, priority: 0 });

    await remote.run(NEW_REGION, { at: 0x10_000 });
    using _lock = rig.regions.memory.lock(new MemoryRange(0x11_000, 0x12_000));
    const locked = await remoteError(remote.run("await kept.region.unmap();"));
    assertEquals([locked.className, locked.fields.range], ["MemoryLockedError", { start: 0x11_000, end: 0x12_000 }]);
    assertEquals(await remote.run("return (await kept.region.mapParams).writable;"), true);
  });

  Deno.test(`${kind} can be handed on to another Worker, and outlived`, async () => {
    using rig = new Rig();
    await using first = await Remote.start(rig.regions, { sync });
    const port = await first.run<MessagePort>("return client.fork();");
    await using second = await Remote.start(port, { sync });
    await second.run(NEW_REGION, { at: 0x10_000 });
    await first.run(NEW_REGION, { at: 0x20_000 });
    first.terminate();
    await until(() => rig.others.length === 1, "one region is left");
    assertEquals(await second.run("return client.memory.readUint8(0x10_000);"), 0);
  });

  Deno.test(`the locks of ${kind} stop requests that would change their memory`, async () => {
    using rig = new Rig();
    await using remote = await Remote.start(rig.regions, { sync });
    await remote.run("kept.lock = client.memory.lock(new MemoryRange(0x1000, 0x3000), { write: true });");
    await remote.run("kept.lock.bytes[5] = 99;");
    assertEquals(rig.regions.memory.readUint8(0x1005), 99);
    try {
      rig.ram.unmap();
      throw new Error("The memory is locked");
    } catch (error) {
      assert(error instanceof MemoryLockedError, String(error));
      assertEquals(String(error.range), "0x1000-0x3000");
    }
    let isDown = false;
    const down = rig.ram.teardown().then(() => isDown = true);
    const refused = await remoteError(remote.run("client.memory.lock(new MemoryRange(0x5000, 0x6000));"));
    assertEquals(refused.className, "DisposedError");
    assertEquals(isDown, false);
    await remote.run("kept.lock[Symbol.dispose]();");
    await down;
    assertEquals(await remote.run("return kept.lock.bytes.length;"), 0);
  });
}

Deno.test("a client that ends in the middle of its requests leaves the manager whole", async () => {
  using rig = new Rig();
  for (let round = 0; round < 10; round++) {
    const remote = await Remote.start(rig.regions);
    // Nobody waits for the answers.
    await remote.run(
      `for (let i = 0; i < 50; i++) {
        void client.newRegion({ name: "theirs", range: MemoryRange.of(0x1_0000 + i * 0x1000, 0x1000), priority: 1 })
          .then((region) => region.map()).catch(() => {});
      }`,
    );
    if (round % 2 === 0) await new Promise((resolve) => setTimeout(resolve, round));
    remote.terminate();
  }
  await until(() => rig.others.length === 0, "all regions are gone");
  rig.regions.memory.writeUint32(0, 5);
  assertEquals(rig.regions.memory.readUint32(0), 5);
});

Deno.test("a synchronous client's batch is one request, and knows its new regions afterwards", async () => {
  using rig = new Rig();
  await using remote = await Remote.start(rig.regions, { sync: true });
  let requests = 0;
  using _watch = internalsOf(rig.regions).watch(() => requests++);
  const result = await remote.run(
    `const file = client.memfd("bar", 0x2000);
    const region = client.batch(() => {
      const region = client.newRegion({ name: "bar", range: MemoryRange.of(0x2_0000, 0x2000), priority: 1 });
      region.addMapping({ rangeInRegion: new MemoryRange(0, 0x2000), mappable: file });
      region.map({ writable: false });
      return region;
    });
    kept.bar = region;
    return [region.id, region.mapParams, String(region.visible)];`,
  );
  assertEquals(requests, 1);
  const bar = rig.regions.inspect().regions.find(({ name }) => name === "bar");
  assertEquals(result, [bar?.id, { writable: false, executable: true, prefetch: false }, "0x20000-0x22000"]);
  const error = await remoteError(remote.run(
    `client.batch(() => {
      kept.bar.unmap();
      client.newRegion({ name: "x", range: MemoryRange.of(0x2_1000, 0x2000), priority: 1 });
    });`,
  ));
  assertEquals(error.className, "RegionOverlapError");
  assertEquals(await remote.run("return kept.bar.mapParams !== null;"), true);
});

Deno.test("a request that the owner does not get to in time is withdrawn, and never carried out", async () => {
  using rig = new Rig();
  const timeout = 500 * SLOWNESS;
  await using remote = await Remote.start(rig.regions, { sync: true, timeout });
  const pending = remote.run(
    `try {
      client.newRegion({ name: "late", range: MemoryRange.of(0x2_0000, 0x2000), priority: 1 });
      return "made";
    } catch (error) {
      return [error.name, error.timeout, error.begun, error.message];
    }`,
  );
  // The owner is busy: its event loop stands still.
  const busy = new Int32Array(new SharedArrayBuffer(4));
  Atomics.wait(busy, 0, 0, 3 * timeout);
  assertEquals(await pending, [
    "RequestTimeoutError",
    timeout,
    false,
    `The owner of the region manager did not answer "newRegion" within ${timeout} ms, and the request was withdrawn`,
  ]);
  assertEquals(rig.others, []);
  // The next ones are served as if nothing had been.
  assertEquals(
    await remote.run(
      `const region = client.newRegion({ name: "next", range: MemoryRange.of(0x2_0000, 0x2000), priority: 1 });
      return [region.mapParams, region.name];`,
    ),
    [null, "next"],
  );
  assertEquals(rig.others, ["next"]);
});

Deno.test("a teardown that takes too long is called off, and its late answer disturbs nobody", async () => {
  using rig = new Rig();
  await using remote = await Remote.start(rig.regions, { sync: true, timeout: 500 });
  await remote.run(NEW_REGION, { at: 0x10_000 });
  const lock = rig.regions.memory.lock(new MemoryRange(0x10_000, 0x11_000));
  const error = await remoteError(remote.run("await kept.region.teardown();"));
  assertEquals([error.className, error.fields.begun], ["RequestTimeoutError", false]);
  lock[Symbol.dispose]();
  for (let i = 0; i < 20; i++) {
    assertEquals(await remote.run("return String(kept.region.visible);"), "0x10000-0x14000");
  }
  await remote.run("await kept.region.teardown();");
  assertEquals(rig.others, []);
});

Deno.test("answers larger than the mailbox arrive whole", async () => {
  using rig = new Rig();
  await using remote = await Remote.start(rig.regions, { sync: true });
  const regions = Array.from(
    { length: 150 },
    (_, i) =>
      rig.regions.newRegion({ name: "x".repeat(i), range: MemoryRange.of(0x4_0000 + i * 0x1000, 0x1000), priority: 0 }),
  );
  assertEquals(await remote.run("return client.inspect();"), rig.regions.inspect());
  assertEquals(await remote.run("return client.regions().length;"), rig.regions.regions().length);
  for (const region of regions) region[Symbol.dispose]();
});

Deno.test("the owner's changes wait for an access, and accesses for a change", async () => {
  using rig = new Rig();
  await using reader = await Remote.start(rig.regions);
  const done = reader.run<number>(
    `const bytes = new Uint8Array(0x8000);
    const end = performance.now() + 500;
    let count = 0;
    while (performance.now() < end) {
      client.memory.readInto(0, bytes);
      if (bytes.some((byte) => byte !== bytes[0])) throw new Error("torn");
      count++;
    }
    return count;`,
  );
  const other = Mappable.memfd("other", 0x8000);
  other.write(0, new Uint8Array(0x8000).fill(1));
  let changes = 0;
  const end = performance.now() + 450;
  while (performance.now() < end) {
    for (const mappable of [other, rig.file]) {
      rig.ram.addMapping({ rangeInRegion: new MemoryRange(0, 0x8000), mappable });
    }
    changes++;
    if (changes % 20 === 0) await new Promise((resolve) => setTimeout(resolve, 0));
  }
  other[Symbol.dispose]();
  assert(await done > 10);
  assert(changes > 10);
});

Deno.test("a thread is known by more than its number", async () => {
  using rig = new Rig();
  await using remote = await Remote.start(rig.regions);
  assert(isAlive({ tid: remote.tid, started: null }));
  assert(!isAlive({ tid: remote.tid, started: "1" }));
});

Deno.test("a time-out names what was called, and not what it was made of", async () => {
  using rig = new Rig();
  const timeout = 500 * SLOWNESS;
  await using remote = await Remote.start(rig.regions, { sync: true, timeout });
  await remote.run(`
    kept.bar = client.newDeviceMemory("bar", 0x1000);
    kept.bar.map({ offset: 0, mappable: client.memfd("bar", 0x1000) });
  `);
  const pending = remote.run<string[]>(`
    const messages = [];
    for (const act of [() => kept.bar.mapToGuest(0x2_0000, true), () => client.batch(() => { client.newRegion({ name: "x", range: MemoryRange.of(0x4_0000, 0x1000), priority: 1 }); })]) {
      try { act(); } catch (error) { messages.push(/answer "(\\w+)"/.exec(error.message)?.[1]); }
    }
    return messages;
  `);
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 5 * timeout);
  assertEquals(await pending, ["mapToGuest", "batch"]);
  assertEquals(rig.others, []);
});

Deno.test("a synchronous client's batch refuses what is not synchronous, by its type and at run time", async () => {
  using rig = new Rig();
  await using remote = await Remote.start(rig.regions, { sync: true });
  const error = await remoteError(remote.run(`
    client.batch(async () => { client.newRegion({ name: "x", range: MemoryRange.of(0x4_0000, 0x1000), priority: 1 }); });
  `));
  assertEquals(error.className, "TypeError");
  assertEquals(rig.others, []);
  const _types = (sync: SyncRegionManagerClient, async: RegionManagerClient) => {
    // @ts-expect-error: a promise is no result of a batch
    sync.batch(async () => {});
    // @ts-expect-error: nor here
    void async.batch(async () => {});
    const five: number = sync.batch(() => 5);
    const six: Promise<number> = async.batch(() => 6);
    return [five, six];
  };
});
