/** Files that nobody truncates: by a seal, by a promise, and what becomes of huge pages that others have too. */
import { assert, assertEquals, assertFalse, assertRejects, assertStringIncludes, assertThrows } from "@std/assert";
import {
  GuestMemoryError,
  GuestMemoryManager,
  Mappable,
  MappingError,
  MemoryLockedError,
  RegionManager,
  VaMapper,
} from "membacking";
import { RecordingDmaTarget } from "membacking/testing";
import { fileURLToPath } from "node:url";
import { libc } from "../../ffi/os/libc.ts";
import { FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE } from "../../ffi/os/mman.ts";
import { Remote } from "../clients/remote.ts";
import { RemoteProcess } from "../clients/remote_process.ts";
import { fileOf } from "../../ffi/files/mappable.ts";
import { HUGE_PAGE, hugePageTest } from "../support/require.ts";
import { PAGE, range } from "../support/units.ts";

const MIB = 2 ** 20;

function tempFile(length: number): { path: string } & Disposable {
  const path = Deno.makeTempFileSync();
  Deno.truncateSync(path, length);
  return { path, [Symbol.dispose]: () => Deno.removeSync(path) };
}

function showing(mappable: Mappable, length: number): RegionManager {
  const regions = new RegionManager(VaMapper.reserve(64 * MIB));
  const region = regions.newRegion({ name: "file", range: range(0, length), priority: 0 });
  region.addMapping({ rangeInRegion: range(0, length), mappable, writable: mappable.writable });
  region.map();
  return regions;
}

Deno.test("a file that its user vouches for is read in place, locked, and written through", () => {
  using disk = tempFile(2 * PAGE);
  using file = Mappable.open(disk.path, { write: true, fixedSize: true });
  using regions = showing(file, 2 * PAGE);
  const { memory } = regions;
  memory.writeUint32(PAGE - 2, 0x1234_5678);
  memory.storeUint32(0x10, 7);
  using lock = memory.lock(range(0, PAGE), { write: true });
  lock.bytes[0] = 9;
  const bytes = Deno.readFileSync(disk.path);
  assertEquals([bytes[0], bytes[0x10], bytes[PAGE - 2], bytes[PAGE + 1]], [9, 7, 0x78, 0x12]);
  assertEquals(memory.hostAddress(0, 1), regions.inspect().base);

  using fd = Mappable.fromFd(file.fd, { fixedSize: true });
  using others = showing(fd, 2 * PAGE);
  assertEquals(others.memory.loadUint32(0x10), 7);
  for (
    const open of [
      () => Mappable.open(disk.path, { fixedSize: 1 as never }),
      () => Mappable.open(disk.path, { write: "yes" as never }),
    ]
  ) {
    assertThrows(open, TypeError, "must be true or false");
  }
});

Deno.test("a promise that is broken ends the process, as its documentation says", () => {
  using disk = tempFile(2 * PAGE);
  const source = `
    import { Mappable, MemoryRange, RegionManager, VaMapper } from "membacking";
    using va = VaMapper.reserve(0x10000);
    using regions = new RegionManager(va);
    using file = Mappable.open("${disk.path}", { fixedSize: true });
    const region = regions.newRegion({ name: "file", range: new MemoryRange(0, 0x2000), priority: 0 });
    region.addMapping({ rangeInRegion: new MemoryRange(0, 0x2000), mappable: file, writable: false });
    region.map();
    console.log(regions.memory.readUint8(0x1000));
    Deno.truncateSync("${disk.path}", 0);
    console.log(regions.memory.readUint8(0x1000));
  `;
  const root = new URL("../../", import.meta.url);
  using script = tempFile(0);
  Deno.writeTextFileSync(script.path, source);
  const { stdout, signal } = new Deno.Command(Deno.execPath(), {
    args: [
      "run",
      "-A",
      "--no-check",
      "--quiet",
      "--ext=ts",
      `--config=${fileURLToPath(new URL("deno.json", root))}`,
      script.path,
    ],
    cwd: fileURLToPath(root),
    stderr: "null",
  }).outputSync();
  assertEquals([new TextDecoder().decode(stdout).trim(), signal], ["0", "SIGBUS"]);
});

hugePageTest("huge pages go by the kernel once their descriptor was handed out, and never under a lock", 1, () => {
  using memory = Mappable.memfd("huge", HUGE_PAGE, { hugepageSize: HUGE_PAGE });
  using regions = showing(memory, HUGE_PAGE);
  regions.memory.writeUint32(0, 7);
  assert(regions.memory.hostAddress(0, 4) > 0);
  {
    using _lock = regions.memory.lock(range(PAGE, 2 * PAGE));
    assertThrows(() => memory.fd, MemoryLockedError);
    assertFalse(fileOf(memory).truncatable);
  }
  const { fd } = memory;
  assert(fd > 0);
  assertEquals(regions.memory.readUint32(0), 7);
  const error = assertThrows(() => regions.memory.lock(range(0, PAGE)), MappingError);
  assertEquals(
    error.message,
    'This memory cannot be locked, since the descriptor of memfd "huge" was handed out, and whoever has it may punch ' +
      "holes into huge pages: make it with fixedSize: true if nobody will",
  );

  // Whoever has it punches a hole, and others take the page: what would be SIGBUS is an error. Pages that others put into
  // the pool meanwhile are taken too.
  using takers = new DisposableStack();
  const refused = (): unknown => {
    for (let taken = 0; taken < 64; taken++) {
      punch(fd, HUGE_PAGE);
      takers.use(Mappable.memfd("taker", HUGE_PAGE, { hugepageSize: HUGE_PAGE }));
      try {
        regions.memory.writeUint32(0, 1);
      } catch (error) {
        return error;
      }
    }
    return undefined;
  };
  const missing = refused();
  assert(missing instanceof GuestMemoryError);
  assertEquals(missing.kind, "not-mapped");
});

hugePageTest("huge pages that their user vouches for are locked though others have them", 1, () => {
  using memory = Mappable.memfd("huge", HUGE_PAGE, { hugepageSize: HUGE_PAGE, fixedSize: true });
  using regions = showing(memory, HUGE_PAGE);
  assert(memory.fd > 0);
  using lock = regions.memory.lock(range(0, PAGE), { write: true });
  lock.bytes[0] = 1;
  assertEquals(regions.memory.readUint8(0), 1);
});

hugePageTest("a DMA target that asks for the descriptor of locked huge pages fails its request", 1, () => {
  using memory = Mappable.memfd("huge", HUGE_PAGE, { hugepageSize: HUGE_PAGE });
  using regions = showing(memory, HUGE_PAGE);
  const asking = {
    mapDma: ({ mappable }: { mappable: Mappable | null }): undefined => void mappable?.fd,
    unmapDma: (): undefined => undefined,
  };
  {
    using _lock = regions.memory.lock(range(0, PAGE));
    const error = assertThrows(() => regions.addDmaTarget(asking), MappingError);
    assert(error.cause instanceof MemoryLockedError);
    using _other = regions.addDmaTarget(new RecordingDmaTarget());
  }
  using _attached = regions.addDmaTarget(asking);
  assertStringIncludes(assertThrows(() => regions.memory.lock(range(0, PAGE)), MappingError).message, "was handed out");
});

hugePageTest("clients are told when huge pages go by the kernel", 1, async () => {
  using guest = GuestMemoryManager.create({
    maxAddress: 64 * MIB,
    ram: [{ ranges: [range(0, HUGE_PAGE)], hugepageSize: HUGE_PAGE }],
  });
  await using remote = await Remote.start(guest.regions, { sync: true });
  await remote.run("kept.lock = client.memory.lock(new MemoryRange(0, 0x1000)); client.memory.writeUint8(0, 5)");
  assertThrows(() => guest.shareableRegions(), MemoryLockedError);
  await remote.run("kept.lock[Symbol.dispose]()");
  assertEquals(guest.shareableRegions().length, 1);
  assertEquals(await remote.run("return client.memory.readUint8(0)"), 5);
  const refused = await assertRejects(() => remote.run("client.memory.lock(new MemoryRange(0, 0x1000))"), Error);
  assertStringIncludes(refused.message, "cannot be locked");
});

hugePageTest("a process that is served has the descriptors, so huge pages go by the kernel then", 2, async () => {
  using guest = GuestMemoryManager.create({
    maxAddress: 64 * MIB,
    ram: [{ ranges: [range(0, HUGE_PAGE)], hugepageSize: HUGE_PAGE }],
  });
  guest.memory.writeUint8(0, 5);
  guest.memory.lock(range(0, PAGE))[Symbol.dispose]();
  await using remote = await RemoteProcess.start(guest.regions);
  assertEquals(await remote.run("return client.memory.readUint8(0)"), 5);
  assertThrows(() => guest.memory.lock(range(0, PAGE)), MappingError, "was handed out");
  // So does what is mapped while it is served.
  using _dimm = guest.addRam({ ranges: [range(HUGE_PAGE, 2 * HUGE_PAGE)], hugepageSize: HUGE_PAGE });
  assertThrows(() => guest.memory.lock(range(HUGE_PAGE, HUGE_PAGE + PAGE)), MappingError, "was handed out");
});

function punch(fd: number, length: number): void {
  const result = libc().sys.fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, 0n, BigInt(length));
  assertEquals(result, 0);
}
