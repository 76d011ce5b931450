import { internalsOf } from "../../src/regions/region_manager.ts";
import { assert, assertEquals, assertInstanceOf, assertRejects, assertThrows } from "@std/assert";
import {
  DisposedError,
  GuestMemory,
  Mappable,
  MappingError,
  MembackingError,
  MemoryLockedError,
  MemoryRange,
  OsError,
  ReentrancyError,
  RegionManager,
  RegionManagerClient,
  RegionOverlapError,
  SyncRegionManagerClient,
  VaMapper,
} from "membacking";
import { RecordingPartition, RecordingVa } from "membacking/testing";
import { ClientMemory } from "../../src/clients/client_memory.ts";
import { openFds } from "../support/proc.ts";
import { range } from "../support/units.ts";

const LENGTH = 0x10_0000;

/** A manager and a client of it on the same thread. */
class Rig implements Disposable {
  readonly #stack = new DisposableStack();
  readonly va = this.#stack.use(VaMapper.reserve(LENGTH));
  readonly regions: RegionManager;
  readonly file = this.#stack.use(Mappable.memfd("rig", LENGTH));

  constructor(options: ConstructorParameters<typeof RegionManager>[1] = {}) {
    this.regions = this.#stack.use(new RegionManager(this.va, options));
  }

  async connect(): Promise<RegionManagerClient> {
    const { port1, port2 } = new MessageChannel();
    this.regions.serve(port1);
    return this.#stack.use(await RegionManagerClient.connect(port2));
  }

  [Symbol.dispose](): void {
    this.#stack.dispose();
  }
}

const tick = () => new Promise((resolve) => setTimeout(resolve, 5));

Deno.test("RegionManagerClient makes and changes regions as the manager itself does", async () => {
  using rig = new Rig();
  const client = await rig.connect();
  const region = await client.newRegion({ name: "ram", range: range(0x1000, 0x9000), priority: 3, holes: "fault" });
  assertEquals([region.name, String(region.range), region.priority], ["ram", "0x1000-0x9000", 3]);
  assertEquals([await region.mapParams, await region.visible], [null, []]);

  await region.addMapping({ rangeInRegion: range(0, 0x8000), mappable: rig.file, fileOffset: 0x2000 });
  await region.map({ executable: false });
  assertEquals(await region.mapParams, { writable: true, executable: false, prefetch: false });
  assertEquals((await region.visible).map(String), ["0x1000-0x9000"]);

  await region.addMapping({ rangeInRegion: range(0x2000, 0x3000), mappable: "private", writable: false });
  await region.removeMappings(range(0x4000, 0x5000));
  const [node] = rig.regions.inspect().regions;
  assertEquals(await client.inspect(), rig.regions.inspect());
  assertEquals(node?.id, region.id);
  assertEquals(node?.holes, "fault");
  assertEquals(node?.mappings.map(({ range, writable }) => `${range} ${writable}`), [
    "0x1000-0x3000 true",
    "0x3000-0x4000 false",
    "0x4000-0x5000 true",
    "0x6000-0x9000 true",
  ]);
  await region.removeMappings(range(0x2000, 0x3000));
  await region.unmap();
  assertEquals(await region.mapParams, null);
  await region.remove();
  assertEquals(rig.regions.inspect().regions, []);
  await assertRejects(() => region.map(), DisposedError);
  await region.teardown();
});

Deno.test("RegionManagerClient.regions lists what the manager lists", async () => {
  using rig = new Rig();
  const client = await rig.connect();
  rig.regions.newRegion({ name: "owner's", range: range(0, 0x1000), priority: 3, type: "device", holes: "fault" });
  await (await client.newRegion({ name: "client's", range: range(0x1000, 0x3000), priority: 0 })).map();
  const listed = await client.regions();
  assertEquals(listed, rig.regions.regions());
  assert(Object.isFrozen(listed) && listed.every(Object.isFrozen) && listed[1]?.range instanceof MemoryRange);
});

Deno.test("requests of one client are served in the order they were made", async () => {
  using rig = new Rig();
  const client = await rig.connect();
  const region = await client.newRegion({ name: "ram", range: range(0, 0x4000), priority: 0 });
  const seen: string[] = [];
  await Promise.all([
    region.map().then(() => seen.push("map")),
    region.unmap().then(() => seen.push("unmap")),
    region.map({ writable: false }).then(() => seen.push("map again")),
    region.mapParams.then((params) => seen.push(`writable ${params?.writable}`)),
  ]);
  assertEquals(seen, ["map", "unmap", "map again", "writable false"]);
});

Deno.test("a request that cannot be sent is an error, and in nobody's way", async () => {
  using rig = new Rig();
  const client = await rig.connect();
  const region = await client.newRegion({ name: "ram", range: range(0, 0x4000), priority: 0 });
  const odd = (value: unknown) => value as string;
  for (const name of [() => {}, Symbol("x"), { get: () => {} }]) {
    const [, , after] = await Promise.allSettled([
      region.map(),
      assertRejects(() => client.newRegion({ name: odd(name), range: range(0x4000, 0x5000), priority: 0 }), Error),
      region.mapParams,
    ]);
    assertEquals(after.status, "fulfilled");
    await region.unmap();
  }
  // deno-lint-ignore no-explicit-any
  for (const params of [null, 5, { writable: "yes" }, { writable: 5n }] as any[]) {
    await region.map(params).catch(() => {});
    await region.unmap();
  }
  assertEquals(rig.regions.inspect().regions.map(({ name }) => name), ["ram"]);
});

Deno.test("errors arrive with their class, fields and causes", async () => {
  using rig = new Rig();
  const client = await rig.connect();
  const region = await client.newRegion({ name: "a", range: range(0, 0x4000), priority: 1 });
  const overlap = await assertRejects(
    () => client.newRegion({ name: "b", range: range(0x2000, 0x6000), priority: 1 }),
    RegionOverlapError,
    '"b"',
  );
  assertEquals([overlap.existing.name, overlap.new.name], ["a", "b"]);
  assertEquals(overlap.new.range, range(0x2000, 0x6000));
  await assertRejects(
    () => client.newRegion({ name: "c", range: range(0, 2 * LENGTH), priority: 1 }),
    RangeError,
    "reservation",
  );
  await assertRejects(() => client.newRegion({ name: "c", range: range(0, 0x1000), priority: 300 }), RangeError);

  await region.addMapping({ rangeInRegion: range(0, 0x4000), mappable: rig.file });
  await region.map();
  class Failing extends RecordingPartition {
    failure: OsError | undefined;
    override unmapRange(gone: MemoryRange): void {
      if (this.failure !== undefined) throw this.failure;
      super.unmapRange(gone);
    }
  }
  using vm = new Failing();
  using _attached = rig.regions.addPartition(vm);
  vm.failure = new OsError("KVM_SET_USER_MEMORY_REGION", 22, "as planned");
  const failed = await assertRejects(() => region.unmap(), MappingError);
  assertEquals(failed.range, range(0, 0x4000));
  assertInstanceOf(failed.cause, OsError);
  assertEquals([failed.cause.syscall, failed.cause.code], ["KVM_SET_USER_MEMORY_REGION", "EINVAL"]);
  vm.failure = undefined;
});

Deno.test("RegionManagerClient.batch is one request, all or nothing", async () => {
  using rig = new Rig();
  const client = await rig.connect();
  const [a, b] = await Promise.all([1, 2].map(async (priority) => {
    const region = await client.newRegion({ name: `p${priority}`, range: range(0, 0x4000), priority });
    await region.addMapping({ rangeInRegion: range(0, 0x4000), mappable: rig.file, fileOffset: priority * 0x4000 });
    return region;
  }));
  assert(a !== undefined && b !== undefined);
  let requests = 0;
  using _watch = internalsOf(rig.regions).watch(() => requests++);
  await client.batch(() => {
    void a.map();
    void b.map({ writable: false });
  });
  assertEquals([requests, (await b.mapParams)?.writable], [1, false]);

  let made: Promise<unknown> = Promise.resolve();
  await assertRejects(
    () =>
      client.batch(() => {
        void b.unmap();
        made = client.newRegion({ name: "x", range: range(0x2000, 0x8000), priority: 1 });
      }),
    RegionOverlapError,
  );
  await assertRejects(() => made, RegionOverlapError);
  assert(await b.mapParams !== null);
  await assertRejects(
    () =>
      client.batch(() => {
        void b.unmap();
        throw new RangeError("never mind");
      }),
    RangeError,
    "never mind",
  );
  assert(await b.mapParams !== null);
});

Deno.test("a client's files are shared by reference count, whatever the number of mappings", async () => {
  using rig = new Rig();
  const client = await rig.connect();
  const region = await client.newRegion({ name: "ram", range: range(0, LENGTH), priority: 0 });
  const before = openFds();
  const file = Mappable.memfd("mine", LENGTH);
  for (let at = 0; at < LENGTH; at += 0x2000) {
    await region.addMapping({ rangeInRegion: range(at, at + 0x1000), mappable: file, fileOffset: at });
  }
  assertEquals(openFds() - before, 2, "the client's and the manager's");
  await region.map();
  file[Symbol.dispose]();
  await tick();
  assertEquals(openFds() - before, 1, "the mappings keep it");
  client.memory.writeUint32(0x2000, 5);
  await region.removeMappings(range(0, LENGTH));
  assertEquals(openFds() - before, 0);
});

Deno.test("what the owner lends is the client's as long as it lives, and leaks nothing", async () => {
  using rig = new Rig();
  const client = await rig.connect();
  const region = await client.newRegion({ name: "ram", range: range(0, 0x8000), priority: 0 });
  const before = openFds();
  const file = await client.memfd("lent", 0x8000);
  assertEquals(openFds() - before, 1);
  assertEquals([file.size, file.writable, file.pageSize], [0x8000, true, 0x1000]);
  file.write(0x10, new Uint8Array([1, 2, 3]));
  await region.addMapping({ rangeInRegion: range(0, 0x8000), mappable: file });
  await region.map();
  assertEquals(client.memory.readUint8(0x12), 3);
  const again = await client.open(`/proc/self/fd/${file.fd}`);
  assertEquals([again.size, again.writable], [0x8000, false]);
  await assertRejects(() => client.open("/nowhere"), OsError, "ENOENT");
  await assertRejects(() => client.memfd("lent", 5), RangeError);

  const clone = file.clone();
  file[Symbol.dispose]();
  clone[Symbol.dispose]();
  await tick();
  assertEquals(openFds() - before, 2, "the mapping's, and what was opened");
  client[Symbol.dispose]();
  await tick();
  assertEquals(openFds() - before, 0);
  assertThrows(() => again.size, DisposedError);
});

Deno.test("disposing a client removes its regions, once nobody holds a lock on them", async () => {
  using rig = new Rig();
  const client = await rig.connect();
  for (const [name, at] of [["one", 0], ["two", 0x8000]] as const) {
    const region = await client.newRegion({ name, range: MemoryRange.of(at, 0x4000), priority: 0 });
    await region.addMapping({ rangeInRegion: range(0, 0x4000), mappable: rig.file, fileOffset: at });
    await region.map();
  }
  const own = client.memory.lock(range(0, 0x1000));
  const foreign = rig.regions.memory.lock(range(0x8000, 0x9000));
  client[Symbol.dispose]();
  client[Symbol.dispose]();
  assertEquals(own.bytes.length, 0);
  assert(client.disposed);
  await tick();
  assertEquals(rig.regions.inspect().regions.map(({ name }) => name), ["two"]);
  foreign[Symbol.dispose]();
  await tick();
  assertEquals(rig.regions.inspect().regions, []);
  assertThrows(() => client.memory.readUint8(0), DisposedError);
  await assertRejects(() => client.newRegion({ name: "x", range: range(0, 0x1000), priority: 0 }), DisposedError);
  assertThrows(() => client.fork(), DisposedError);
});

Deno.test("a client that is served no longer knows it, and its regions are gone", async () => {
  using rig = new Rig();
  const { port1, port2 } = new MessageChannel();
  const served = rig.regions.serve(port1);
  using client = await RegionManagerClient.connect(port2);
  const region = await client.newRegion({ name: "ram", range: range(0, 0x4000), priority: 0 });
  await region.addMapping({ rangeInRegion: range(0, 0x4000), mappable: rig.file });
  await region.map();
  const locked = client.memory.lock(range(0, 0x1000));
  served[Symbol.dispose]();
  assert(client.disposed);
  assertThrows(() => client.memory.readUint8(0), DisposedError);
  await assertRejects(() => region.unmap(), DisposedError);
  // The client is told, and lets go of its locks.
  await tick();
  await tick();
  assertEquals([locked.bytes.length, rig.regions.inspect().regions, rig.regions.inspect().locks], [0, [], []]);
});

Deno.test("a manager that is disposed lets its clients keep what they have locked, and nothing else", async () => {
  const va = VaMapper.reserve(LENGTH);
  const regions = new RegionManager(va);
  using file = Mappable.memfd("ram", LENGTH);
  const { port1, port2 } = new MessageChannel();
  regions.serve(port1);
  using client = await RegionManagerClient.connect(port2);
  const region = regions.newRegion({ name: "ram", range: range(0, LENGTH), priority: 0 });
  region.addMapping({ rangeInRegion: range(0, LENGTH), mappable: file });
  region.map();
  const locked = client.memory.lock(range(0x1000, 0x2000), { write: true });
  regions[Symbol.dispose]();
  va[Symbol.dispose]();
  locked.bytes[0] = 42;
  const back = new Uint8Array(1);
  file.read(0x1000, back);
  assertEquals(back[0], 42);
  assertThrows(() => client.memory.readUint8(0x1000), DisposedError, "The region manager");
  locked[Symbol.dispose]();
  assertEquals(locked.bytes.length, 0);
  await tick();
  assertThrows(() => regions.serve(new MessageChannel().port1), DisposedError);
});

Deno.test("RegionManagerClient.memory reads, writes and refuses like the manager's own", async () => {
  using rig = new Rig();
  const client = await rig.connect();
  const ram = rig.regions.newRegion({ name: "ram", range: range(0, 0x8000), priority: 0 });
  ram.addMapping({ rangeInRegion: range(0, 0x4000), mappable: rig.file });
  ram.addMapping({ rangeInRegion: range(0x4000, 0x5000), mappable: "private" });
  ram.addMapping({ rangeInRegion: range(0x5000, 0x6000), mappable: rig.file, fileOffset: 0x8000, writable: false });
  using open = Mappable.memfd("open", 0x2000, { seal: false });
  ram.addMapping({ rangeInRegion: range(0x6000, 0x8000), mappable: open });
  ram.map();
  const [mine, theirs] = [client.memory, rig.regions.memory];
  assertEquals(mine.length, LENGTH);
  mine.writeUint32(0x3ffe, 0x1234_5678);
  assertEquals(theirs.readUint32(0x3ffe), 0x1234_5678);
  theirs.writeBigUint64(0x6ffc, 0x1122_3344_5566_7788n);
  assertEquals(mine.readBigUint64(0x6ffc), 0x1122_3344_5566_7788n);
  mine.write(0x10, new Uint8Array([1, 2, 3]));
  mine.fill(0x13, 2, 9);
  mine.writeUint8(0x15, 7);
  mine.writeUint16(0x16, 0x0202);
  mine.writeBigUint64(0x18, 5n);
  assertEquals([...theirs.read(0x10, 9)], [1, 2, 3, 9, 9, 7, 2, 2, 5]);
  const into = new Uint8Array(2);
  mine.readInto(0x12, into);
  assertEquals([...into, mine.readUint8(0x15), mine.readUint16(0x16)], [3, 9, 7, 0x0202]);
  assertEquals(mine.compareExchangeUint32(0x18, 5, 6), 5);
  assertEquals(theirs.readUint32(0x18), 6);

  for (
    const [act, kind] of [
      [() => mine.readUint32(0x8000), "not-mapped"],
      [() => mine.writeUint32(0x5000, 1), "read-only"],
      [() => mine.readUint32(LENGTH), "out-of-range"],
      [() => mine.write(0x4fff, new Uint8Array(2)), "read-only"],
    ] as const
  ) {
    const error = assertThrows(act, Error);
    assertEquals([error.name, (error as { kind?: string }).kind], ["GuestMemoryError", kind]);
  }
  assertThrows(() => mine.lock(range(0x6000, 0x7000)), MappingError, "truncate");
  using readOnly = mine.lock(range(0x5000, 0x6000));
  readOnly.bytes[0] = 99;
  assertEquals(theirs.readUint8(0x5000), 0, "the store went to a copy");
  ram.map({ writable: false });
  assertThrows(() => mine.writeUint8(0, 1), Error, "read-only");
});

Deno.test("locks of clients count, and are shown", async () => {
  using rig = new Rig();
  const client = await rig.connect();
  const ram = rig.regions.newRegion({ name: "ram", range: range(0, 0x8000), priority: 0 });
  ram.addMapping({ rangeInRegion: range(0, 0x8000), mappable: rig.file });
  ram.map();
  const locks = Array.from({ length: 1000 }, (_, i) => client.memory.lock(MemoryRange.of(i % 4 * 0x1000, 0x1000)));
  assertEquals(rig.regions.inspect().locks.map(({ range, count }) => `${range} ${count}`), [
    "0x0-0x1000 250",
    "0x1000-0x2000 250",
    "0x2000-0x3000 250",
    "0x3000-0x4000 250",
  ]);
  const error = assertThrows(() => ram.unmap(), MemoryLockedError);
  assertEquals(error.range, range(0, 0x1000));
  ram.removeMappings(range(0x4000, 0x8000));
  for (const locked of locks.slice(1)) locked[Symbol.dispose]();
  assertEquals(rig.regions.inspect().locks, [{ range: "0x0-0x1000", count: 1 }]);
  locks[0]?.[Symbol.dispose]();
  ram.unmap();
});

Deno.test("teardown waits for the locks of clients, and clients get no new ones", async () => {
  using rig = new Rig();
  const client = await rig.connect();
  const ram = rig.regions.newRegion({ name: "ram", range: range(0, 0x8000), priority: 0 });
  ram.addMapping({ rangeInRegion: range(0, 0x8000), mappable: rig.file });
  ram.map();
  const locked = client.memory.lock(range(0, 0x1000));
  const stop = new AbortController();
  const stopped = ram.teardown({ signal: stop.signal });
  assertThrows(() => client.memory.lock(range(0x4000, 0x5000)), DisposedError, "torn down");
  stop.abort(new RangeError("changed my mind"));
  await assertRejects(() => stopped, RangeError, "changed my mind");
  client.memory.lock(range(0x4000, 0x5000))[Symbol.dispose]();

  let isDown = false;
  const down = ram.teardown().then(() => isDown = true);
  await tick();
  assertEquals(isDown, false);
  locked[Symbol.dispose]();
  await down;
  assertEquals(rig.regions.inspect().regions, []);
});

Deno.test("ClientRegionHandle.teardown waits, can be aborted, and keeps the signal's reason", async () => {
  using rig = new Rig();
  const client = await rig.connect();
  const region = await client.newRegion({ name: "ram", range: range(0, 0x8000), priority: 0 });
  await region.addMapping({ rangeInRegion: range(0, 0x8000), mappable: rig.file });
  await region.map();
  const locked = rig.regions.memory.lock(range(0, 0x1000));
  await assertRejects(() => region.remove(), MemoryLockedError);
  const stop = new AbortController();
  const reason = new RangeError("changed my mind");
  const stopped = region.teardown({ signal: stop.signal });
  setTimeout(() => stop.abort(reason), 5);
  assertEquals(await assertRejects(() => stopped, RangeError), reason);
  await assertRejects(() => region.teardown({ signal: stop.signal }), RangeError);
  const down = region.teardown();
  await tick();
  locked[Symbol.dispose]();
  await down;
  assertEquals(rig.regions.inspect().regions, []);
});

Deno.test("a signal that is none leaves no port open and no request behind that nobody waits for", async () => {
  using rig = new Rig();
  const none = { throwIfAborted() {}, addEventListener: 5 } as unknown as AbortSignal;
  const { port1, port2 } = new MessageChannel();
  rig.regions.serve(port1);
  await assertRejects(() => RegionManagerClient.connect(port2, { signal: none }), TypeError);
  using client = await RegionManagerClient.connect(port2); // The port has not been claimed.
  const region = await client.newRegion({ name: "ram", range: range(0, 0x8000), priority: 0 });
  await assertRejects(() => region.teardown({ signal: none }), TypeError);
  rig.regions[Symbol.dispose](); // Ends what is waited for.
});

Deno.test("bytes of a lock that were transferred away stay locked", async () => {
  using rig = new Rig();
  const client = await rig.connect();
  const ram = rig.regions.newRegion({ name: "ram", range: range(0, 0x8000), priority: 0 });
  ram.addMapping({ rangeInRegion: range(0, 0x8000), mappable: rig.file });
  ram.map();
  const locked = client.memory.lock(range(0, 0x1000));
  const moved = structuredClone(locked.bytes, { transfer: [locked.bytes.buffer] });
  assertEquals(moved.length, 0x1000);
  assertThrows(() => client[Symbol.dispose](), MembackingError, "1 locks");
  assertThrows(() => ram.unmap(), MemoryLockedError);
});

Deno.test("an access from a callback of the manager is refused, not deadlocked", async () => {
  const clients: RegionManagerClient[] = [];
  let error: unknown;
  using rig = new Rig({
    logger: {
      debug: () => {
        try {
          clients[0]?.memory.readUint8(0);
        } catch (thrown) {
          error = thrown;
        }
      },
      info() {},
      warn() {},
      error() {},
    },
  });
  const client = await rig.connect();
  clients.push(client);
  const ram = rig.regions.newRegion({ name: "ram", range: range(0, 0x1000), priority: 0 });
  ram.addMapping({ rangeInRegion: range(0, 0x1000), mappable: rig.file });
  ram.map();
  assertInstanceOf(error, ReentrancyError);
  assertEquals(client.memory.readUint8(0), 0);
});

Deno.test("a manager over recording targets serves clients, but has no memory to look at", async () => {
  using regions = new RegionManager(new RecordingVa<Mappable>(LENGTH));
  const { port1, port2 } = new MessageChannel();
  regions.serve(port1);
  using client = await RegionManagerClient.connect(port2);
  const region = await client.newRegion({ name: "ram", range: range(0, 0x1000), priority: 0 });
  await region.map();
  assertThrows(() => client.memory, MembackingError, "no memory");
});

Deno.test("connecting where nobody serves can be given up; a thread cannot wait for itself", async () => {
  const { port2 } = new MessageChannel();
  await assertRejects(() => RegionManagerClient.connect(port2, { signal: AbortSignal.timeout(5) }), DOMException);
  const lonely = new MessageChannel();
  const error = await assertRejects(() => SyncRegionManagerClient.connect(lonely.port2, { timeout: 5 }), DOMException);
  assertEquals(error.name, "TimeoutError");
  await assertRejects(() => SyncRegionManagerClient.connect(lonely.port2, { timeout: 0 }), RangeError);

  using rig = new Rig();
  const { port1, port2: mine } = new MessageChannel();
  rig.regions.serve(port1);
  await assertRejects(() => SyncRegionManagerClient.connect(mine), TypeError, "cannot wait for itself");
  // deno-lint-ignore no-explicit-any
  assertThrows(() => rig.regions.serve({} as any), TypeError);
});

Deno.test("a forked client is a client of its own", async () => {
  using rig = new Rig();
  const client = await rig.connect();
  using fork = await RegionManagerClient.connect(client.fork());
  const region = await fork.newRegion({ name: "forked", range: range(0, 0x1000), priority: 0 });
  await (await client.newRegion({ name: "first", range: range(0x1000, 0x2000), priority: 0 })).map();
  client[Symbol.dispose]();
  await tick();
  await region.map();
  assertEquals(rig.regions.inspect().regions.map(({ name }) => name), ["forked"]);
});

Deno.test("clients in other threads see copy-on-write memory as it is, whatever its file says, and lock it", async () => {
  using rig = new Rig();
  const client = await rig.connect();
  const ram = rig.regions.newRegion({ name: "ram", range: range(0, 0x2000), priority: 0 });
  ram.addMapping({ rangeInRegion: range(0, 0x2000), mappable: rig.file, copyOnWrite: true });
  ram.map();
  rig.regions.memory.writeUint8(0, 5);
  client.memory.writeUint8(1, 6);
  assertEquals([...client.memory.read(0, 2)], [5, 6]);
  assertEquals([...rig.regions.memory.read(0, 2)], [5, 6]);
  const bytes = new Uint8Array(2);
  rig.file.read(0, bytes);
  assertEquals([...bytes], [0, 0]);
  ram.map({ writable: false });
  using locked = client.memory.lock(range(0, 0x1000));
  assertEquals([...locked.bytes.subarray(0, 2)], [5, 6]);
});

Deno.test("RegionManagerClient.batch refuses what is not synchronous, and makes nothing of it", async () => {
  using rig = new Rig();
  const client = await rig.connect();
  const late = async () => {
    await client.newRegion({ name: "x", range: range(0, 0x1000), priority: 0 }).catch(() => {});
  };
  // @ts-expect-error: a promise is no result of a batch
  await assertRejects(() => client.batch(late), TypeError, "synchronously");
  assertEquals([await client.batch(() => 5), rig.regions.inspect().regions], [5, []]);
});

Deno.test("a file that is shown again over itself is read by clients when its first handle is closed", async () => {
  using rig = new Rig();
  const client = await rig.connect();
  const ram = rig.regions.newRegion({ name: "ram", range: range(0, 0x2000), priority: 0 });
  ram.map();
  for (let round = 0; round < 3; round++) {
    using file = Mappable.memfd("open", 0x2000, { seal: false });
    using again = file.clone();
    for (const mappable of [file, again, Mappable.fromFd(file.fd)]) {
      mappable.write(0, new Uint8Array([round + 1]));
      ram.addMapping({ rangeInRegion: range(0, 0x2000), mappable });
      mappable[Symbol.dispose]();
      assertEquals(client.memory.readUint8(0), round + 1);
    }
    ram.removeMappings(range(0x1000, 0x2000));
    assertEquals(client.memory.readUint8(0), round + 1);
  }
});

Deno.test("every access of a client holds changes off", () => {
  const holding = new Set(Object.getOwnPropertyNames(ClientMemory.prototype));
  // What asks nothing of the map, or is made of what is held by itself.
  const others = ["constructor", "invalidate", "length", "lockAll", "find", "pieces"];
  const missing = Object.getOwnPropertyNames(GuestMemory.prototype).concat(
    Object.getOwnPropertyNames(Object.getPrototypeOf(GuestMemory.prototype)),
  ).filter((name) => !holding.has(name) && !others.includes(name) && !(name in Object.prototype));
  assertEquals(missing, []);
});
