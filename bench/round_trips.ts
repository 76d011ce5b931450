/**
 * What a request from another thread or process costs, beside the least that one can cost: a bare round trip of
 * `Atomics.wait` and `Atomics.waitAsync`, or of `Atomics.waitAsync` on both sides for a client that returns to its event
 * loop. All of it in one run, in turns, since only the ratios mean anything.
 *
 * `deno run -A bench/round_trips.ts [--quick]`. The same file is the Worker and the process.
 *
 * @module
 */

import {
  Mappable,
  MemoryRange,
  ProcessClient,
  RegionManager,
  RegionManagerClient,
  SyncRegionManagerClient,
  VaMapper,
} from "membacking";

/** Medians in microseconds. */
export interface RoundTrip {
  /** One after the other. */
  readonly hot: number;
  /** After a millisecond in which nothing was asked. */
  readonly idle: number;
}

/** What `measureRoundTrips` finds. */
export interface RoundTrips {
  /** The floor of a synchronous client: a word, a thread that waits for it, and an event loop that does. */
  readonly bare: RoundTrip;
  /** The floor of a client that does not wait: two event loops, each of which waits for a word. */
  readonly bareAsync: RoundTrip;
  /** `mapParams`, which changes nothing, by each kind of client. */
  readonly ask: { readonly sync: RoundTrip; readonly async: RoundTrip; readonly process: RoundTrip };
  /** Mapping and unmapping 4 KiB, two requests, by each kind of client; `owner` by the owner itself. */
  readonly pair: {
    readonly owner: number;
    readonly sync: number;
    readonly async: number;
    readonly process: number;
  };
}

const RAM = 2 ** 24;
const REGION = MemoryRange.of(RAM, 0x10_000);
const PART = new MemoryRange(0, 0x1000);

/** Words of the bare round trip. */
const WORDS = { asked: 0, answered: 16, stop: 32, count: 33 } as const;

interface Job {
  readonly kind: "sync" | "async";
  readonly port: MessagePort;
  readonly words: SharedArrayBuffer;
  readonly rounds: number;
}

interface Times {
  readonly bareHot: number[];
  readonly bareIdle: number[];
  readonly askHot: number[];
  readonly askIdle: number[];
  readonly pair: number[];
}

const newTimes = (): Times => ({ bareHot: [], bareIdle: [], askHot: [], askIdle: [], pair: [] });

function median(times: readonly number[]): number {
  return times.toSorted((a, b) => a - b)[times.length >> 1] ?? NaN;
}

/** How many of each are made in a turn. */
const TURN = 200;
const IDLE_TURN = 20;
const nap = new Int32Array(new SharedArrayBuffer(4));

function timed(act: () => void, times: number[]): void {
  const start = performance.now();
  act();
  times.push((performance.now() - start) * 1000);
}

async function timedAsync(act: () => Promise<unknown>, times: number[]): Promise<void> {
  const start = performance.now();
  await act();
  times.push((performance.now() - start) * 1000);
}

async function inSyncWorker({ port, words: buffer, rounds }: Job): Promise<Times> {
  const times = newTimes();
  const words = new Int32Array(buffer);
  using client = await SyncRegionManagerClient.connect(port);
  const region = client.newRegion({ name: "bench", range: REGION, priority: 0 });
  using file = client.memfd("bench", REGION.length);
  region.map();
  let asked = 0;
  const bare = () => {
    asked++;
    Atomics.store(words, WORDS.asked, asked);
    Atomics.notify(words, WORDS.asked);
    while (Atomics.load(words, WORDS.answered) !== asked) Atomics.wait(words, WORDS.answered, asked - 1);
  };
  const ask = () => void region.mapParams;
  for (let round = 0; round < rounds + 1; round++) {
    const into = round === 0 ? newTimes() : times; // The first is to warm up.
    for (let i = 0; i < TURN; i++) timed(bare, into.bareHot);
    for (let i = 0; i < TURN; i++) timed(ask, into.askHot);
    for (let i = 0; i < TURN; i++) {
      timed(() => {
        region.addMapping({ rangeInRegion: PART, mappable: file });
        region.removeMappings(PART);
      }, into.pair);
    }
    for (let i = 0; i < IDLE_TURN; i++) {
      Atomics.wait(nap, 0, 0, 1);
      timed(bare, into.bareIdle);
      Atomics.wait(nap, 0, 0, 1);
      timed(ask, into.askIdle);
    }
  }
  Atomics.store(words, WORDS.stop, 1);
  bare();
  return times;
}

async function asyncTimes(
  client: RegionManagerClient | ProcessClient,
  rounds: number,
  buffer: SharedArrayBuffer | null,
): Promise<Times> {
  const times = newTimes();
  const words = buffer === null ? null : new Int32Array(buffer);
  let asked = 0;
  const bare = async () => {
    if (words === null) return;
    asked++;
    // It waits before it asks, which is the quickest.
    const wait = Atomics.waitAsync(words, WORDS.answered, asked - 1);
    Atomics.store(words, WORDS.asked, asked);
    Atomics.notify(words, WORDS.asked);
    if (wait.async) await wait.value;
  };
  const region = await client.newRegion({ name: "bench", range: REGION, priority: 0 });
  using file = await client.memfd("bench", REGION.length);
  await region.map();
  for (let round = 0; round < rounds + 1; round++) {
    const into = round === 0 ? newTimes() : times;
    for (let i = 0; i < TURN; i++) await timedAsync(bare, into.bareHot);
    for (let i = 0; i < TURN; i++) await timedAsync(() => region.mapParams, into.askHot);
    for (let i = 0; i < TURN; i++) {
      await timedAsync(async () => {
        await region.addMapping({ rangeInRegion: PART, mappable: file });
        await region.removeMappings(PART);
      }, into.pair);
    }
    for (let i = 0; i < IDLE_TURN; i++) {
      Atomics.wait(nap, 0, 0, 1);
      await timedAsync(bare, into.bareIdle);
      Atomics.wait(nap, 0, 0, 1);
      await timedAsync(() => region.mapParams, into.askIdle);
    }
  }
  if (words !== null) Atomics.store(words, WORDS.stop, 1);
  await bare();
  return times;
}

/** The owner's half of the bare round trip. */
async function answerBare(words: Int32Array): Promise<void> {
  for (let seen = 0; Atomics.load(words, WORDS.stop) === 0;) {
    const wait = Atomics.waitAsync(words, WORDS.asked, seen);
    if (wait.async) await wait.value;
    seen = Atomics.load(words, WORDS.asked);
    Atomics.store(words, WORDS.answered, seen);
    Atomics.notify(words, WORDS.answered);
  }
}

async function inWorker(regions: RegionManager, kind: "sync" | "async", rounds: number): Promise<Times> {
  const { port1, port2 } = new MessageChannel();
  regions.serve(port1);
  const thread = new Worker(import.meta.url, { type: "module" });
  try {
    const { promise, resolve, reject } = Promise.withResolvers<Times>();
    thread.onmessage = ({ data }: MessageEvent<Times>) => resolve(data);
    thread.onerror = (event) => {
      event.preventDefault();
      reject(new Error(event.message));
    };
    const words = new SharedArrayBuffer(4 * WORDS.count);
    void answerBare(new Int32Array(words));
    const job: Job = { kind, port: port2, words, rounds };
    thread.postMessage(job, [port2]);
    return await promise;
  } finally {
    thread.terminate();
  }
}

async function inProcess(regions: RegionManager, rounds: number): Promise<Times> {
  using served = regions.serveProcess((fd) =>
    new Deno.Command(Deno.execPath(), {
      args: ["run", "--allow-ffi", "--no-check", import.meta.url, "process", String(fd), String(rounds)],
      stdout: "piped",
      stderr: "inherit",
    }).spawn()
  );
  return JSON.parse(await new Response(served.child.stdout).text());
}

/** Measures all of it, which takes some ten seconds; `quick`, some two. */
export async function measureRoundTrips(options: { quick?: boolean } = {}): Promise<RoundTrips> {
  const rounds = options.quick ? 3 : 25;
  using stack = new DisposableStack();
  const regions = stack.use(new RegionManager(stack.use(VaMapper.reserve(2 ** 30))));
  const file = stack.use(Mappable.memfd("bench", RAM));
  const ram = regions.newRegion({ name: "ram", range: new MemoryRange(0, RAM), priority: 0 });
  ram.addMapping({ rangeInRegion: new MemoryRange(0, RAM), mappable: file });
  ram.map();
  const sync = await inWorker(regions, "sync", rounds);
  const async = await inWorker(regions, "async", rounds);
  const process = await inProcess(regions, rounds);
  // The owner's own time, while a client is served as it is for the others.
  const { port1, port2 } = new MessageChannel();
  regions.serve(port1);
  stack.use(await RegionManagerClient.connect(port2));
  const region = regions.newRegion({ name: "bench", range: REGION, priority: 0 });
  region.map();
  const owner: number[] = [];
  for (let i = 0; i < TURN * (rounds + 1); i++) {
    const into = i < TURN ? [] : owner;
    timed(() => {
      region.addMapping({ rangeInRegion: PART, mappable: file });
      region.removeMappings(PART);
    }, into);
  }
  const ask = ({ askHot, askIdle }: Times): RoundTrip => ({ hot: median(askHot), idle: median(askIdle) });
  return {
    bare: { hot: median(sync.bareHot), idle: median(sync.bareIdle) },
    bareAsync: { hot: median(async.bareHot), idle: median(async.bareIdle) },
    ask: { sync: ask(sync), async: ask(async), process: ask(process) },
    pair: {
      owner: median(owner),
      sync: median(sync.pair),
      async: median(async.pair),
      process: median(process.pair),
    },
  };
}

/**
 * The rows of the table: what, then microseconds and times the floor, hot and after a pause. The floor is the bare round
 * trip of a client's kind, and for a pair of requests two of them and the owner's own time; for another process, that of
 * a thread that waits.
 */
export function roundTripRows({ bare, bareAsync, ask, pair }: RoundTrips): string[][] {
  const trip = (title: string, { hot, idle }: RoundTrip, floor = bare) => [
    title,
    hot.toFixed(1),
    (hot / floor.hot).toFixed(2),
    idle.toFixed(1),
    (idle / floor.idle).toFixed(2),
  ];
  const two = (title: string, time: number, floor = bare) => [
    title,
    time.toFixed(1),
    (time / (2 * floor.hot + pair.owner)).toFixed(2),
    "",
    "",
  ];
  return [
    trip("bare: Atomics.wait and Atomics.waitAsync", bare),
    trip("a request that changes nothing, SyncRegionManagerClient", ask.sync),
    trip("bare: Atomics.waitAsync on both sides", bareAsync, bareAsync),
    trip("a request that changes nothing, RegionManagerClient", ask.async, bareAsync),
    trip("a request that changes nothing, ProcessClient", ask.process),
    ["map and unmap 4 KiB, by the owner", pair.owner.toFixed(1), "", "", ""],
    two("map and unmap 4 KiB, SyncRegionManagerClient", pair.sync),
    two("map and unmap 4 KiB, RegionManagerClient", pair.async, bareAsync),
    two("map and unmap 4 KiB, ProcessClient", pair.process),
  ];
}

if ("WorkerGlobalScope" in globalThis) {
  const scope = globalThis as unknown as {
    onmessage: (event: MessageEvent<Job>) => void;
    postMessage(times: Times): void;
  };
  scope.onmessage = async ({ data: job }) => {
    if (job.kind === "sync") return scope.postMessage(await inSyncWorker(job));
    using client = await RegionManagerClient.connect(job.port);
    scope.postMessage(await asyncTimes(client, job.rounds, job.words));
  };
} else if (import.meta.main && Deno.args[0] === "process") {
  using client = await ProcessClient.connect(Number(Deno.args[1]));
  console.log(JSON.stringify(await asyncTimes(client, Number(Deno.args[2]), null)));
} else if (import.meta.main) {
  const found = await measureRoundTrips({ quick: Deno.args.includes("--quick") });
  if (Deno.args.includes("--json")) {
    console.log(JSON.stringify(found));
    Deno.exit(0);
  }
  const rows = roundTripRows(found);
  console.table(Object.fromEntries(rows.map(([title = "", hot, hotRatio, idle, idleRatio]) => [
    title,
    { "hot, us": hot, "times the floor": hotRatio, "after 1 ms, us": idle, "times the floor then": idleRatio },
  ])));
  Deno.exit(0);
}
