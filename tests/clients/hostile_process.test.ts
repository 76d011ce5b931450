/**
 * What another process does to its owner: a client with no code of ours behind it, that sends what it likes over its socket
 * and scribbles where it can.
 */

import { assert, assertEquals, assertLess, assertRejects, assertThrows } from "@std/assert";
import { GuestMemoryError, LimitError, Mappable, MemoryRange, OsError, RegionManager, VaMapper } from "membacking";
import { RecordingVa } from "membacking/testing";
import { DiskFile } from "../../ffi/files/disk_file.ts";
import { libc } from "../../ffi/os/libc.ts";
import { closeFds, duplicateFd, UnixSocket } from "../../ffi/os/socket.ts";
import { currentThread } from "../../ffi/os/thread.ts";
import { FileMapping } from "../../ffi/os/address_space.ts";
import { PROT_READ, PROT_WRITE } from "../../ffi/os/mman.ts";
import { decodeAnswer } from "../../src/serving/mail_codes.ts";
import { LINE, MAIL } from "../../src/serving/shared_words.ts";
import { CLIENT_FILE } from "../../src/serving/process_layout.ts";
import { openFds } from "../support/proc.ts";
import { PAGE, range } from "../support/units.ts";
import { RemoteProcess } from "./remote_process.ts";
import { until } from "./runner.ts";

const LENGTH = 0x10_0000;
const PACKET = 2 ** 15;
/** The first byte of a packet of numbers. */
const NUMBERS = 2;

/** A manager with some memory, and what it warned of. */
class Rig implements Disposable {
  readonly #stack = new DisposableStack();
  readonly warnings: string[] = [];
  readonly regions: RegionManager;

  constructor(va: VaMapper | RecordingVa<Mappable> = this.#stack.use(VaMapper.reserve(LENGTH))) {
    const quiet = () => {};
    const warn = (message: string, error: unknown) => void this.warnings.push(`${message}: ${error}`);
    this.regions = this.#stack.use(new RegionManager(va, { logger: { debug: quiet, info: quiet, warn, error: warn } }));
    const ram = this.regions.newRegion({ name: "ram", range: range(0, 8 * PAGE), priority: 0 });
    ram.addMapping({ rangeInRegion: range(0, 8 * PAGE), mappable: this.#stack.use(Mappable.memfd("ram", 8 * PAGE)) });
    ram.map();
  }

  [Symbol.dispose](): void {
    this.#stack.dispose();
  }
}

/** The other end of a socket that a manager serves. */
class Raw implements Disposable {
  readonly #stack = new DisposableStack();
  readonly #socket: UnixSocket;
  readonly #buffer = new Uint8Array(2 * PACKET);
  /** What has arrived, and descriptors that came along, closed with this. */
  readonly received: { readonly text: string; readonly fds: readonly number[] }[] = [];
  isHungUp = false;

  constructor(regions: RegionManager, options: { deadline?: number } = {}) {
    let fd = -1;
    this.#stack.use(regions.serveProcess((inherited) => fd = duplicateFd(inherited), options));
    this.#socket = this.#stack.use(UnixSocket.own(fd));
  }

  async say(message: unknown, fds: readonly number[] = []): Promise<void> {
    const text = new TextEncoder().encode(JSON.stringify(message));
    for (let at = 0; at === 0 || at < text.length; at += PACKET) {
      const part = text.subarray(at, at + PACKET);
      const isLast = at + PACKET >= text.length;
      await until(() => this.#send(Uint8Array.of(isLast ? 1 : 0, ...part), at === 0 ? fds : []), "there is room");
    }
  }

  #send(bytes: Uint8Array, fds: readonly number[]): boolean {
    try {
      return this.#socket.send(bytes, fds) !== null;
    } catch (error) {
      if (!(error instanceof OsError)) throw error;
      return this.isHungUp = true;
    }
  }

  /** Sends a packet of numbers. */
  sendNumbers(id: number, code: number, numbers: readonly number[]): void {
    const packet = new Float64Array(3 + MAIL.numberCount);
    packet.set([id, code, ...numbers], 1);
    const bytes = new Uint8Array(packet.buffer);
    bytes[0] = NUMBERS;
    this.#send(bytes, []);
  }

  /** Says hello, and returns the file that this client and the owner write. */
  async hello(): Promise<FileMapping> {
    await this.say({ kind: "hello", thread: currentThread(), token: 1 });
    const { fds } = await this.next("process-welcome");
    return this.#stack.use(new FileMapping(fds[0]!, 0, CLIENT_FILE.size, PROT_READ | PROT_WRITE));
  }

  async request(id: number, request: object): Promise<{ readonly fds: readonly number[]; readonly text: string }> {
    await this.say({ kind: "request", id, request });
    return await this.next(`"id":${id}`);
  }

  /** The next message in which `text` is. */
  async next(text: string) {
    let found;
    await until(() => {
      this.#read();
      assert(!this.isHungUp, "it is hung up on");
      return (found = this.received.find((message) => message.text.includes(text))) !== undefined;
    }, `${text} arrives`);
    return found!;
  }

  async hungUp(): Promise<void> {
    await until(() => {
      this.#read();
      return this.isHungUp;
    }, "it is hung up on");
  }

  #read(): void {
    try {
      for (let got; !this.isHungUp && (got = this.#socket.receive(this.#buffer)) !== null;) {
        const text = this.#buffer[0] === NUMBERS ? this.#answer() : new TextDecoder().decode(
          this.#buffer.subarray(1, Math.max(1, got.length)),
        );
        this.#stack.adopt(got.fds, closeFds);
        this.received.push({ text, fds: got.fds });
        if (got.length === 0) this.isHungUp = true;
      }
    } catch {
      this.isHungUp = true;
    }
  }

  /** An answer that came as numbers. */
  #answer(): string {
    const [id = 0, code = 0, ...numbers] = new Float64Array(this.#buffer.buffer, 8, 2 + MAIL.numberCount);
    return JSON.stringify({ kind: "answer", id, answer: { value: decodeAnswer(code, Float64Array.from(numbers)) } });
  }

  [Symbol.dispose](): void {
    this.#stack.dispose();
  }
}

Deno.test("another process is not believed that nobody will make a file shorter", async () => {
  using rig = new Rig();
  using raw = new Raw(rig.regions);
  await raw.hello();
  const options = { seal: false, fixedSize: true };
  const made = await raw.request(1, { kind: "memfd", name: "evil", size: PAGE, options });
  const [fd = -1] = made.fds;
  const { key } = JSON.parse(made.text).answer.value;
  const region = JSON.parse(
    (await raw.request(2, { kind: "new-region", options: { name: "evil", range: [0x20000, 0x21000], priority: 1 } }))
      .text,
  ).answer.value;
  await raw.request(3, { kind: "add-mapping", region, range: [0, PAGE], file: { key, fd: 0 } });
  await raw.request(4, { kind: "map", region, params: {} });
  assertEquals(rig.regions.memory.readUint32(0x20000), 0);
  assertEquals(libc().sys.ftruncate(fd, 0n), 0);
  assertThrows(() => rig.regions.memory.readUint32(0x20000), GuestMemoryError);
});

Deno.test("a message that is too long, or comes in crumbs, ends its client and says why", async () => {
  using rig = new Rig();
  using long = new Raw(rig.regions);
  await long.hello();
  await long.say({ kind: "skip", order: 1, more: "x".repeat(3 * 2 ** 20) });
  await long.hungUp();
  assertEquals(rig.warnings.length, 1);
  assert(rig.warnings[0]?.includes("longer than messages are"), rig.warnings[0]);
});

Deno.test("a request that is too long for another process is an error before it is sent", async () => {
  using rig = new Rig();
  await using remote = await RemoteProcess.start(rig.regions);
  const error = await assertRejects(() =>
    remote.run(`
      const region = await client.newRegion({ name: "x", range: new MemoryRange(0x80000, 0x81000), priority: 1 });
      await client.batch(() => { for (let i = 0; i < 100_000; i++) void region.map({ writable: i % 2 === 0 }); });
    `)
  );
  assert(String(error).includes(LimitError.name) || String(error).includes("bytes of a message"), String(error));
  assertEquals(await remote.run("return (await client.regions()).length"), 2);
});

Deno.test("a request in numbers before a hello is none", async () => {
  using rig = new Rig();
  using raw = new Raw(rig.regions);
  raw.sendNumbers(1, 2, [1]);
  await raw.hungUp();
  assertEquals(rig.warnings.length, 1);
});

Deno.test("a region of another process has a name of no more than 65,536 characters", async () => {
  using rig = new Rig();
  using raw = new Raw(rig.regions);
  await raw.hello();
  const named = (name: string) => ({ kind: "new-region", options: { name, range: [0x20000, 0x21000], priority: 1 } });
  assert((await raw.request(1, named("n".repeat(65_537)))).text.includes("65536 characters"));
  await raw.request(2, named("n".repeat(65_536)));
  assertEquals(rig.regions.inspect().regions.map(({ name }) => name.length), [3, 65_536]);
});

Deno.test("however many clients do not come out of an access, a request waits once for all of them", async () => {
  using rig = new Rig();
  const deadline = 1000;
  using stack = new DisposableStack();
  for (let i = 0; i < 6; i++) {
    const raw = stack.use(new Raw(rig.regions, { deadline }));
    const file = await raw.hello();
    Atomics.store(new Int32Array(file.bytes, 0, 1024), LINE.reading, 1);
  }
  const start = performance.now();
  rig.regions.newRegion({ name: "x", range: range(0x80000, 0x81000), priority: 1 }).map();
  assertLess(performance.now() - start, 3 * deadline);
});

Deno.test("what is no socket of the right kind is not served, and not kept", async () => {
  using rig = new Rig();
  const before = openFds();
  {
    using file = DiskFile.open("/dev/null");
    using directory = DiskFile.open("/");
    const [stream, other] = UnixSocket.pair("stream");
    using _stream = stream;
    using _other = other;
    for (const { fd } of [file, directory, stream]) {
      using raw = new Raw(rig.regions);
      await raw.hello();
      await raw.say({ kind: "serve", port: null }, [fd]);
      await raw.hungUp();
    }
  }
  await until(() => openFds() <= before, "nothing is open any more");
  assertEquals(rig.warnings.length, 3);
});

Deno.test("a process can neither use up the owner's descriptors by files nor have any number of others served", async () => {
  using rig = new Rig();
  const before = openFds();
  {
    using raw = new Raw(rig.regions);
    await raw.hello();
    using file = Mappable.memfd("file", PAGE);
    for (let key = 1; key < 1100 && !raw.isHungUp; key++) await raw.say({ kind: "file", key }, [file.fd]);
    await raw.hungUp();
    assert(rig.warnings.some((warning) => warning.includes("1024 files")), rig.warnings.join());
  }
  {
    using raw = new Raw(rig.regions);
    await raw.hello();
    using ends = new DisposableStack();
    for (let i = 0; i < 70; i++) {
      const [one, other] = UnixSocket.pair("seqpacket");
      ends.use(one);
      using _sent = other;
      await raw.say({ kind: "serve", port: null }, [other.fd]);
    }
    await until(() => rig.warnings.some((warning) => warning.includes("is not served")), "some are not served");
  }
  await until(() => openFds() <= before, "nothing is open any more");
});

Deno.test("who reads no answers is hung up on before they take much memory", async () => {
  using rig = new Rig();
  rig.regions.newRegion({ name: "n".repeat(2 ** 20), range: range(0x80000, 0x81000), priority: 1 });
  using raw = new Raw(rig.regions);
  await raw.hello();
  for (let id = 1; id < 40 && !raw.isHungUp; id++) {
    await raw.say({ kind: "request", id, request: { kind: "regions" } });
    await new Promise((resolve) => setTimeout(resolve, 0));
  }
  await until(() => rig.warnings.some((warning) => warning.includes("is not read")), "it is hung up on");
});

Deno.test("after a map of too many pieces, other processes are served again", async () => {
  const stride = 2 ** 21;
  const count = 33_000;
  using rig = new Rig(new RecordingVa<Mappable>(2 ** 37));
  using file = Mappable.memfd("pieces", PAGE);
  using first = new Raw(rig.regions);
  await first.hello();
  const sparse = rig.regions.newRegion({ name: "sparse", range: range(0, 2 ** 37), priority: 1 });
  sparse.map();
  rig.regions.batch(() => {
    for (let i = 0; i < count; i++) {
      sparse.addMapping({ rangeInRegion: MemoryRange.of(i * stride, PAGE), mappable: file });
    }
  });
  await first.hungUp();
  sparse[Symbol.dispose]();
  using second = new Raw(rig.regions);
  await second.hello();
  await second.request(1, { kind: "regions" });
});

Deno.test("a process can take away its own marks of written pages, and nobody else's", async () => {
  using rig = new Rig();
  using tracker = rig.regions.trackDirty();
  using raw = new Raw(rig.regions);
  await raw.hello();
  await using honest = await RemoteProcess.start(rig.regions);
  tracker.take();
  rig.regions.memory.writeUint32(0x1000, 7);
  await honest.run("client.memory.writeUint32(0x3000, 8)");
  const { fds: [fd = -1] } = await raw.next('"marks"');
  using marks = Mappable.fromFd(fd);
  marks.write(0, new Uint8Array(marks.size));
  assertEquals([...tracker.take()].map(String), ["0x1000-0x2000", "0x3000-0x4000"]);
  marks.write(0, new Uint8Array(marks.size).fill(0xff));
  assertEquals([...tracker.take()].map(String), [`${range(0, LENGTH)}`]);
  assertEquals([...tracker.take()].map(String), []);
});

Deno.test("what a process has written before it ends is not forgotten", async () => {
  using rig = new Rig();
  using tracker = rig.regions.trackDirty();
  {
    await using remote = await RemoteProcess.start(rig.regions);
    tracker.take();
    await remote.run(`
      await client.newRegion({ name: "its own", range: new MemoryRange(0x80000, 0x81000), priority: 0 });
      client.memory.writeUint32(0x3000, 8);
    `);
    await remote.kill();
    await until(() => rig.regions.inspect().regions.length === 1, "it is gone");
  }
  assertEquals([...tracker.take()].map(String), ["0x3000-0x4000"]);
});
