/**
 * The program of the soak test: changes memory under eight Workers and three processes that use it, and ends some of
 * them at random moments, or has a process stand still. Run it in a process of its own, so that a crash is a failing test: soak_owner.ts SECONDS SEED
 *
 * @module
 */

import { Mappable, MemoryLockedError, MemoryRange, type RegionHandle, RegionManager, VaMapper } from "membacking";
import { mappings } from "../support/proc.ts";
import {
  BOARD,
  CHANGING,
  FILE_PAGES,
  FILES,
  LENGTH,
  NOTHING,
  OWN_AT,
  OWN_WINDOWS,
  PROCESSES,
  randomFrom,
  READ_ONLY,
  SHARED,
  type SoakReport,
  type SoakStart,
  type SoakWorkerStart,
  stamp,
  WINDOW,
  WINDOW_PAGES,
  WINDOWS,
  WORKERS,
} from "./soak_layout.ts";
import { PAGE } from "../support/units.ts";

const [seconds = 3, seed = 1] = Deno.args.map(Number);
const random = randomFrom(seed);
/** The words of `SHARED`, on the board. */
let shared = new Int32Array(0);
const nap = new Int32Array(new SharedArrayBuffer(4));
/** For how long a Worker or a process may stand still, in milliseconds. */
const PATIENCE = 20_000;

/** A file whose pages have their stamps. */
function stampedFile(file: number): Mappable {
  const mappable = Mappable.memfd(`soak ${file}`, FILE_PAGES * PAGE, { seal: file < FILES - 1 });
  const data = new DataView(new ArrayBuffer(4));
  for (let page = 0; page < FILE_PAGES; page++) {
    data.setUint32(0, stamp(file, page), true);
    mappable.write(page * PAGE, new Uint8Array(data.buffer));
  }
  return mappable;
}

/** How many Workers and processes there have been. */
let started = 0;

/** Where the next one has its own region. */
function nextOwn(): number {
  return OWN_AT + (started++ % OWN_WINDOWS) * WINDOW;
}

/** A Worker or a process, and what became of it. */
abstract class Soaked {
  abstract readonly report: Promise<SoakReport>;
  #seen = -1;
  #since = performance.now();

  constructor(readonly index: number) {}

  /** Ends it, wherever it is. */
  abstract end(): void;

  /** Throws if it has stood still for too long. */
  watch(): void {
    const now = Atomics.load(shared, SHARED.progress + this.index);
    if (now !== this.#seen) {
      this.#seen = now;
      this.#since = performance.now();
    } else if (performance.now() - this.#since > PATIENCE) {
      throw new Error(`Number ${this.index} stands still after ${now} steps`);
    }
  }
}

class SoakedWorker extends Soaked {
  readonly report: Promise<SoakReport>;
  readonly #worker: Worker;

  constructor(regions: RegionManager, index: number, seed: number) {
    super(index);
    const { port1, port2 } = new MessageChannel();
    regions.serve(port1);
    this.#worker = new Worker(new URL("./soak_worker.ts", import.meta.url), { type: "module" });
    const { promise, resolve } = Promise.withResolvers<SoakReport>();
    this.report = promise;
    this.#worker.onmessage = ({ data }: MessageEvent<SoakReport>) => resolve(data);
    this.#worker.onerror = (event) => {
      event.preventDefault();
      resolve({ failure: event.message });
    };
    const start: SoakWorkerStart = { port: port2, index, own: nextOwn(), seed, sync: index % 2 === 1 };
    this.#worker.postMessage(start, [port2]);
  }

  end(): void {
    this.#worker.terminate();
  }
}

/** For how long the owner waits for a process, in milliseconds. */
const DEADLINE = 2000;

class SoakedProcess extends Soaked {
  readonly report: Promise<SoakReport>;
  readonly #child: Deno.ChildProcess;
  readonly #served: Disposable;
  #isStopped = false;
  #isExpendable = false;

  constructor(regions: RegionManager, index: number, seed: number) {
    super(index);
    const start: SoakStart = { index, own: nextOwn(), seed };
    const served = regions.serveProcess((fd) =>
      new Deno.Command(Deno.execPath(), {
        args: [
          "run",
          "--allow-ffi",
          "--no-check",
          new URL("./soak_process.ts", import.meta.url).href,
          String(fd),
          JSON.stringify(start),
        ],
        stdin: "null",
        stdout: "piped",
        stderr: "inherit",
      }).spawn(), { deadline: DEADLINE });
    this.#served = served;
    this.#child = served.child;
    this.report = this.#readReport();
  }

  /** Has it stop for a while, wherever it is. In the middle of an access, it is cut off for that. */
  pause(): void {
    this.#isExpendable = true;
    this.#signal(this.#isStopped ? "SIGCONT" : "SIGSTOP");
    this.#isStopped = !this.#isStopped;
  }

  resume(): void {
    if (this.#isStopped) this.pause();
  }

  end(): void {
    this.#isExpendable = true;
    this.#signal("SIGKILL");
  }

  override watch(): void {
    if (!this.#isStopped && !this.#isExpendable) super.watch();
  }

  #signal(signal: Deno.Signal): void {
    try {
      this.#child.kill(signal);
    } catch {
      // It has ended.
    }
  }

  async #readReport(): Promise<SoakReport> {
    const text = await new Response(this.#child.stdout).text();
    const { signal } = await this.#child.status;
    this.#served[Symbol.dispose]();
    if (signal === "SIGKILL") return { counts: { "processes killed at random moments": 1 } };
    if (signal !== null) return { failure: `Process ${this.index} ended by ${signal}` };
    const report: SoakReport = JSON.parse(text || '{"failure":"no report"}');
    const wasCutOff = "failure" in report && /was cut off|no longer served/.test(report.failure);
    return this.#isExpendable && wasCutOff ? { counts: { "processes stopped, and cut off": 1 } } : report;
  }
}

/** A window: two regions over one range, of which the upper one can be unmapped to show the lower. */
interface Window {
  readonly upper: RegionHandle;
  readonly lower: RegionHandle;
  /** What each shows where it is mapped: the stamp of the first page; 0 for nothing. */
  upperShows: number;
  lowerShows: number;
  upperMapped: boolean;
  lowerMapped: boolean;
  writable: boolean;
}

function newWindow(regions: RegionManager, index: number): Window {
  const range = MemoryRange.of(index * WINDOW, WINDOW);
  return {
    upper: regions.newRegion({ name: `upper ${index}`, range, priority: 2 }),
    lower: regions.newRegion({ name: `lower ${index}`, range, priority: 1 }),
    upperShows: 0,
    lowerShows: 0,
    upperMapped: false,
    lowerMapped: false,
    writable: true,
  };
}

function shownBy(window: Window): number {
  const { upperMapped, upperShows, lowerMapped, lowerShows, writable } = window;
  if (upperMapped) return upperShows === 0 ? NOTHING : upperShows + (writable ? 0 : READ_ONLY);
  return lowerMapped && lowerShows !== 0 ? lowerShows : NOTHING;
}

const counts: Record<string, number> = {};
function count(what: string): void {
  counts[what] = (counts[what] ?? 0) + 1;
}

/** Makes one random change to a window. */
function change(window: Window, files: readonly Mappable[]): void {
  const whole = new MemoryRange(0, WINDOW);
  const file = random(FILES);
  const page = random(FILE_PAGES - WINDOW_PAGES);
  const mappable = files[file];
  if (mappable === undefined) throw new Error("There is such a file");
  const mapping = { rangeInRegion: whole, mappable, fileOffset: page * PAGE };
  switch (random(9)) {
    case 0:
    case 1:
    case 2:
      window.upper.addMapping(mapping);
      window.upperShows = stamp(file, page);
      return count("replaced");
    case 3:
      window.lower.addMapping(mapping);
      window.lowerShows = stamp(file, page);
      return count("replaced below");
    case 4:
      window.upper.removeMappings(whole);
      window.upperShows = 0;
      return count("mapping removed");
    case 5:
      window.upper.unmap();
      window.upperMapped = false;
      return count("switched down");
    case 6:
      window.lower.map();
      window.lowerMapped = true;
      return count("mapped below");
    default: {
      const writable = random(3) > 0;
      window.upper.map({ writable });
      window.upperMapped = true;
      window.writable = writable;
      return count("mapped");
    }
  }
}

function tryChange(windows: readonly Window[], files: readonly Mappable[]): void {
  const index = random(WINDOWS);
  const window = windows[index];
  if (window === undefined) throw new Error("There is such a window");
  Atomics.store(shared, SHARED.model + index, CHANGING);
  try {
    change(window, files);
  } catch (error) {
    if (!(error instanceof MemoryLockedError)) throw error;
    count("refused: locked");
  } finally {
    Atomics.store(shared, SHARED.model + index, shownBy(window));
  }
}

/** Two windows changed in one request. */
function tryBatch(regions: RegionManager, windows: readonly Window[]): void {
  const [a, b] = [random(WINDOWS), random(WINDOWS)];
  const [first, second] = [windows[a], windows[b]];
  if (a === b || first === undefined || second === undefined) return;
  Atomics.store(shared, SHARED.model + a, CHANGING);
  Atomics.store(shared, SHARED.model + b, CHANGING);
  try {
    regions.batch(() => {
      first.upper.unmap();
      second.upper.unmap();
    });
    first.upperMapped = second.upperMapped = false;
    count("batches");
  } catch (error) {
    if (!(error instanceof MemoryLockedError)) throw error;
    count("batch refused: locked");
  } finally {
    Atomics.store(shared, SHARED.model + a, shownBy(first));
    Atomics.store(shared, SHARED.model + b, shownBy(second));
  }
}

/** How many descriptors of memfds are open: those of Deno's own event loops come and go with their threads. */
function openMemfds(): number {
  let count = 0;
  for (const { name } of Deno.readDirSync("/proc/self/fd")) {
    try {
      if (Deno.readLinkSync(`/proc/self/fd/${name}`).startsWith("/memfd:")) count++;
    } catch {
      // The descriptor of the directory itself.
    }
  }
  return count;
}

async function soak(): Promise<void> {
  using va = VaMapper.reserve(LENGTH);
  const files = Array.from({ length: FILES }, (_, file) => stampedFile(file));
  const fdsBefore = openMemfds();
  {
    using regions = new RegionManager(va);
    const windows = Array.from({ length: WINDOWS }, (_, index) => newWindow(regions, index));
    const boardFile = Mappable.memfd("board", PAGE);
    const board = regions.newRegion({ name: "board", range: BOARD, priority: 3 });
    board.addMapping({ rangeInRegion: new MemoryRange(0, PAGE), mappable: boardFile });
    board.map();
    boardFile[Symbol.dispose]();
    const boardLock = regions.memory.lock(BOARD, { write: true });
    shared = new Int32Array(boardLock.bytes.buffer);

    const all: Soaked[] = [];
    const reports: SoakReport[] = [];
    const failed: string[] = [];
    const start = (index: number): Soaked => {
      const soaked = index < WORKERS
        ? new SoakedWorker(regions, index, random(2 ** 31))
        : new SoakedProcess(regions, index, random(2 ** 31));
      all[index] = soaked;
      soaked.report.then((report) => {
        if ("failure" in report) failed.push(report.failure);
        else reports.push(report);
        // A process that has ended is replaced while there is time.
        if (index >= WORKERS && all[index] === soaked && Atomics.load(shared, SHARED.stop) === 0) start(index);
      });
      return soaked;
    };
    for (let index = 0; index < WORKERS + PROCESSES; index++) start(index);

    const end = performance.now() + seconds * 1000;
    while (performance.now() < end && failed.length === 0) {
      const slice = performance.now() + 4;
      while (performance.now() < slice) {
        if (random(10) === 0) tryBatch(regions, windows);
        else tryChange(windows, files);
        if (random(4) === 0) Atomics.wait(nap, 0, 0, random(3) / 10);
      }
      for (const soaked of all) soaked.watch();
      const chosen = all[random(2) === 0 ? random(WORKERS) : WORKERS + random(PROCESSES)];
      if (chosen instanceof SoakedWorker && random(50) === 0) {
        chosen.end();
        start(chosen.index);
        count("Workers ended at random moments");
      } else if (chosen instanceof SoakedProcess) {
        const choice = random(40);
        if (choice < 2) chosen.end();
        else if (choice < 4) chosen.pause();
      }
      await new Promise((resolve) => setTimeout(resolve, 0));
    }
    Atomics.store(shared, SHARED.stop, 1);
    for (const soaked of all) if (soaked instanceof SoakedProcess) soaked.resume();
    const deadline = setTimeout(() => {
      console.error("The Workers and processes did not stop");
      Deno.exit(1);
    }, PATIENCE);
    await Promise.all(all.map(({ report }) => report));
    clearTimeout(deadline);
    if (failed.length > 0) throw new Error(failed.join("\n"));
    for (const report of reports) {
      if ("failure" in report) throw new Error(report.failure);
      for (const [what, times] of Object.entries(report.counts)) counts[what] = (counts[what] ?? 0) + times;
    }
    for (const soaked of all) soaked.end();
    boardLock[Symbol.dispose]();

    // The dead leave nothing behind: no regions, no locks.
    const patience = performance.now() + 5000;
    let left: unknown;
    do {
      await new Promise((resolve) => setTimeout(resolve, 50));
      const { regions: all, locks } = regions.inspect();
      left = [...all.filter(({ name }) => name.startsWith("worker")), ...locks];
    } while ((left as unknown[]).length > 0 && performance.now() < patience);
    if ((left as unknown[]).length > 0) throw new Error(`Left behind: ${JSON.stringify(left)}`);
  }
  const fds = openMemfds();
  if (fds > fdsBefore) throw new Error(`${fds - fdsBefore} more file descriptors than before`);
  for (const file of files) file[Symbol.dispose]();
  const inReservation = mappings(va.base, va.base + va.length);
  if (inReservation.some(({ file }) => file !== "")) throw new Error("Files are still mapped");
}

await soak();
console.log(JSON.stringify(counts));
Deno.exit(0);
