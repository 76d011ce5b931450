import { assert, assertEquals, assertThrows } from "@std/assert";
import {
  Mappable,
  MappingError,
  MemoryLockedError,
  MemoryRange,
  type RegionHandle,
  RegionManager,
  VaMapper,
} from "membacking";
import { fileOf } from "../../ffi/files/mappable.ts";
import { openFds } from "../support/proc.ts";
import { HUGE_PAGE, hugePageTest } from "../support/require.ts";
import { RemoteProcess } from "./remote_process.ts";
import { remoteError } from "./remote_error.ts";
import { until } from "./runner.ts";

const LENGTH = 0x10_0000;

/** A manager with some memory. */
class Rig implements Disposable {
  readonly #stack = new DisposableStack();
  readonly va = this.#stack.use(VaMapper.reserve(LENGTH));
  readonly warnings: unknown[] = [];
  readonly regions: RegionManager;
  readonly file = this.#stack.use(Mappable.memfd("rig", LENGTH));
  readonly ram: RegionHandle;

  constructor() {
    const quiet = () => {};
    const warn = (...args: unknown[]) => void this.warnings.push(args);
    this.regions = this.#stack.use(
      new RegionManager(this.va, { logger: { debug: quiet, info: quiet, warn, error: warn } }),
    );
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

Deno.test("ProcessClient changes memory that everybody sees, by files of either side", async () => {
  using rig = new Rig();
  const before = openFds();
  {
    await using remote = await RemoteProcess.start(rig.regions);
    await remote.run(`${NEW_REGION} client.memory.writeUint32(at + 4, 7);`, { at: 0x10_000 });
    assertEquals(rig.regions.memory.readUint32(0x10_004), 7);
    rig.regions.memory.writeUint32(0x10_008, 8);
    assertEquals(await remote.run("return client.memory.readUint32(0x10_008);"), 8);

    await remote.run(`
      using own = Mappable.memfd("own", 0x2000);
      own.write(0x1000, new Uint8Array([1, 2, 3]));
      await kept.region.addMapping({ rangeInRegion: new MemoryRange(0, 0x1000), mappable: own, fileOffset: 0x1000 });
    `);
    assertEquals([...rig.regions.memory.read(0x10_000, 3)], [1, 2, 3]);
    assertEquals(await remote.run("return [...client.memory.read(0x10_000, 3)];"), [1, 2, 3]);

    await remote.run("await kept.region.unmap();");
    const error = await remoteError(remote.run("client.memory.readUint32(0x10_004);"));
    assertEquals([error.className, error.fields.kind], ["GuestMemoryError", "not-mapped"]);
    assertEquals(await remote.run("return [await kept.region.mapParams, String(await kept.region.visible)];"), [
      null,
      "",
    ]);
    assertEquals(await remote.run("return (await client.inspect()).regions.length;"), 2);
  }
  await until(() => rig.others.length === 0, "the region is gone");
  await until(() => openFds() <= before, `the descriptors are closed: ${openFds()} of ${before}`);
});

Deno.test("what the owner takes away or replaces is gone in another process when the request returns", async () => {
  using rig = new Rig();
  await using remote = await RemoteProcess.start(rig.regions);
  using other = Mappable.memfd("other", LENGTH);
  for (let round = 0; round < 20; round++) {
    const mappable = round % 2 === 0 ? other : rig.file;
    mappable.write(0x1000, new Uint8Array([round + 1]));
    rig.ram.addMapping({ rangeInRegion: new MemoryRange(0, 0x8000), mappable });
    assertEquals(await remote.run("return client.memory.readUint8(0x1000);"), round + 1);
  }
  rig.ram.map({ writable: false });
  const refused = await remoteError(remote.run("client.memory.writeUint8(0, 1);"));
  assertEquals(refused.fields.kind, "read-only");
  rig.ram.unmap();
  assertEquals((await remoteError(remote.run("client.memory.readUint8(0);"))).fields.kind, "not-mapped");
  // It lets go of the files as well, although nobody accesses them any more.
  const mapped = () =>
    Deno.readTextFileSync(`/proc/${remote.child.pid}/maps`).split("\n").filter((line) =>
      /memfd:(rig|other)/.test(line)
    );
  await until(() => mapped().length === 0, "nothing is mapped");
});

Deno.test("private memory is not mapped in another process, a file that may be truncated is read by system calls", async () => {
  using rig = new Rig();
  using open = Mappable.memfd("open", 0x1000, { seal: false });
  open.write(5, new Uint8Array([9]));
  rig.ram.addMapping({ rangeInRegion: new MemoryRange(0, 0x1000), mappable: "private" });
  rig.ram.addMapping({ rangeInRegion: new MemoryRange(0x1000, 0x2000), mappable: open });
  rig.ram.addMapping({ rangeInRegion: new MemoryRange(0x2000, 0x3000), mappable: rig.file, copyOnWrite: true });
  await using remote = await RemoteProcess.start(rig.regions);
  assertEquals((await remoteError(remote.run("client.memory.readUint8(0);"))).fields.kind, "not-mapped");
  assertEquals((await remoteError(remote.run("client.memory.readUint8(0x2000);"))).fields.kind, "not-mapped");
  assertEquals(await remote.run("return client.memory.readUint8(0x1005);"), 9);
  await remote.run(`
    kept.region = await client.newRegion({ name: "cow", range: MemoryRange.of(0x1_0000, 0x1000), priority: 1 });
    const file = await client.memfd("cow", 0x1000);
    file.write(0, new Uint8Array([5]));
    await kept.region.addMapping({ rangeInRegion: new MemoryRange(0, 0x1000), mappable: file, copyOnWrite: true });
    await kept.region.map();
  `);
  assertEquals(rig.regions.memory.readUint8(0x1_0000), 5);
  const locked = await remoteError(remote.run("client.memory.lock(new MemoryRange(0x1000, 0x2000));"));
  assertEquals(locked.className, "MappingError");
});

Deno.test("ProcessClient gets the errors of the manager, as they are there", async () => {
  using rig = new Rig();
  await using remote = await RemoteProcess.start(rig.regions);
  const overlap = await remoteError(
    remote.run(`await client.newRegion({ name: "b", range: new MemoryRange(0x4000, 0xc000), priority: 0 });`),
  );
  assertEquals(overlap.className, "RegionOverlapError");
  assertEquals((overlap.fields.existing as { name: string }).name, "ram");
  const priority = await remoteError(
    remote.run(`await client.newRegion({ name: "b", range: new MemoryRange(0, 0x1000), priority: NaN });`),
  );
  assertEquals(priority.className, "RangeError");
  const size = await remoteError(remote.run(`await client.memfd("b", 5n);`));
  assertEquals([size.className, size.message], ["TypeError", '"size" is a bigint, which a request cannot carry']);
  assertEquals((await remoteError(remote.run(`await client.open("/nowhere");`))).fields.code, "ENOENT");
  await remote.run(NEW_REGION, { at: 0x10_000 });
  using _lock = rig.regions.memory.lock(new MemoryRange(0x11_000, 0x12_000));
  assertEquals((await remoteError(remote.run("await kept.region.unmap();"))).className, "MemoryLockedError");
  const failed = await remoteError(remote.run(`
    await client.batch(() => { void kept.region.map({ writable: false }); throw new RangeError("never mind"); });
  `));
  assertEquals(failed.message, "never mind");
});

Deno.test("the locks of another process count, and go with it", async () => {
  using rig = new Rig();
  await using remote = await RemoteProcess.start(rig.regions);
  await remote.run("kept.lock = client.memory.lock(new MemoryRange(0x1000, 0x3000), { write: true });");
  await remote.run("kept.lock.bytes[5] = 99;");
  assertEquals(rig.regions.memory.readUint8(0x1005), 99);
  const error = assertThrows(() => rig.ram.unmap(), MemoryLockedError);
  assertEquals(String(error.range), "0x1000-0x3000");
  let isDown = false;
  const stop = new AbortController();
  const down = rig.ram.teardown({ signal: stop.signal }).then(() => isDown = true, () => {});
  assertEquals(
    (await remoteError(remote.run("client.memory.lock(new MemoryRange(0, 0x1000));"))).className,
    "DisposedError",
  );
  assertEquals(isDown, false);
  stop.abort();
  await down;
  await remote.run("kept.lock[Symbol.dispose]();");
  rig.ram.unmap();
  rig.ram.map();
  await remote.run("kept.lock = client.memory.lock(new MemoryRange(0x1000, 0x3000), { write: true });");
  assertThrows(() => rig.ram.unmap(), MemoryLockedError);
  await remote.kill();
  await until(() => rig.regions.inspect().locks.length === 0, "the locks are gone");
  rig.ram.unmap();
});

Deno.test("what another process writes is tracked, by access and by lock, whichever came first", async () => {
  using rig = new Rig();
  await using before = await RemoteProcess.start(rig.regions);
  await before.run("client.memory.writeUint8(0x7000, 1);");
  using tracker = rig.regions.trackDirty();
  await using after = await RemoteProcess.start(rig.regions);
  assertEquals([...tracker.take()].map(String), []);
  await before.run("client.memory.writeUint8(0x1000, 1); client.memory.readUint8(0x6000);");
  await after.run("client.memory.fill(0x3000, 0x1001, 1);");
  assertEquals([...tracker.take()].map(String), ["0x1000-0x2000", "0x3000-0x5000"]);
  await after.run("kept.lock = client.memory.lock(new MemoryRange(0x5000, 0x6000), { write: true });");
  assertEquals([...tracker.take()].map(String), ["0x5000-0x6000"]);
  await after.kill();
  await until(() => rig.regions.inspect().locks.length === 0, "the lock is gone");
  assertEquals([...tracker.take()].map(String), ["0x5000-0x6000"]);
  assertEquals([...tracker.take()].map(String), []);
});

Deno.test("a process outlives its client and connects again, and a client of it can be handed on", async () => {
  using rig = new Rig();
  await using remote = await RemoteProcess.start(rig.regions, { later: true });
  for (let round = 0; round < 5; round++) {
    await remote.run("await connect();");
    await remote.run(NEW_REGION, { at: 0x10_000 + round * 0x4000 });
    assertEquals(rig.others, ["theirs"]);
    await remote.run("client[Symbol.dispose]();");
    await until(() => rig.others.length === 0, "the region is gone");
    assertEquals((await remoteError(remote.run("client.memory.readUint8(0);"))).className, "DisposedError");
  }
  await remote.run("await connect();");
  assertEquals((await remoteError(remote.run("await connect();"))).className, "TypeError");
  // F_DUPFD: this process stands in for another one.
  await remote.run(`
    const other = await ProcessClient.connect(client.fork((fd) => sys.fcntl(fd, 0, 3)));
    client[Symbol.dispose]();
    other.memory.writeUint8(0, 5);
    await other.newRegion({ name: "handed on", range: MemoryRange.of(0x10_000, 0x1000), priority: 0 });
  `);
  assertEquals([rig.regions.memory.readUint8(0), rig.others], [5, ["handed on"]]);
  assertEquals(rig.warnings, []);
});

Deno.test("a process that is served no longer knows it and why, and lives on", async () => {
  for (const what of ["client", "manager"]) {
    using rig = new Rig();
    await using remote = await RemoteProcess.start(rig.regions);
    await remote.run(NEW_REGION, { at: 0x10_000 });
    await remote.run("kept.lock = client.memory.lock(MemoryRange.of(0x10_000, 0x1000));");
    if (what === "client") {
      remote.served[Symbol.dispose]();
      assertEquals([rig.others, rig.regions.inspect().locks], [[], []]);
    } else {
      rig.regions[Symbol.dispose]();
    }
    const why = what === "client" ? "is no longer served by its owner" : "The region manager has been disposed";
    for (const code of ["client.memory.readUint8(0);", "await client.inspect();", "await kept.region.unmap();"]) {
      const error = await remoteError(remote.run(code));
      assertEquals(
        [error.className, error.message.includes(why)],
        ["DisposedError", true],
        `${code}: ${error.message}`,
      );
    }
    assertEquals(await remote.run("return [client.disposed, kept.lock.bytes.length];"), [true, 0]);
  }
});

Deno.test("serveProcess refuses what is no start of a process, and leaves nothing behind", () => {
  using rig = new Rig();
  const before = openFds();
  assertThrows(() => rig.regions.serveProcess(() => Promise.resolve(1)), TypeError, "promise");
  assertThrows(() => rig.regions.serveProcess(() => 1, { deadline: NaN }), RangeError, "Deadline");
  assertThrows(
    () =>
      rig.regions.serveProcess(() => {
        throw new Error("no such program");
      }),
    Error,
    "no such program",
  );
  assertEquals(openFds(), before);
});

Deno.test("an owner that ends leaves its processes with a typed error, not waiting and not crashed", async () => {
  const owner = new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", "--no-check", new URL("./process_owner.ts", import.meta.url).href],
    cwd: new URL("../../", import.meta.url),
    stdout: "piped",
    stderr: "inherit",
    env: { NO_COLOR: "1" },
  }).spawn();
  // The child of the owner prints to the same pipe, and ends it.
  const text = await new Response(owner.stdout).text();
  const { signal } = await owner.status;
  assertEquals(signal, "SIGKILL");
  assertEquals(text.trim().split("\n"), [
    "pending: DisposedError: The owner of the region manager has ended",
    "memory: DisposedError: The owner of the region manager has ended",
    "request: DisposedError: The owner of the region manager has ended",
    "disposed: true",
  ]);
});

Deno.test("a process that is stopped in the middle of an access is cut off at its deadline, and knows it afterwards", async () => {
  // One file, shown so often that writing all of it takes long.
  const [PART, PARTS] = [2 ** 26, 32];
  using va = VaMapper.reserve(PART * PARTS + 0x1_0000);
  using regions = new RegionManager(va);
  using file = Mappable.memfd("ram", PART);
  using ram = regions.newRegion({ name: "ram", range: new MemoryRange(0, PART * PARTS), priority: 0 });
  for (let i = 0; i < PARTS; i++) ram.addMapping({ rangeInRegion: MemoryRange.of(i * PART, PART), mappable: file });
  ram.map();
  await using remote = await RemoteProcess.start(regions, { deadline: 300 });
  await remote.run(NEW_REGION, { at: PART * PARTS });
  await remote.run("kept.lock = client.memory.lock(MemoryRange.of(at, 0x1000));", { at: PART * PARTS });
  const filled = remote.run("kept.begun = true; client.memory.fill(0, length, 77);", { length: PART * PARTS });
  const probe = new Uint8Array(1);
  while (probe[0] !== 77) {
    file.read(0, probe);
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
  Deno.kill(remote.child.pid, "SIGSTOP");
  const start = performance.now();
  ram.unmap();
  assert(performance.now() - start >= 300, "it was waited for");
  ram.map();
  assert(performance.now() - start < 5000, "and once only");
  await until(() => regions.inspect().regions.length === 1, "its region is gone");
  assertEquals(regions.inspect().locks, []);
  Deno.kill(remote.child.pid, "SIGCONT");
  await filled;
  const error = await remoteError(remote.run("client.memory.readUint8(0);"));
  assertEquals(error.className, "DisposedError");
  assert(error.message.includes("cut off"), error.message);
});

Deno.test("a process that is stopped outside of an access is in nobody's way, and finds everything right", async () => {
  using rig = new Rig();
  await using remote = await RemoteProcess.start(rig.regions, { deadline: 60_000 });
  await remote.run("client.memory.readUint8(0);");
  Deno.kill(remote.child.pid, "SIGSTOP");
  const files = Array.from({ length: 600 }, (_, i) => {
    const file = Mappable.memfd(`file ${i}`, 0x1000);
    file.write(0, new Uint8Array([i % 256]));
    return file;
  });
  // More than a socket has room for, each with a file.
  for (const mappable of files) rig.ram.addMapping({ rangeInRegion: new MemoryRange(0, 0x1000), mappable });
  Deno.kill(remote.child.pid, "SIGCONT");
  assertEquals(await remote.run("return client.memory.readUint8(0);"), 599 % 256);
  for (const file of files) file[Symbol.dispose]();
});

hugePageTest("a process sees memory of huge pages, cut where the owner cuts it, and locks it", 4, async () => {
  using va = VaMapper.reserve(0x4000_0000);
  using regions = new RegionManager(va);
  using file = Mappable.memfd("huge", 4 * HUGE_PAGE, { hugepageSize: HUGE_PAGE, fixedSize: true });
  using open = Mappable.memfd("small", HUGE_PAGE);
  using ram = regions.newRegion({ name: "ram", range: MemoryRange.of(HUGE_PAGE, 4 * HUGE_PAGE), priority: 0 });
  ram.addMapping({ rangeInRegion: new MemoryRange(0, 4 * HUGE_PAGE), mappable: file });
  ram.map();
  for (let i = 0; i < 4; i++) regions.memory.writeUint32((i + 1) * HUGE_PAGE, i + 1);
  await using remote = await RemoteProcess.start(regions);
  const read = () =>
    remote.run(`return [1, 2, 3, 4].map((i) => client.memory.readUint32(i * huge));`, { huge: HUGE_PAGE });
  assertEquals(await read(), [1, 2, 3, 4]);
  // Small pages in the middle, and back.
  ram.addMapping({ rangeInRegion: MemoryRange.of(HUGE_PAGE, HUGE_PAGE), mappable: open });
  assertEquals(await read(), [1, 0, 3, 4]);
  ram.addMapping({ rangeInRegion: MemoryRange.of(HUGE_PAGE, HUGE_PAGE), mappable: file, fileOffset: 3 * HUGE_PAGE });
  assertEquals(await read(), [1, 4, 3, 4]);
  await remote.run(
    `
    using lock = client.memory.lock(MemoryRange.of(2 * huge + 0x1000, 0x1000), { write: true });
    lock.bytes[0] = 77;
  `,
    { huge: HUGE_PAGE },
  );
  assertEquals(regions.memory.readUint8(4 * HUGE_PAGE + 0x1000), 77);
});

hugePageTest(
  "huge pages that nobody vouches for are read by the kernel once another process can see them",
  1,
  async () => {
    using va = VaMapper.reserve(0x4000_0000);
    using regions = new RegionManager(va);
    using file = Mappable.memfd("huge", HUGE_PAGE, { hugepageSize: HUGE_PAGE });
    using ram = regions.newRegion({ name: "ram", range: new MemoryRange(0, HUGE_PAGE), priority: 0 });
    ram.addMapping({ rangeInRegion: new MemoryRange(0, HUGE_PAGE), mappable: file });
    ram.map();
    regions.memory.lock(new MemoryRange(0, 0x1000))[Symbol.dispose]();
    regions.memory.writeUint8(0, 5);
    await using remote = await RemoteProcess.start(regions);
    assertEquals(await remote.run("return client.memory.readUint8(0);"), 5);
    assertThrows(() => regions.memory.lock(new MemoryRange(0, 0x1000)), MappingError);
    const error = await remoteError(remote.run("client.memory.lock(new MemoryRange(0, 0x1000));"));
    assertEquals(error.className, "MappingError");
  },
);

Deno.test("a file that another process can see counts as handed out", async () => {
  using rig = new Rig();
  assert(!fileOf(rig.file).handedOut);
  await using remote = await RemoteProcess.start(rig.regions);
  await remote.run("client.memory.readUint8(0);");
  assert(fileOf(rig.file).handedOut);
});
