/**
 * What a client in another thread or process costs: a request, and accesses to guest memory, beside the owner's own.
 *
 * `measureClients` returns the rows; run by itself, this file prints them. The same file is the Worker and the process.
 *
 * @module
 */

import {
  type GuestMemory,
  Mappable,
  MemoryRange,
  ProcessClient,
  type RegionHandle,
  RegionManager,
  RegionManagerClient,
  SyncRegionManagerClient,
  VaMapper,
} from "membacking";

/** One line of the table. Times are medians, in nanoseconds. */
export interface ClientRow {
  /** A short name. */
  readonly name: string;
  /** What is done. */
  readonly title: string;
  /** By the owner itself. */
  readonly owner: number;
  /** By a client in a Worker; `null` where it makes no sense. */
  readonly client: number | null;
  /** By a synchronous client in a Worker, where that is another thing. */
  readonly sync: number | null;
  /** By a client in another process; `null` where it makes no sense. */
  readonly process: number | null;
}

const RAM = 2 ** 24;
const KIB = 1024;

/** How long each figure is measured for, in milliseconds, and in how many parts. */
interface Effort {
  readonly time: number;
  readonly rounds: number;
}

interface Job {
  readonly port: MessagePort;
  readonly sync: boolean;
  readonly effort: Effort;
}

/** The median time of one call in nanoseconds; `run(n)` does it n times. */
async function measure(run: (count: number) => void | Promise<void>, { time, rounds }: Effort): Promise<number> {
  let count = 1;
  let took = 0;
  while (took < time / rounds / 2 && count < 2 ** 24) {
    count *= 2;
    const start = performance.now();
    await run(count);
    took = performance.now() - start;
  }
  const times: number[] = [];
  for (let round = 0; round < rounds; round++) {
    const start = performance.now();
    await run(count);
    times.push((performance.now() - start) * 1e6 / count);
  }
  return times.toSorted((a, b) => a - b)[rounds >> 1] ?? NaN;
}

/** The accesses that are measured, by name. */
const ACCESSES: Readonly<Record<string, { title: string; run: (memory: GuestMemory, count: number) => void }>> = {
  "read-4": {
    title: "read 4 B",
    run(memory, count) {
      let sum = 0;
      for (let i = 0; i < count; i++) sum = (sum + memory.readUint32((i * 64) & 0xffff)) | 0;
      sink = sum;
    },
  },
  "write-4": {
    title: "write 4 B",
    run(memory, count) {
      for (let i = 0; i < count; i++) memory.writeUint32((i * 64) & 0xffff, i);
    },
  },
  "read-4k": {
    title: "read 4 KiB",
    run(memory, count) {
      for (let i = 0; i < count; i++) memory.readInto((i * 4 * KIB) & 0xffff, BYTES);
    },
  },
  "write-4k": {
    title: "write 4 KiB",
    run(memory, count) {
      for (let i = 0; i < count; i++) memory.write((i * 4 * KIB) & 0xffff, BYTES);
    },
  },
  "lock": {
    title: "lock and release 4 KiB",
    run(memory, count) {
      for (let i = 0; i < count; i++) memory.lock(LOCKED, { write: true })[Symbol.dispose]();
    },
  },
};

const BYTES = new Uint8Array(4 * KIB);
const LOCKED = MemoryRange.of(0x4000, 4 * KIB);
let sink = 0;

const REGION = MemoryRange.of(RAM, 0x10_000);
const PART = new MemoryRange(0, 0x1000);

/** Requests by a handle that waits for them. */
async function requests(region: RegionHandle, file: Mappable, effort: Effort): Promise<Record<string, number>> {
  return {
    "ask": await measure((count) => {
      for (let i = 0; i < count; i++) sink ^= region.mapParams === null ? 0 : 1;
    }, effort),
    "map-unmap": await measure((count) => {
      for (let i = 0; i < count; i++) {
        region.addMapping({ rangeInRegion: PART, mappable: file });
        region.removeMappings(PART);
      }
    }, effort),
  };
}

async function inWorker({ port, sync, effort }: Job): Promise<Record<string, number>> {
  if (sync) {
    using client = await SyncRegionManagerClient.connect(port);
    const region = client.newRegion({ name: "bench", range: REGION, priority: 0 });
    using file = client.memfd("bench", REGION.length);
    region.map();
    return await requests(region, file, effort);
  }
  using client = await RegionManagerClient.connect(port);
  return await asyncFigures(client, effort);
}

/** Everything, by a client that does not wait for answers. */
async function asyncFigures(
  client: RegionManagerClient | ProcessClient,
  effort: Effort,
): Promise<Record<string, number>> {
  const figures: Record<string, number> = {};
  for (const [name, { run }] of Object.entries(ACCESSES)) {
    figures[name] = await measure((count) => run(client.memory, count), effort);
  }
  const region = await client.newRegion({ name: "bench", range: REGION, priority: 0 });
  using file = await client.memfd("bench", REGION.length);
  await region.map();
  figures.ask = await measure(async (count) => {
    for (let i = 0; i < count; i++) sink ^= await region.mapParams === null ? 0 : 1;
  }, effort);
  figures["map-unmap"] = await measure(async (count) => {
    for (let i = 0; i < count; i++) {
      await region.addMapping({ rangeInRegion: PART, mappable: file });
      await region.removeMappings(PART);
    }
  }, effort);
  return figures;
}

async function worker(regions: RegionManager, sync: boolean, effort: Effort): Promise<Record<string, number>> {
  const { port1, port2 } = new MessageChannel();
  regions.serve(port1);
  const thread = new Worker(import.meta.url, { type: "module" });
  try {
    const { promise, resolve, reject } = Promise.withResolvers<Record<string, number>>();
    thread.onmessage = ({ data }: MessageEvent<Record<string, number>>) => resolve(data);
    thread.onerror = (event) => {
      event.preventDefault();
      reject(new Error(event.message));
    };
    const job: Job = { port: port2, sync, effort };
    thread.postMessage(job, [port2]);
    return await promise;
  } finally {
    thread.terminate();
  }
}

async function process(regions: RegionManager, effort: Effort): Promise<Record<string, number>> {
  using served = regions.serveProcess((fd) =>
    new Deno.Command(Deno.execPath(), {
      args: ["run", "--allow-ffi", "--no-check", import.meta.url, "process", String(fd), JSON.stringify(effort)],
      stdout: "piped",
      stderr: "inherit",
    }).spawn()
  );
  return JSON.parse(await new Response(served.child.stdout).text());
}

/** The owner's own figures. */
async function owned(regions: RegionManager, effort: Effort): Promise<Record<string, number>> {
  const figures: Record<string, number> = {};
  for (const [name, { run }] of Object.entries(ACCESSES)) {
    figures[name] = await measure((count) => run(regions.memory, count), effort);
  }
  using region = regions.newRegion({ name: "bench", range: REGION, priority: 0 });
  using file = Mappable.memfd("bench", REGION.length);
  region.map();
  return { ...figures, ...await requests(region, file, effort) };
}

/** A manager with some memory that has been touched. */
function newManager(stack: DisposableStack): RegionManager {
  const regions = stack.use(new RegionManager(stack.use(VaMapper.reserve(2 ** 30))));
  const file = stack.use(Mappable.memfd("bench", RAM));
  const region = regions.newRegion({ name: "ram", range: new MemoryRange(0, RAM), priority: 0 });
  region.addMapping({ rangeInRegion: new MemoryRange(0, RAM), mappable: file });
  region.map();
  regions.memory.fill(0, RAM, 1);
  return regions;
}

/** What `map-unmap` costs the owner while so many idle clients are served. */
async function withClients(clients: number, effort: Effort): Promise<number> {
  using stack = new DisposableStack();
  const regions = newManager(stack);
  for (let i = 0; i < clients; i++) {
    const { port1, port2 } = new MessageChannel();
    regions.serve(port1);
    stack.use(await RegionManagerClient.connect(port2));
  }
  return (await owned(regions, effort))["map-unmap"] ?? NaN;
}

/** Measures all rows, which takes some ten seconds; `quick`, some two. */
export async function measureClients(options: { quick?: boolean } = {}): Promise<ClientRow[]> {
  const effort: Effort = options.quick ? { time: 60, rounds: 3 } : { time: 500, rounds: 9 };
  using stack = new DisposableStack();
  const regions = newManager(stack);
  // Before there is a client, which is how most programs run.
  const owner = await owned(regions, effort);
  const client = await worker(regions, false, effort);
  const sync = await worker(regions, true, effort);
  const other = await process(regions, effort);
  const row = (name: string, title: string): ClientRow => ({
    ...{ name, title, owner: owner[name] ?? NaN },
    ...{ client: client[name] ?? null, sync: sync[name] ?? null, process: other[name] ?? null },
  });
  const rows = [
    row("ask", "a request that changes nothing"),
    row("map-unmap", "map and unmap 4 KiB"),
    ...Object.entries(ACCESSES).map(([name, { title }]) => row(name, title)),
  ];
  for (const clients of [1, 8]) {
    const title = `map and unmap 4 KiB while ${clients} ${clients === 1 ? "client is" : "clients are"} served`;
    const time = await withClients(clients, effort);
    rows.push({ name: `map-unmap-${clients}`, title, owner: time, client: null, sync: null, process: null });
  }
  return rows;
}

if ("WorkerGlobalScope" in globalThis) {
  const scope = globalThis as unknown as {
    onmessage: (event: MessageEvent<Job>) => void;
    postMessage(figures: Record<string, number>): void;
  };
  scope.onmessage = async ({ data }) => scope.postMessage(await inWorker(data));
} else if (import.meta.main && Deno.args[0] === "process") {
  using client = await ProcessClient.connect(Number(Deno.args[1]));
  console.log(JSON.stringify(await asyncFigures(client, JSON.parse(Deno.args[2] ?? ""))));
} else if (import.meta.main) {
  const rows = await measureClients({ quick: Deno.args.includes("--quick") });
  if (Deno.args.includes("--json")) {
    console.log(JSON.stringify(rows));
    Deno.exit(0);
  }
  const time = (value: number | null) =>
    value === null ? "" : value < 2000 ? `${value.toFixed(1)} ns` : `${(value / 1000).toFixed(1)} µs`;
  console.table(
    Object.fromEntries(rows.map(({ title, owner, client, sync, process }) => [
      title,
      { owner: time(owner), client: time(client), "synchronous client": time(sync), process: time(process) },
    ])),
  );
  Deno.exit(0);
}
