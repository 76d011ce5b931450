/**
 * The front end with virtiofsd at the other end: QEMU's in C (package qemu-system-common), and its successor in Rust
 * (`cargo install virtiofsd`), which is built on rust-vmm's implementation of the protocol.
 *
 * @module
 */

import { assert, assertEquals } from "@std/assert";
import { GuestMemoryManager, Mappable, MemoryRange } from "membacking";
import { VhostUserFrontend, VhostUserMemory } from "membacking/vhost-user";
import { askProgram, testUnless } from "../support/require.ts";
import { type Part, Virtqueue } from "./virtqueue.ts";

/** One of the two programs. */
interface Daemon {
  readonly name: string;
  readonly program: string;
  readonly args: (directory: string) => string[];
  readonly slots: number;
  readonly source: string;
}

const DAEMONS: readonly Daemon[] = [
  {
    name: "virtiofsd in C",
    program: "/usr/lib/qemu/virtiofsd",
    args: (directory) => ["-o", `source=${directory},cache=auto,sandbox=chroot,log_level=err`, "-f"],
    slots: 32,
    source: "package qemu-system-common",
  },
  {
    name: "virtiofsd in Rust",
    program: "virtiofsd",
    args: (directory) => [`--shared-dir=${directory}`, "--sandbox=chroot", "--log-level=error"],
    slots: 509,
    source: "crates.io",
  },
];

function whyNot({ program, source }: Daemon): string | undefined {
  const { missing } = askProgram(program, source);
  if (missing !== undefined) return missing;
  return Deno.uid() === 0 ? undefined : "virtiofsd changes its root directory, which takes root";
}

const Fuse = { LOOKUP: 1, FORGET: 2, OPEN: 14, READ: 15, INIT: 26 } as const;

/** The header of a FUSE request, and what follows it. */
function request(opcode: number, node: bigint, unique: bigint, body: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(40 + body.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, bytes.length, true);
  view.setUint32(4, opcode, true);
  view.setBigUint64(8, unique, true);
  view.setBigUint64(16, node, true);
  bytes.set(body, 40);
  return bytes;
}

function numbers(...values: readonly [bits: 32 | 64, value: number | bigint][]): Uint8Array {
  const bytes = new Uint8Array(values.reduce((sum, [bits]) => sum + bits / 8, 0));
  const view = new DataView(bytes.buffer);
  let at = 0;
  for (const [bits, value] of values) {
    if (bits === 32) view.setUint32(at, Number(value), true);
    else view.setBigUint64(at, BigInt(value), true);
    at += bits / 8;
  }
  return bytes;
}

/** A FUSE client on a queue. */
class FuseClient {
  readonly #queue: Virtqueue;
  #unique = 0n;

  constructor(queue: Virtqueue) {
    this.#queue = queue;
  }

  /** Makes a request; `reply` is the most bytes that may come back behind the header. */
  async ask(opcode: number, node: bigint, body: Uint8Array, ...reply: number[]): Promise<Uint8Array> {
    const unique = ++this.#unique;
    const parts: Part[] = [request(opcode, node, unique, body), ...(reply.length === 0 ? [] : [16]), ...reply];
    const [header, answer] = await this.#queue.request(parts);
    if (header === undefined) return new Uint8Array(0);
    const view = new DataView(header.buffer);
    assertEquals(view.getInt32(4, true), 0, `FUSE request ${opcode} failed`);
    assertEquals(view.getBigUint64(8, true), unique);
    return (answer ?? new Uint8Array(0)).subarray(0, view.getUint32(0, true) - 16);
  }
}

for (const daemon of DAEMONS) {
  const title = `${daemon.name}: FUSE_INIT, and a file is read through two queues, into memory that was added`;
  testUnless(whyNot(daemon), title, () => readThroughTwoQueues(daemon));
}

async function readThroughTwoQueues(daemon: Daemon): Promise<void> {
  const directory = Deno.makeTempDirSync();
  const content = new Uint8Array(20_000).map((_, i) => i % 251);
  Deno.mkdirSync(`${directory}/shared`);
  Deno.writeFileSync(`${directory}/shared/file`, content);
  const socket = `${directory}/fs.sock`;
  const process = new Deno.Command(daemon.program, {
    args: [`--socket-path=${socket}`, ...daemon.args(`${directory}/shared`)],
    ...{ stdin: "null", stdout: "null", stderr: "null" },
  }).spawn();
  await using stack = new AsyncDisposableStack();
  stack.defer(() => Deno.removeSync(directory, { recursive: true }));
  stack.defer(async () => {
    try {
      process.kill("SIGKILL");
    } catch {
      // It ends by itself when its front end has gone.
    }
    await process.status;
  });

  const guest = stack.use(GuestMemoryManager.create({
    maxAddress: 0x2_0000_0000,
    ram: [{ ranges: [new MemoryRange(0, 0x100_0000)] }],
  }));
  const frontend = stack.use(await VhostUserFrontend.connect(socket, { patience: 10_000 }));
  const memory = stack.use(new VhostUserMemory(frontend));
  stack.use(guest.regions.addDmaTarget(memory));
  assertEquals(frontend.memorySlots, daemon.slots);
  await frontend.setFeatures(1n << 32n);

  // One queue in RAM, one in memory that is added.
  using file = Mappable.memfd("added", 0x10_0000);
  const added = guest.regions.newRegion({
    name: "added",
    range: MemoryRange.of(0x1_0000_0000, 0x10_0000),
    priority: 1,
  });
  added.addMapping({ rangeInRegion: new MemoryRange(0, 0x10_0000), mappable: file });
  added.map();
  assertEquals(memory.table.length, 2);
  const [high, low] = [
    stack.use(new Virtqueue(guest.memory, 0x1_0000_0000)),
    stack.use(new Virtqueue(guest.memory, 0x10_0000)),
  ];
  await high.start(frontend, 0);
  await low.start(frontend, 1);
  const [priority, requests] = [new FuseClient(high), new FuseClient(low)];

  const init = await requests.ask(Fuse.INIT, 0n, numbers([32, 7], [32, 31], [32, 0x2_0000], [32, 0]), 64);
  assertEquals(new DataView(init.buffer).getUint32(0, true), 7);
  const entry = await requests.ask(Fuse.LOOKUP, 1n, new TextEncoder().encode("file\0"), 128);
  const node = new DataView(entry.buffer).getBigUint64(0, true);
  assertEquals(Number(new DataView(entry.buffer).getBigUint64(48, true)), content.length);
  const open = await requests.ask(Fuse.OPEN, node, numbers([32, 0], [32, 0]), 16);
  const handle = new DataView(open.buffer).getBigUint64(0, true);
  for (const client of [requests, priority]) {
    for (const offset of [0, 8192, 16_384]) {
      const body = numbers([64, handle], [64, offset], [32, 8192], [32, 0], [64, 0], [32, 0], [32, 0]);
      const data = await client.ask(Fuse.READ, node, body, 8192);
      assertEquals([...data], [...content.subarray(offset, offset + 8192)]);
    }
  }
  await priority.ask(Fuse.FORGET, node, numbers([64, 1]));
  assert(low.call.take() > 0 && high.call.take() > 0);
  assertEquals(frontend.state, "connected");

  // What it writes is logged, too: by both of its queues' threads.
  memory.takeDirty(() => {});
  assert(memory.isLogging);
  const body = numbers([64, handle], [64, 0], [32, 8192], [32, 0], [64, 0], [32, 0], [32, 0]);
  await requests.ask(Fuse.READ, node, body, 8192);
  const dirty: number[] = [];
  memory.takeDirty((start, end) => {
    for (let gpa = start; gpa < end; gpa += 0x1000) dirty.push(gpa);
  });
  assert(dirty.includes(0x10_3000) && dirty.length < 10, dirty.join());
}
