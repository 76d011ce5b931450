/**
 * A Worker that uses memory as a client, until somebody ends it at any instruction; or the owner, whose clients are
 * elsewhere.
 *
 * @module
 */

import {
  Mappable,
  MemoryRange,
  RegionManager,
  RegionManagerClient,
  SyncRegionManagerClient,
  VaMapper,
} from "membacking";
import { currentThread } from "../../ffi/os/thread.ts";
import { ring } from "../../src/serving/bell.ts";
import { LINE } from "../../src/serving/shared_words.ts";
import { clientRound } from "./client_round.ts";
import { Random } from "./random.ts";

/** What such a Worker is to be. */
export interface Job {
  readonly role: "client" | "sync-client" | "flood" | "owner";
  /** One port for each client of an owner; the one of a client. */
  readonly ports: readonly MessagePort[];
  readonly seed: number;
}

interface WorkerScope {
  onmessage: ((event: MessageEvent<Job>) => void) | null;
  postMessage(message: unknown): void;
}
const scope = globalThis as unknown as WorkerScope;
const PAGE = 0x1000;

const turn = () => new Promise((resolve) => setTimeout(resolve, 0));

async function beClient(random: Random, port: MessagePort): Promise<void> {
  const client = await RegionManagerClient.connect(port);
  scope.postMessage("connected");
  using file = Mappable.memfd("client", 16 * PAGE);
  while (true) {
    await clientRound(client, "client", file, random);
    if (random.oneIn(4)) await turn();
  }
}

async function beSyncClient(random: Random, port: MessagePort): Promise<void> {
  const client = await SyncRegionManagerClient.connect(port);
  scope.postMessage("connected");
  using file = client.memfd("sync client", 16 * PAGE);
  for (let i = 0; i < 100_000; i++) {
    const start = (48 + random.below(8)) * PAGE;
    using region = client.newRegion({ name: "sync", range: MemoryRange.of(start, 4 * PAGE), priority: 201 });
    region.addMapping({ rangeInRegion: MemoryRange.of(0, 4 * PAGE), mappable: file });
    region.map();
    client.memory.writeUint32(start, i);
    using lock = client.memory.lock(MemoryRange.of(start, PAGE));
    void lock.bytes[0];
  }
}

/**
 * Says what clients say, without a pause, and that there is more. Deno does not end a thread that does nothing else, so it
 * ends by itself.
 */
function beFlood(port: MessagePort): void {
  const { port1, port2 } = new MessageChannel();
  port.onmessage = ({ data }) => {
    if (data.kind !== "welcome") return;
    const [line, bell] = [new Int32Array(data.line), new Int32Array(data.bell)];
    for (const until = performance.now() + 500; performance.now() < until;) {
      for (let i = 0; i < 100; i++) port1.postMessage({ kind: "forget", key: i });
      Atomics.add(line, LINE.posted, 2 ** 20);
      ring(bell);
    }
  };
  port.postMessage({ kind: "hello", thread: currentThread(), messages: port2 }, [port2]);
}

function beOwner(ports: readonly MessagePort[]): void {
  const va = VaMapper.reserve(2 ** 24);
  const manager = new RegionManager(va, { overlap: "any" });
  const file = Mappable.memfd("owner", 64 * PAGE);
  const region = manager.newRegion({ name: "ram", range: MemoryRange.of(0, 64 * PAGE), priority: 0 });
  region.addMapping({ rangeInRegion: MemoryRange.of(0, 64 * PAGE), mappable: file });
  region.map();
  for (const port of ports) manager.serve(port);
  scope.postMessage("serving");
  const change = () => {
    region.unmap();
    region.map();
    setTimeout(change, 0);
  };
  change();
}

scope.onmessage = async ({ data: { role, ports, seed } }) => {
  const random = new Random(seed);
  const [port] = ports;
  try {
    if (role === "owner") return beOwner(ports);
    if (port === undefined) throw new Error("A client needs a port");
    if (role === "flood") return beFlood(port);
    await (role === "client" ? beClient(random, port) : beSyncClient(random, port));
  } catch (error) {
    scope.postMessage(`${error}`);
  }
};
