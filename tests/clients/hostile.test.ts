/**
 * What clients say and scribble is input: nothing of it crashes, hangs or corrupts the owner, or other clients.
 */

import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import * as fc from "fast-check";
import {
  DisposedError,
  Mappable,
  MembackingError,
  MemoryRange,
  OsError,
  type RegionHandle,
  RegionManager,
  RegionManagerClient,
  SyncRegionManagerClient,
  VaMapper,
} from "membacking";
import { RecordingPartition } from "membacking/testing";
import { currentThread } from "../../ffi/os/thread.ts";
import { duplicateFd, UnixSocket } from "../../ffi/os/socket.ts";
import { encodeRequest, numbersOf } from "../../src/serving/mail_codes.ts";
import { Mailbox } from "../../src/serving/mailbox.ts";
import { CLOSED, JOURNAL_LENGTH, LINE, MAIL } from "../../src/serving/shared_words.ts";
import type { Welcome } from "../../src/serving/protocol.ts";
import { openFds } from "../support/proc.ts";
import { Remote } from "./remote.ts";
import { until } from "./runner.ts";

const LENGTH = 0x10_0000;
const RAM = new MemoryRange(0, 0x8000);

/** A manager with some memory, a client that behaves, and what the manager warned of. */
class Rig implements Disposable {
  readonly #stack = new DisposableStack();
  readonly va = this.#stack.use(VaMapper.reserve(LENGTH));
  readonly warnings: string[] = [];
  readonly regions: RegionManager;
  readonly ram: RegionHandle;
  readonly file = this.#stack.use(Mappable.memfd("rig", LENGTH));

  constructor() {
    const quiet = () => {};
    const warn = (message: string, error: unknown) => void this.warnings.push(`${message}: ${error}`);
    this.regions = this.#stack.use(
      new RegionManager(this.va, { logger: { debug: quiet, info: quiet, warn, error: warn } }),
    );
    this.ram = this.regions.newRegion({ name: "ram", range: RAM, priority: 0 });
    this.ram.addMapping({ rangeInRegion: RAM, mappable: this.file });
    this.ram.map();
  }

  get names(): string[] {
    return this.regions.inspect().regions.map(({ name }) => name);
  }

  /** Throws unless a client that behaves is served as ever, and memory is as it was. */
  async check(): Promise<void> {
    const { port1, port2 } = new MessageChannel();
    this.regions.serve(port1);
    using client = await RegionManagerClient.connect(port2);
    await using region = await client.newRegion({ name: "good", range: MemoryRange.of(0x8_0000, 0x1000), priority: 9 });
    using file = await client.memfd("good", 0x1000);
    await region.addMapping({ rangeInRegion: new MemoryRange(0, 0x1000), mappable: file });
    await region.map();
    client.memory.writeUint32(0x8_0000, 1);
    client.memory.writeUint32(0x10, 2);
    assertEquals([this.regions.memory.readUint32(0x8_0000), this.regions.memory.readUint32(0x10)], [1, 2]);
    this.ram.map({ writable: false });
    assertThrows(() => client.memory.writeUint8(0, 1));
    this.ram.map();
  }

  [Symbol.dispose](): void {
    this.#stack.dispose();
  }
}

/** A client that says what it is told to. */
class Raw implements Disposable {
  readonly port: MessagePort;
  readonly received: { kind?: string; answer?: { error?: { message: string } } }[] = [];

  constructor(regions: RegionManager, options: { deadline?: number } = {}) {
    const { port1, port2 } = new MessageChannel();
    regions.serve(port1, options);
    this.port = port2;
    port2.onmessage = ({ data }) => void this.received.push(data);
  }

  say(message: unknown, transfer: Transferable[] = []): void {
    this.port.postMessage(message, transfer);
  }

  async welcome(hello: object = {}): Promise<Welcome> {
    this.say({ kind: "hello", thread: currentThread(), ...hello });
    await until(() => this.received.length > 0, "it is welcomed");
    return this.received[0] as unknown as Welcome;
  }

  get closed(): boolean {
    return this.received.some((message) => message.kind === "closed");
  }

  [Symbol.dispose](): void {
    this.port.close();
  }
}

const NEW_REGION = {
  kind: "request",
  id: 1,
  request: { kind: "new-region", options: { name: "bad", range: [0x2_0000, 0x2_1000], priority: 1 } },
};

const port = () => new MessageChannel().port1;

/** Messages that no client sends, after its hello. */
const GARBAGE: Readonly<Record<string, () => [message: unknown, transfer?: Transferable[]]>> = {
  "nothing": () => [undefined],
  "null": () => [null],
  "a number": () => [5],
  "a text": () => ["hello"],
  "a list": () => [[]],
  "an empty object": () => [{}],
  "another kind": () => [{ kind: "format-disk" }],
  "a kind that is an object": () => [{ kind: {} }],
  "the name of a method": () => [{ kind: "constructor" }],
  "a second hello": () => [{ kind: "hello", thread: currentThread() }],
  "a request without a request": () => [{ kind: "request", id: 1 }],
  "a request that is null": () => [{ kind: "request", id: 1, request: null }],
  "a request without an id": () => [{ ...NEW_REGION, id: undefined }],
  "an id that is a port": () => {
    const id = port();
    return [{ ...NEW_REGION, id }, [id]];
  },
  "an id that is NaN": () => [{ ...NEW_REGION, id: NaN }],
  "an id that is a bigint": () => [{ ...NEW_REGION, id: 5n }],
  "an id that is an object": () => [{ ...NEW_REGION, id: { valueOf: 5 } }],
  "a batch that is no list": () => [{ kind: "request", id: 2, request: { kind: "batch", changes: { length: 1e9 } } }],
  "a batch of null": () => [{ kind: "request", id: 2, request: { kind: "batch", changes: [null] } }],
  "a batch in a batch": () => [{
    kind: "request",
    id: 2,
    request: { kind: "batch", changes: [{ kind: "batch", changes: [] }] },
  }],
  "a region that is a text": () => [{ kind: "request", id: 2, request: { kind: "unmap", region: "1" } }],
  "a range without ends": () => [{
    kind: "request",
    id: 2,
    request: { kind: "new-region", options: { name: "x", range: null, priority: 1 } },
  }],
  "a range of texts": () => [{
    kind: "request",
    id: 2,
    request: { kind: "remove-mappings", region: 1, range: ["0", "4096"] },
  }],
  "a file that is no object": () => [{
    kind: "request",
    id: 2,
    request: { kind: "add-mapping", region: 1, range: [0, 4096], file: 3 },
  }],
  "a port that is none": () => [{ kind: "serve", port: 5 }],
  "a key that is none": () => [{ kind: "forget", key: {} }],
};

Deno.test("a client that says what no client says is cut off, with its regions, and nobody else notices", async () => {
  using rig = new Rig();
  for (const [what, make] of Object.entries(GARBAGE)) {
    using raw = new Raw(rig.regions);
    const { line } = await raw.welcome();
    raw.say(NEW_REGION);
    await until(() => rig.names.includes("bad"), `there is a region: ${what}`);
    const count = rig.warnings.length;
    raw.say(...make());
    await until(() => raw.closed, `it is cut off: ${what}`);
    assertEquals(rig.names, ["ram"], what);
    assertEquals(rig.warnings.length, count + 1, `${what}: ${rig.warnings.join("\n")}`);
    assertEquals(new Int32Array(line)[LINE.closed], CLOSED.cutOff);
  }
  await rig.check();
});

const HELLOS: readonly object[] = [
  { messages: 5 },
  { messages: null },
  { thread: null },
  { thread: 5 },
  { thread: {} },
  { thread: { tid: "1", started: null } },
  { thread: { tid: NaN, started: null } },
  { thread: { tid: -1, started: null } },
  { thread: { tid: 1.5, started: null } },
  { thread: { tid: 2 ** 40, started: null } },
  { thread: { tid: 1, started: {} } },
  { thread: { tid: 1, started: "yesterday" } },
  { thread: { tid: 1, started: "9".repeat(100_000) } },
  { thread: { tid: 5n, started: null } },
  { mail: null },
  { mail: 5 },
  { mail: {} },
  { mail: new SharedArrayBuffer(8) },
  { mail: { words: new SharedArrayBuffer(8), request: new SharedArrayBuffer(8), answer: new SharedArrayBuffer(8) } },
  { mail: { words: new ArrayBuffer(MAIL.bytes), request: new ArrayBuffer(8), answer: new ArrayBuffer(8) } },
  { token: {} },
];

Deno.test("a hello with odd fields is none", async () => {
  using rig = new Rig();
  for (const fields of HELLOS) {
    using raw = new Raw(rig.regions);
    let hungUp = false;
    raw.port.addEventListener("close", () => hungUp = true);
    const count = rig.warnings.length;
    raw.say({ kind: "hello", thread: currentThread(), ...fields });
    await until(() => hungUp, "it is hung up on");
    assertEquals([raw.received, rig.warnings.length], [[], count + 1]);
  }
  // A thread that there is not is one that has ended.
  using raw = new Raw(rig.regions);
  await raw.welcome({ thread: { tid: 0x7fff_ffff, started: null } });
  raw.say(NEW_REGION);
  await until(() => rig.names.length === 2, "there is a region");
  await until(() => rig.names.length === 1, "it is gone");
  await rig.check();
});

Deno.test("what comes by the port that a client brings along is no less looked at, and no more of it taken than there is", async () => {
  using rig = new Rig();
  const connect = async () => {
    const raw = new Raw(rig.regions);
    const { port1, port2 } = new MessageChannel();
    raw.say({ kind: "hello", thread: currentThread(), messages: port2 }, [port2]);
    await until(() => raw.received.length > 0, "it is welcomed");
    const { line, bell } = raw.received[0] as unknown as Welcome;
    const say = (message: unknown, posted: (before: number) => number, transfer: Transferable[] = []) => {
      port1.postMessage(message, transfer);
      const words = new Int32Array(line);
      words[LINE.posted] = posted(words[LINE.posted]!);
      Atomics.add(new Int32Array(bell), 0, 1);
      Atomics.notify(new Int32Array(bell), 0);
    };
    return { raw, say, [Symbol.dispose]: () => (raw[Symbol.dispose](), port1.close()) };
  };
  for (const make of Object.values(GARBAGE)) {
    using client = await connect();
    const [message, transfer] = make();
    client.say(message, (before) => before + 1, transfer);
    await until(() => client.raw.closed, "it is cut off");
  }
  for (const posted of [() => -1, () => 0x8000_0000, (before: number) => before + 1000]) {
    using client = await connect();
    client.say(NEW_REGION, posted);
    await until(() => rig.names.includes("bad"), "there is a region");
    assertEquals(rig.regions.poll(), 0);
    client.say({ kind: "bye" }, (before) => before + 1);
    await until(() => !rig.names.includes("bad"), "it is gone with its client");
  }
  // What is not counted waits for what is.
  using client = await connect();
  client.say(NEW_REGION, (before) => before);
  for (let polls = 0; polls < 10; polls++) assertEquals(rig.regions.poll(), 0);
  client.say({ ...NEW_REGION, id: 2, request: { kind: "inspect" } }, (before) => before + 2);
  await until(() => rig.names.includes("bad"), "there is a region");
  await rig.check();
});

Deno.test("random messages, made of those that clients send, leave the manager whole", async () => {
  using rig = new Rig();
  const odd = fc.constantFrom<unknown>(NaN, -1, 0, 1, 2 ** 53, 0x1000, "x", "", null, undefined, {}, [], 5n, Infinity);
  const number = fc.oneof(fc.constantFrom(0, 1, 2, 3, 0x1000, 0x2000, 0x2_0000, -1), odd);
  const range = fc.oneof(fc.tuple(number, number), odd);
  const change = fc.record({
    kind: fc.constantFrom("new-region", "map", "unmap", "add-mapping", "remove-mappings", "remove"),
    region: number,
    options: fc.oneof(fc.record({ name: fc.oneof(fc.constant("bad"), odd), range, priority: number }), odd),
    params: fc.oneof(fc.record({ writable: odd }), odd),
    range,
    file: fc.oneof(fc.record({ key: number, fd: number }), fc.constant("private"), odd),
    fileOffset: number,
    writable: odd,
    policy: odd,
    eventually: odd,
  }, { requiredKeys: ["kind"] });
  const request = fc.oneof(
    change,
    fc.record({ kind: fc.constant("batch"), changes: fc.array(change, { maxLength: 3 }) }),
    fc.record({ kind: fc.constantFrom("teardown", "map-params", "visible", "inspect", "regions"), region: number }),
    fc.record({ kind: fc.constantFrom("memfd", "open"), name: odd, size: number, path: odd, options: odd }),
  );
  const message = fc.oneof(
    { weight: 8, arbitrary: fc.record({ kind: fc.constant("request"), id: fc.nat(5), request }) },
    fc.record({ kind: fc.constantFrom("abort", "released", "forget", "file", "let-go"), id: number, key: number }),
  );
  await fc.assert(
    fc.asyncProperty(fc.array(message, { minLength: 1, maxLength: 12 }), async (messages) => {
      using raw = new Raw(rig.regions);
      await raw.welcome();
      for (const each of messages) raw.say(each);
      raw.say({ kind: "bye" });
      await until(() => rig.names.length === 1, "nothing is left of it");
      assertEquals(rig.regions.memory.readUint8(0), 0);
    }),
    { numRuns: 150 },
  );
  await rig.check();
});

Deno.test("scribbled words of a client are seen as such: it is cut off, and its locks stay while its thread may use them", async () => {
  using rig = new Rig();
  const lock = (table: SharedArrayBuffer, start: number, end: number) => new Float64Array(table).set([start, end]);
  const scribbles: Readonly<Record<string, (words: Int32Array, table: SharedArrayBuffer) => void>> = {
    "NaN in the table of locks": (words, table) => {
      lock(table, NaN, 0x1000);
      words[LINE.noted] = 1;
    },
    "a lock beyond memory": (words, table) => {
      lock(table, 0, 2 * LENGTH);
      words[LINE.noted] = 1;
    },
    "a huge count of slots": (words) => {
      words[LINE.noted] = JOURNAL_LENGTH + 1;
      words[LINE.slots] = 0x7fff_ffff;
    },
    "a slot that is none": (words) => {
      words[LINE.journal] = -5;
      words[LINE.noted] = 1;
    },
    "everything": (words, table) => {
      words.fill(-1);
      new Uint8Array(table).fill(0xff);
    },
    "an access that does not end": (words) => Atomics.store(words, LINE.reading, 1),
  };
  for (const [what, scribble] of Object.entries(scribbles)) {
    using raw = new Raw(rig.regions, { deadline: 60 });
    const { line, locks } = await raw.welcome();
    raw.say(NEW_REGION);
    await until(() => rig.names.includes("bad"), "there is a region");
    scribble(new Int32Array(line), locks);
    const start = performance.now();
    rig.ram.map({ writable: false });
    rig.ram.map();
    assert(performance.now() - start < 5000, what);
    await until(() => raw.closed, `it is cut off: ${what}`);
    await until(() => rig.names.length === 1, `its region is gone: ${what}`);
    raw.say({ kind: "bye" });
  }
  await rig.check();
});

Deno.test("scribbled memory of the map, and a bell that never stops, are nothing to the owner", async () => {
  using rig = new Rig();
  using raw = new Raw(rig.regions);
  const { nodes, rows, bell } = await raw.welcome();
  new Uint8Array(nodes).fill(0xff);
  new Uint8Array(rows).fill(0xff);
  nodes.grow(nodes.maxByteLength / 2 ** 16);
  const { port1, port2 } = new MessageChannel();
  rig.regions.serve(port1);
  {
    using client = await RegionManagerClient.connect(port2);
    for (const fill of [0xff, 0x01, 0x11, 0x7f]) {
      new Uint8Array(nodes).fill(fill);
      for (const look of [() => client.memory.find(0), () => [...client.memory.pieces()]]) {
        // Nothing, or an error that says it.
        try {
          look();
        } catch (error) {
          assert(error instanceof MembackingError && error.message.includes("makes no sense"), `${error}`);
        }
      }
    }
    await client.inspect();
  }
  const word = new Int32Array(bell);
  for (let i = 0; i < 100; i++) {
    Atomics.store(word, 0, i * 12345);
    Atomics.notify(word, 0);
  }
  for (let i = 0; i < 300; i++) {
    rig.ram.addMapping({ rangeInRegion: RAM, mappable: rig.file, fileOffset: i % 2 * 0x8000 });
  }
  rig.ram.addMapping({ rangeInRegion: RAM, mappable: rig.file });
  raw.say({ kind: "bye" });
  assertEquals(rig.regions.memory.readUint8(0), 0);
  assertEquals(rig.warnings, []);
});

Deno.test("an answer that is late does not take the place of the next request's numbers", () => {
  const text = () => new SharedArrayBuffer(8);
  const mail = { words: new SharedArrayBuffer(MAIL.bytes), request: text(), answer: text() };
  const words = new Int32Array(mail.words, 0, MAIL.words);
  const box = new Mailbox(mail);
  words[MAIL.asked] = encodeRequest({ kind: "unmap", region: 1 }, numbersOf(mail.words));
  Atomics.store(words, MAIL.request, 2);
  assertEquals(box.take()?.request, { kind: "unmap", region: 1 });
  // The client has given up, and asks for the next thing while the owner writes its answer.
  words[MAIL.asked] = encodeRequest({ kind: "unmap", region: 3 }, numbersOf(mail.words));
  box.answer(1, { value: 77 }, "new-region");
  Atomics.store(words, MAIL.request, 4);
  assertEquals(box.take()?.request, { kind: "unmap", region: 3 });
});

Deno.test("a mailbox with garbage in it, or that cannot grow, is the trouble of its client", async () => {
  using rig = new Rig();
  for (const [code, length] of [[99, 0], [0, -1], [0, 1e9], [0, 3], [-7, 0]] as const) {
    using raw = new Raw(rig.regions);
    const mail = {
      words: new SharedArrayBuffer(MAIL.bytes),
      request: new SharedArrayBuffer(8),
      answer: new SharedArrayBuffer(8),
    };
    const { bell } = await raw.welcome({ mail });
    const words = new Int32Array(mail.words, 0, MAIL.words);
    words[MAIL.asked] = code;
    words[MAIL.askedLength] = length;
    Atomics.store(words, MAIL.request, 2);
    Atomics.add(new Int32Array(bell), 0, 1);
    Atomics.notify(new Int32Array(bell), 0);
    await until(() => raw.closed, `it is cut off: ${code} ${length}`);
  }
  // One that has no room for the answer hears so, or nothing, but does hear.
  using raw = new Raw(rig.regions);
  const text = new TextEncoder().encode(JSON.stringify({ kind: "inspect" }));
  const request = new SharedArrayBuffer(text.length);
  new Uint8Array(request).set(text);
  const mail = { words: new SharedArrayBuffer(MAIL.bytes), request, answer: new SharedArrayBuffer(8) };
  const { bell } = await raw.welcome({ mail });
  const words = new Int32Array(mail.words, 0, MAIL.words);
  words[MAIL.askedLength] = text.length;
  Atomics.store(words, MAIL.request, 2);
  Atomics.add(new Int32Array(bell), 0, 1);
  Atomics.notify(new Int32Array(bell), 0);
  await until(() => words[MAIL.answered] === 1, "it is answered");
  raw.say({ kind: "bye" });
  await rig.check();
});

Deno.test("a client that says much and fast has the owner to itself for a moment only", async () => {
  const [MANY, MOMENT] = [5000, 1000];
  const nothing = { kind: "forget", key: 5 };
  using rig = new Rig();
  {
    // Before its hello, and by the only port there is.
    using raw = new Raw(rig.regions);
    raw.say({ kind: "hello", thread: currentThread() });
    for (let i = 0; i < MANY; i++) raw.say(nothing);
    assert(rig.regions.poll() < MOMENT);
  }
  using raw = new Raw(rig.regions);
  const { port1, port2 } = new MessageChannel();
  raw.say({ kind: "hello", thread: currentThread(), messages: port2 }, [port2]);
  await until(() => raw.received.length > 0, "it is welcomed");
  const { line, bell } = raw.received[0] as unknown as Welcome;
  const posted = () => {
    Atomics.add(new Int32Array(line), LINE.posted, MANY + 1);
    Atomics.add(new Int32Array(bell), 0, 1);
    Atomics.notify(new Int32Array(bell), 0);
  };
  for (let i = 0; i < MANY; i++) port1.postMessage(nothing);
  port1.postMessage(NEW_REGION);
  posted();
  assert(rig.regions.poll() < MOMENT);
  assertEquals(rig.names.includes("bad"), false);
  // The rest is not forgotten, though nobody rings again.
  await until(() => rig.names.includes("bad"), "all of it is served");
  for (let i = 0; i < MANY; i++) port1.postMessage(nothing);
  port1.postMessage({ kind: "bye" });
  posted();
  for (let polls = 0; rig.names.includes("bad"); polls++) {
    assert(polls < MANY && rig.regions.poll() < MOMENT);
  }
  port1.close();
  await rig.check();
});

/** A Worker that says something at a port without end: until `words[0]` is set, or it has been going on for `most` milliseconds. */
const ENDLESS = `
  onmessage = ({ data: { port, message, words, most } }) => {
    const until = performance.now() + most;
    let isOver = false;
    while (Atomics.load(words, 0) === 0 && !isOver) {
      for (let i = 0; i < 100; i++) port.postMessage(message);
      isOver = performance.now() > until;
    }
    postMessage(isOver);
  };
`;

Deno.test("a client that goes on talking when it is cut off, or has said bye, does not keep its owner", async () => {
  using rig = new Rig();
  const most = 5000;
  for (const message of [{ kind: "bye" }, "hello"]) {
    const { port1, port2 } = new MessageChannel();
    rig.regions.serve(port1);
    const words = new Int32Array(new SharedArrayBuffer(4));
    const worker = new Worker(URL.createObjectURL(new Blob([ENDLESS])), { type: "module" });
    try {
      const gaveUp = new Promise((resolve) => worker.onmessage = ({ data }) => resolve(data));
      worker.postMessage({ port: port2, message, words, most }, [port2]);
      await until(() => isClosed(port1), "the owner has closed the port");
      await rig.check();
      Atomics.store(words, 0, 1);
      assertEquals(await gaveUp, false, "the owner had its turn only once the other end was silent");
    } finally {
      worker.terminate();
    }
  }
});

/** Whether a port has been closed at this end. */
function isClosed(port: MessagePort): boolean {
  return /active: false/.test(Deno.inspect(port));
}

Deno.test("what others say to a client does not end it", async () => {
  const { port1, port2 } = new MessageChannel();
  using va = VaMapper.reserve(LENGTH);
  using regions = new RegionManager(va);
  // A go-between that also says other things.
  const { port1: owner, port2: real } = new MessageChannel();
  regions.serve(owner);
  real.onmessage = ({ data }) => {
    for (const noise of [null, undefined, 5, "x", [], {}, { kind: 5 }, { kind: "answer" }, { kind: "answer", id: 1 }]) {
      port1.postMessage(noise);
    }
    port1.postMessage({ kind: "answer", id: 77, answer: {} });
    port1.postMessage(data);
  };
  port1.onmessage = ({ data }) => real.postMessage(data, [data.messages]);
  using client = await RegionManagerClient.connect(port2);
  await client.newRegion({ name: "x", range: new MemoryRange(0, 0x1000), priority: 0 });
  port1.postMessage({ kind: "answer", id: 2, answer: { neither: "nor" } });
  await assertRejects(() => client.inspect(), MembackingError, "no answer that can be read");
  real.close();
  port1.close();
});

Deno.test("a port has one user, whoever comes second is told", async () => {
  using rig = new Rig();
  const { port1, port2 } = new MessageChannel();
  rig.regions.serve(port1);
  const first = RegionManagerClient.connect(port2);
  await assertRejects(() => RegionManagerClient.connect(port2), TypeError, "in use");
  await assertRejects(() => SyncRegionManagerClient.connect(port2), TypeError, "in use");
  assertThrows(() => rig.regions.serve(port1), TypeError, "in use");
  assertThrows(() => rig.regions.serve(port2), TypeError, "in use");
  using other = new RegionManager(VaMapper.reserve(LENGTH));
  assertThrows(() => other.serve(port1), TypeError, "in use");
  await assertRejects(() => RegionManagerClient.connect(port1), TypeError, "in use");
  using client = await first;
  await client.inspect();
});

Deno.test("20,000 ports that are closed without a hello leave nothing", async () => {
  const { stdout, success } = await new Deno.Command(Deno.execPath(), {
    args: [
      "run",
      "-A",
      "--no-check",
      "--v8-flags=--expose-gc",
      new URL("./ports_child.ts", import.meta.url).href,
    ],
    cwd: new URL("../../", import.meta.url),
    stderr: "inherit",
  }).output();
  assert(success);
  const [first = NaN, second = NaN] = JSON.parse(new TextDecoder().decode(stdout)) as number[];
  // Where many were open at a time, tables keep the room they had for them: once, while what is left over comes each time.
  // 100 bytes each: what they kept was fourteen times as much.
  assert(Math.min(first, second) < 1, `${first.toFixed(1)} MiB more, then ${second.toFixed(1)} MiB`);
});

/** Things that are thrown, and cannot be told as they are. */
const THROWN: Readonly<Record<string, () => unknown>> = {
  "a cause that is the error itself": () => {
    const error = new Error("round");
    error.cause = error;
    return error;
  },
  "a message that throws": () =>
    Object.defineProperty(new Error("x"), "message", {
      get() {
        throw new Error("no message");
      },
    }),
  "a cause that throws": () =>
    Object.defineProperty(new Error("x"), "cause", {
      get() {
        throw new Error("no cause");
      },
    }),
  "a cause that is new each time": () => {
    const make = (): Error =>
      Object.defineProperty(new Error("deeper"), "cause", { get: make, configurable: true }) as Error;
    return make();
  },
  "20,000 causes": () => {
    let error = new Error("first");
    for (let i = 0; i < 20_000; i++) error = new Error(`cause ${i}`, { cause: error });
    return error;
  },
  "a Proxy that refuses": () =>
    new Proxy(new Error("x"), {
      get() {
        throw new Error("no");
      },
      getPrototypeOf() {
        throw new Error("no");
      },
    }),
  "a revoked Proxy": () => {
    const { proxy, revoke } = Proxy.revocable(new Error("x"), {});
    revoke();
    return proxy;
  },
  "odd names": () => Object.assign(new Error("x"), { name: { toString: 5 } }),
  "a name that is a symbol": () => Object.assign(new Error("x"), { name: Symbol("x") }),
  "a huge message": () => new Error("x".repeat(2 ** 24)),
  "errors that are none": () => Object.assign(new AggregateError([], "x"), { errors: 5 }),
  "errors that hold themselves": () => {
    const error = new AggregateError([], "x");
    error.errors = [error, error];
    return error;
  },
  "a function": () => () => {},
  "a symbol": () => Symbol("x"),
  "a bigint": () => 5n,
  "an object that refuses to be JSON": () => ({
    toJSON() {
      throw new Error("no");
    },
  }),
  "nothing": () => undefined,
};

Deno.test("whatever a target throws, the client has an answer, and the owner goes on", async () => {
  using rig = new Rig();
  class Failing extends RecordingPartition {
    thrown: (() => unknown) | undefined;
    override unmapRange(range: MemoryRange): void {
      if (this.thrown !== undefined) throw this.thrown();
      super.unmapRange(range);
    }
  }
  using vm = new Failing();
  using _attached = rig.regions.addPartition(vm);
  await using remote = await Remote.start(rig.regions, { sync: true });
  const { port1, port2 } = new MessageChannel();
  rig.regions.serve(port1);
  using client = await RegionManagerClient.connect(port2);
  const region = await client.newRegion({ name: "theirs", range: MemoryRange.of(0x2_0000, 0x1000), priority: 1 });
  await region.addMapping({ rangeInRegion: new MemoryRange(0, 0x1000), mappable: rig.file });
  await region.map();
  await remote.run(`
    kept.region = client.newRegion({ name: "sync", range: MemoryRange.of(0x3_0000, 0x1000), priority: 1 });
    kept.region.addMapping({ rangeInRegion: new MemoryRange(0, 0x1000), mappable: client.memfd("x", 0x1000) });
    kept.region.map();
  `);
  /** Has requests end in what is thrown, then puts everything in order for the next ones. */
  const failing = async (what: string, request: () => Promise<unknown>) => {
    vm.thrown = THROWN[what];
    await assertRejects(request, Error, undefined, what);
    vm.thrown = undefined;
    await region.map({ writable: false });
    await region.map();
    await remote.run("kept.region.map({ writable: false }); kept.region.map();");
  };
  for (const what of Object.keys(THROWN)) {
    await failing(what, () => region.unmap());
    await failing(what, () => region.teardown());
    await failing(what, () => remote.run("kept.region.unmap();"));
    await failing(what, () => remote.run("await kept.region.teardown();"));
  }
});

Deno.test("a client that runs out of stack anywhere in an access does not keep the owner waiting", async () => {
  using rig = new Rig();
  await using remote = await Remote.start(rig.regions);
  const overflows = await remote.run<number>(`
    let overflows = 0;
    const act = () => { client.memory.readUint8(0); client.memory.writeUint32(4, 1); };
    const dive = () => {
      try {
        dive();
      } catch (error) {
        if (!(error instanceof RangeError)) throw error;
        overflows++;
      }
      try { act(); } catch (error) { if (!(error instanceof RangeError)) throw error; overflows++; }
    };
    for (let i = 0; i < 20; i++) dive();
    kept.memory = client.memory;
    return overflows;
  `);
  assert(overflows > 20);
  const start = performance.now();
  rig.ram.unmap();
  rig.ram.map();
  assert(performance.now() - start < 2000);
  assertEquals(rig.warnings, []);
  assertEquals(await remote.run("return client.memory.readUint32(4);"), 1);
});

Deno.test("an owner whose thread ends leaves its clients with a typed error, pending requests included", async () => {
  const owner = new Worker(new URL("./owner_worker.ts", import.meta.url), { type: "module" });
  const ports = Array.from({ length: 2 }, () => new MessageChannel());
  const ready = new Promise((resolve) => owner.onmessage = resolve);
  owner.postMessage(ports.map(({ port1 }) => port1), ports.map(({ port1 }) => port1));
  await ready;
  const [first, second] = ports.map(({ port2 }) => port2);
  assert(first !== undefined && second !== undefined);
  using client = await RegionManagerClient.connect(first);
  await using remote = await Remote.start(second, { sync: true });
  const region = await client.newRegion({ name: "x", range: MemoryRange.of(0x2_0000, 0x1000), priority: 1 });
  await region.addMapping({ rangeInRegion: new MemoryRange(0, 0x1000), mappable: await client.memfd("x", 0x1000) });
  await region.map();
  const lock = client.memory.lock(MemoryRange.of(0x2_0000, 0x1000));
  // Waits for the lock.
  const pending = assertRejects(() => region.teardown(), DisposedError, "has ended");
  const stuck = assertRejects(
    () =>
      remote.run(`
      const region = client.newRegion({ name: "y", range: MemoryRange.of(0x3_0000, 0x1000), priority: 1 });
      while (true) region.map({ writable: region.mapParams === null });
    `),
    Error,
    "DisposedError",
  );
  await client.inspect();
  owner.terminate();
  await pending;
  await stuck;
  await assertRejects(() => client.inspect(), DisposedError, "has ended");
  assertEquals(lock.bytes.length, 0);
  assert(client.disposed);
});

Deno.test("a process that says what no client says is cut off, whatever it sends along", async () => {
  using rig = new Rig();
  const fds = openFds();
  const packets: readonly (readonly [text: string, fds?: number])[] = [
    ["\x01null"],
    ["\x01{"],
    ["\x01\xff\xfe"],
    ["\x01{}"],
    [""],
    ["\x01"],
    ["\x02"],
    ["\x02".repeat(88)],
    ["\x02" + "\x00".repeat(87), 5],
    ['\x01{"kind":"request","id":1,"request":{"kind":"inspect"}', 3],
    ['\x01{"kind":"serve","port":null}'],
    ['\x01{"kind":"serve","port":{}}', 1],
    ['\x01{"kind":"hello","thread":null}', 250],
    ["\x00".repeat(2 ** 15 + 1), 200],
    ["\x00"],
    ["\x00".repeat(1000)],
  ];
  for (const [text, count = 0] of packets) {
    let fd = -1;
    using served = rig.regions.serveProcess((inherited) => fd = duplicateFd(inherited));
    {
      using socket = UnixSocket.own(fd);
      const bytes = Uint8Array.from(text, (char) => char.charCodeAt(0));
      socket.send(bytes, new Array<number>(count).fill(rig.file.fd));
      if (text.startsWith("\x00")) socket.send(bytes, new Array<number>(count).fill(rig.file.fd));
      await until(() => {
        try {
          return socket.receive(new Uint8Array(65536))?.length === 0;
        } catch (error) {
          // There was more that nobody wanted to read.
          return error instanceof OsError && error.code === "ECONNRESET";
        }
      }, `it is hung up on: ${JSON.stringify(text)}`);
    }
    assertEquals(served.child, fd);
  }
  await rig.check();
  await until(() => openFds() <= fds, "nothing is open any more");
});
