import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import { type DeviceMemory, Mappable, MemoryRange } from "membacking";
import { ProtocolFeature, VhostUserError } from "membacking/vhost-user";
import { encodeShmem, type ShmemRequest } from "../../src/vhost_user/message.ts";
import { BackendRequest } from "../../src/vhost_user/protocol.ts";
import { descriptors, descriptorsAre, Rig } from "./rig.ts";
import type { BackendAsk } from "./script.ts";
import { EVERYTHING, ScriptedBackend, without } from "./scripted_backend.ts";

const AT = 0x4000_0000;
const LENGTH = 0x10_0000;

/** A window of 1 MiB in the guest, and a file that a back end maps there. */
async function windowed(): Promise<
  { rig: Rig; dax: DeviceMemory; file: Mappable; refusals: string[] } & AsyncDisposable
> {
  const refusals: string[] = [];
  const onRefusal = (request: string, error: unknown) => refusals.push(`${request}: ${(error as Error).message}`);
  const rig = await Rig.make(EVERYTHING, { onRefusal });
  const dax = rig.guest.newDeviceMemory("dax", LENGTH, { holes: "fault" });
  dax.mapToGuest(AT, true);
  rig.frontend.provideShmem(0, dax);
  const file = Mappable.memfd("file", 0x8000);
  file.write(0x2000, new Uint8Array([1, 2, 3]));
  return {
    ...{ rig, dax, file, refusals },
    async [Symbol.asyncDispose]() {
      await rig[Symbol.asyncDispose]();
      file[Symbol.dispose]();
    },
  };
}

const map = (file: { fd: number } | null, request: Partial<ShmemRequest> = {}): BackendAsk => ({
  request: BackendRequest.SHMEM_MAP,
  payload: encodeShmem({ shmid: 0, fdOffset: 0, shmOffset: 0, length: 0x1000, writable: true, ...request }),
  fds: file === null ? [] : [file.fd],
  needReply: true,
});
const unmap = (shmOffset: number, length: number): BackendAsk => ({
  ...map(null, { shmOffset, length }),
  request: BackendRequest.SHMEM_UNMAP,
});

Deno.test("a back end maps files into a DAX window and takes them away, in the order it asks for", async () => {
  await using all = await windowed();
  const { rig, file } = all;
  await rig.backend.ask(
    map(file, { fdOffset: 0x2000, shmOffset: 0x5000, length: 0x2000 }),
    map(file, { shmOffset: 0x7000 }),
    unmap(0x7000, 0x1000),
    map(file, { fdOffset: 0x1000, shmOffset: 0x7000 }),
  );
  assertEquals(await rig.backend.answers(4), [0n, 0n, 0n, 0n]);
  assertEquals([...rig.guest.memory.read(AT + 0x5000, 3)], [1, 2, 3]);
  rig.guest.memory.writeUint8(AT + 0x7000, 7);
  const bytes = new Uint8Array(1);
  file.read(0x1000, bytes);
  assertEquals(bytes[0], 7);
  // DAX windows are no RAM that a back end is given.
  assertEquals(await rig.held(), ["0x0-0x1000000"]);
});

Deno.test("what is mapped for reading only cannot be written", async () => {
  await using all = await windowed();
  const { rig, file } = all;
  await rig.backend.ask(map(file, { writable: false }));
  await rig.backend.answers(1);
  assertEquals(rig.guest.memory.readUint8(AT), 0);
  assertThrows(() => rig.guest.memory.writeUint8(AT, 1));
});

Deno.test("the specification's strictness: nothing over a mapping, and only whole mappings are taken away", async () => {
  await using all = await windowed();
  const { rig, dax, file, refusals } = all;
  await rig.backend.ask(
    map(file, { shmOffset: 0x2000, length: 0x2000 }),
    map(file, { shmOffset: 0x3000 }),
    map(file, { shmOffset: 0x1000, length: 0x2000 }),
    map(file, { shmOffset: 0x2000, length: 0x2000 }),
    unmap(0x2000, 0x1000),
    unmap(0x3000, 0x1000),
    unmap(0x1000, 0x4000),
    unmap(0x8000, 0x1000),
    unmap(0x2000, 0x2000),
  );
  assertEquals(await rig.backend.answers(9), [0n, 1n, 1n, 1n, 1n, 1n, 1n, 1n, 0n]);
  assertEquals(refusals.length, 7);
  assertEquals(dax.inspect().mappings, []);
});

Deno.test("a length that ends within a page means all of it, as it does to mmap, for mapping and taking away", async () => {
  await using all = await windowed();
  const { rig, dax, file } = all;
  await rig.backend.ask(
    map(file, { fdOffset: 0x2000, shmOffset: 0x1000, length: 0x1800 }),
    map(file, { shmOffset: 0x2000, length: 0x800 }),
    map(file, { shmOffset: 0x3000, length: 1 }),
  );
  assertEquals(await rig.backend.answers(3), [0n, 1n, 0n]);
  assertEquals(dax.inspect().mappings.map(({ range }) => range), ["0x1000-0x3000", "0x3000-0x4000"]);
  await rig.backend.ask(unmap(0x1000, 0x1800), unmap(0x3000, 0x1000));
  assertEquals((await rig.backend.answers(5)).slice(3), [0n, 0n]);
  assertEquals(dax.inspect().mappings, []);
});

Deno.test("bounds, numbers and kinds of descriptors are checked", async () => {
  await using all = await windowed();
  const { rig, dax, file } = all;
  const path = Deno.makeTempDirSync();
  using directory = { fd: openDirectory(path), [Symbol.dispose]() {} };
  using readOnly = (Deno.writeFileSync(`${path}/file`, new Uint8Array(0x1000)), Mappable.open(`${path}/file`));
  const wrong: BackendAsk[] = [
    map(file, { shmid: 1 }),
    map(file, { shmOffset: LENGTH }),
    map(file, { shmOffset: LENGTH - 0x1000, length: 0x2000 }),
    map(file, { shmOffset: 0xffff_ffff_f000 }),
    map(file, { length: 0xffff_ffff_f000 }),
    map(file, { length: 0 }),
    map(file, { shmOffset: 0x800 }),
    map(file, { fdOffset: 0x10 }),
    map(file, { fdOffset: 0x8000 }),
    map(null),
    { ...map(file), fds: [file.fd, file.fd] },
    map(directory),
    map({ fd: rig.kick.fd }),
    map(readOnly, { writable: true }),
    { ...map(file), payload: new Uint8Array(39) },
    { ...map(file), payload: map(file).payload.map((byte, i) => i >= 32 ? 0xff : byte) },
    { ...map(file), request: BackendRequest.VRING_HOST_NOTIFIER_MSG },
    { ...map(file), request: 99 },
  ];
  const before = descriptors();
  await rig.backend.ask(...wrong);
  assertEquals(await rig.backend.answers(wrong.length), wrong.map(() => 1n));
  assertEquals(dax.inspect().mappings, []);
  await descriptorsAre(before);
  await rig.backend.ask(map(readOnly, { writable: false }));
  assertEquals((await rig.backend.answers(wrong.length + 1)).at(-1), 0n);
});

/** A descriptor of something that cannot be mapped; it stays open to the end of the process. */
function openDirectory(path: string): number {
  Deno.openSync(path);
  for (const { name } of Deno.readDirSync("/proc/self/fd")) {
    try {
      if (Deno.readLinkSync(`/proc/self/fd/${name}`) === path) return Number(name);
    } catch {
      // Gone.
    }
  }
  throw new Error("The directory was not found again");
}

Deno.test("a mapping longer than its file has what there is of the file", async () => {
  await using all = await windowed();
  const { rig, dax, file } = all;
  await rig.backend.ask(map(file, { fdOffset: 0x7000, length: LENGTH }), map(file, { shmOffset: 0x10000 }));
  // All of it is taken, however short the file is.
  assertEquals(await rig.backend.answers(2), [0n, 1n]);
  assertEquals(dax.inspect().mappings.map(({ range }) => range), ["0x0-0x1000"]);
  await rig.backend.ask(unmap(0, LENGTH));
  assertEquals((await rig.backend.answers(3)).at(-1), 0n);
  assertEquals(dax.inspect().mappings, []);
});

Deno.test("a window that is locked refuses, and goes on", async () => {
  await using all = await windowed();
  const { rig, file } = all;
  await rig.backend.ask(map(file));
  await rig.backend.answers(1);
  {
    using _lock = rig.guest.memory.lock(MemoryRange.of(AT, 0x1000));
    await rig.backend.ask(unmap(0, 0x1000));
    assertEquals((await rig.backend.answers(2)).at(-1), 1n);
  }
  await rig.backend.ask(unmap(0, 0x1000));
  assertEquals((await rig.backend.answers(3)).at(-1), 0n);
});

Deno.test("requests that come while the owner is in a request are served when it is over", async () => {
  const file = Mappable.memfd("file", 0x1000);
  using _file = file;
  await using backend = await ScriptedBackend.start();
  const asksFirst = map(file);
  using frontend = await backend.connect({
    ...EVERYTHING,
    faults: [{ on: "ADD_MEM_REG", nth: 2, act: "slow" }],
    asksFirst,
  });
  await using rig = new Rig(await ScriptedBackend.start(), frontend, {});
  const dax = rig.guest.newDeviceMemory("dax", LENGTH, { holes: "fault" });
  frontend.provideShmem(0, dax);
  await backend.ask(map(file));
  using region = rig.region();
  region.map(); // 2 ms long
  assertEquals(await backend.answers(1), [0n]);
  assertEquals(dax.inspect().mappings.length, 1);
});

Deno.test("a reset, another back end and the end take everything out of the window", async () => {
  await using all = await windowed();
  const { rig, dax, file } = all;
  await rig.backend.ask(map(file));
  await rig.backend.answers(1);
  await rig.frontend.resetDevice();
  assertEquals(dax.inspect().mappings, []);
  await rig.backend.ask(map(file));
  await rig.backend.answers(2);
  rig.frontend[Symbol.dispose]();
  assertEquals(dax.inspect().mappings, []);
});

Deno.test("a back end without SHMEM has no windows", async () => {
  await using rig = await Rig.make(without(ProtocolFeature.SHMEM));
  const dax = rig.guest.newDeviceMemory("dax", LENGTH, { holes: "fault" });
  assertThrows(() => rig.frontend.provideShmem(0, dax), VhostUserError);
  await assertRejects(() => rig.frontend.getShmemConfig(), VhostUserError);
  using file = Mappable.memfd("file", 0x1000);
  await rig.backend.ask(map(file));
  assertEquals(await rig.backend.answers(1), [1n]);
});
