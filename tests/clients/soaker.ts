/**
 * What a Worker or a process of the soak test does: reads, writes, locks and changes memory at random, and checks
 * everything it sees.
 *
 * @module
 */

import {
  type ClientRegionHandle,
  GuestMemoryError,
  type LockedMemory,
  MappingError,
  MemoryLockedError,
  MemoryRange,
  type ProcessClient,
  type RegionHandle,
  type RegionManagerClient,
  type SyncRegionManagerClient,
} from "membacking";
import {
  BOARD,
  CHANGING,
  NOTHING,
  randomFrom,
  READ_ONLY,
  SHARED,
  type SoakReport,
  type SoakStart,
  stamp,
  WINDOW,
  WINDOW_PAGES,
  WINDOWS,
} from "./soak_layout.ts";
import { PAGE } from "../support/units.ts";

/** How long to work between two turns of the event loop, in milliseconds. */
const SLICE = 3;

function fail(what: string): never {
  throw new Error(what);
}

/** Any kind of client. */
export type SoakClient = RegionManagerClient | SyncRegionManagerClient | ProcessClient;

class Soaker {
  readonly counts: Record<string, number> = {};
  readonly #client: SoakClient;
  readonly #board: LockedMemory;
  readonly #shared: Int32Array;
  readonly #index: number;
  readonly #ownAt: number;
  readonly #random: (below: number) => number;
  readonly #bytes = new Uint8Array(WINDOW);
  readonly #locks: { window: number; locked: LockedMemory; model: number }[] = [];
  #region: ClientRegionHandle | RegionHandle | undefined;
  #isMapped = false;
  /** What this Worker has written to its own region. */
  readonly #own = new Map<number, number>();

  constructor(client: SoakClient, start: SoakStart) {
    this.#client = client;
    this.#board = client.memory.lock(BOARD, { write: true });
    this.#shared = new Int32Array(this.#board.bytes.buffer);
    this.#index = start.index;
    this.#ownAt = start.own;
    this.#random = randomFrom(start.seed);
  }

  get stopped(): boolean {
    if (this.#board.bytes.length === 0) fail("It was cut off: its locks are gone");
    return Atomics.load(this.#shared, SHARED.stop) !== 0;
  }

  /** Does one random thing. A promise is returned where it has to be awaited. */
  step(): Promise<void> | void {
    if (this.#board.bytes.length === 0) return;
    Atomics.add(this.#shared, SHARED.progress + this.#index, 1);
    const choice = this.#random(100);
    if (choice < 35) return this.#readWindow();
    if (choice < 60) return this.#readWord();
    if (choice < 75) return this.#writeWord();
    if (choice < 83) return this.#lock();
    if (choice < 95) return this.#checkLocks();
    return this.#changeOwn();
  }

  #count(what: string): void {
    this.counts[what] = (this.counts[what] ?? 0) + 1;
  }

  /** Reads all of a window in one access: it is all there, of one moment, or all not. */
  #readWindow(): void {
    const window = this.#random(WINDOWS);
    try {
      this.#client.memory.readInto(window * WINDOW, this.#bytes);
    } catch (error) {
      if (!(error instanceof GuestMemoryError) || error.kind !== "not-mapped") throw error;
      if (error.gpa !== window * WINDOW) fail(`The error is about 0x${error.gpa.toString(16)}`);
      return this.#count("window not there");
    }
    this.#checkStamps(this.#bytes, `window ${window}`);
    this.#count("window read");
  }

  #checkStamps(bytes: Uint8Array, what: string): number {
    const data = new DataView(bytes.buffer, bytes.byteOffset);
    const first = data.getUint32(0, true);
    for (let page = 1; page < WINDOW_PAGES; page++) {
      const found = data.getUint32(page * PAGE, true);
      if (found !== first + page) {
        fail(`${what} is torn: page 0 is ${first.toString(16)}, page ${page} is ${found.toString(16)}`);
      }
    }
    return first;
  }

  #readWord(): void {
    const [window, page] = [this.#random(WINDOWS), this.#random(WINDOW_PAGES)];
    try {
      const found = this.#client.memory.readUint32(window * WINDOW + page * PAGE);
      if (found < stamp(0, 0) || found % 0x1_0000 < page) fail(`Window ${window} has ${found.toString(16)} at ${page}`);
      this.#count("word read");
    } catch (error) {
      if (!(error instanceof GuestMemoryError) || error.kind !== "not-mapped") throw error;
      this.#count("word not there");
    }
  }

  /** Writes to a place that nobody looks at: it must work, or say why not. */
  #writeWord(): void {
    const at = this.#random(WINDOWS) * WINDOW + this.#random(WINDOW_PAGES) * PAGE + 8 + 4 * this.#index;
    try {
      this.#client.memory.writeUint32(at, this.#random(0x1_0000_0000));
      this.#count("word written");
    } catch (error) {
      if (!(error instanceof GuestMemoryError) || error.kind === "out-of-range") throw error;
      this.#count(`word ${error.kind}`);
    }
  }

  #lock(): void {
    if (this.#locks.length >= 4) return this.#release(this.#random(this.#locks.length));
    const window = this.#random(WINDOWS);
    const write = this.#random(2) === 0;
    try {
      const locked = this.#client.memory.lock(MemoryRange.of(window * WINDOW, WINDOW), { write });
      // The owner may be about to write down what it has done; it does nothing else to a locked window.
      let model = CHANGING;
      while (model === CHANGING) model = Atomics.load(this.#shared, SHARED.model + window);
      this.#locks.push({ window, locked, model });
      if (write && model >= READ_ONLY) fail(`Window ${window} was locked for writing and may not be written`);
      this.#count("locked");
    } catch (error) {
      if (error instanceof MappingError) return this.#count("lock of a file that may be truncated");
      if (!(error instanceof GuestMemoryError)) throw error;
      this.#count(`lock ${error.kind}`);
    }
  }

  #release(index: number): void {
    const [held] = this.#locks.splice(index, 1);
    held?.locked[Symbol.dispose]();
    this.#count("released");
  }

  #checkLocks(): void {
    for (const { window, locked, model } of this.#locks) {
      const first = this.#checkStamps(locked.bytes, `locked window ${window}`);
      if (model === NOTHING) fail(`Window ${window} is locked, and shows nothing`);
      if (first !== model % READ_ONLY) fail(`Locked window ${window} shows ${first}, not ${model % READ_ONLY}`);
      locked.bytes[8 + 4 * this.#index] = this.#random(256);
      this.#count("lock checked");
    }
    if (this.#locks.length > 0 && this.#random(4) === 0) this.#release(0);
  }

  /** Changes the region that this Worker has of its own, or looks at it. */
  async #changeOwn(): Promise<void> {
    const range = MemoryRange.of(this.#ownAt, WINDOW);
    const client = this.#client;
    if (this.#region === undefined) {
      this.#region = await client.newRegion({ name: `worker ${this.#index}`, range, priority: 1 });
      using file = await client.memfd("own", WINDOW);
      await this.#region.addMapping({ rangeInRegion: new MemoryRange(0, WINDOW), mappable: file });
      this.#own.clear();
      this.#isMapped = false;
      return this.#count("own region made");
    }
    const region = this.#region;
    switch (this.#random(8)) {
      case 0:
        await region.map();
        this.#isMapped = true;
        return this.#count("own region mapped");
      case 1:
        await region.unmap();
        this.#isMapped = false;
        return this.#count("own region unmapped");
      case 2: {
        this.#region = undefined;
        if (region instanceof Object && this.#random(2) === 0) await region.teardown();
        else region[Symbol.dispose]();
        return this.#count("own region removed");
      }
      default: {
        const at = 4 * this.#random(WINDOW / 4);
        try {
          if (this.#random(2) === 0) {
            const value = this.#random(0x1_0000_0000);
            client.memory.writeUint32(range.start + at, value);
            this.#own.set(at, value);
          } else {
            const found = client.memory.readUint32(range.start + at);
            const expected = this.#own.get(at) ?? 0;
            if (found !== expected) fail(`Own region has ${found} at ${at}, not ${expected}`);
          }
          if (!this.#isMapped) fail("The own region is unmapped, and can be accessed");
          return this.#count("own region accessed");
        } catch (error) {
          if (!(error instanceof GuestMemoryError) || this.#isMapped) throw error;
          return this.#count("own region not there");
        }
      }
    }
  }

  releaseAll(): void {
    while (this.#locks.length > 0) this.#release(0);
    this.#board[Symbol.dispose]();
  }
}

/** Does random things until it is told to stop, and says what came of it. */
export async function soak(client: SoakClient, start: SoakStart): Promise<SoakReport> {
  try {
    const soaker = new Soaker(client, start);
    while (!soaker.stopped) {
      const end = performance.now() + SLICE;
      while (performance.now() < end) {
        const pending = soaker.step();
        if (pending !== undefined) {
          await pending.catch((error) => {
            if (!(error instanceof MemoryLockedError)) throw error;
          });
        }
      }
      // Deno stops a Worker between turns of its event loop only.
      await new Promise((resolve) => setTimeout(resolve, 0));
    }
    soaker.releaseAll();
    client[Symbol.dispose]();
    return { counts: soaker.counts };
  } catch (error) {
    return { failure: error instanceof Error ? error.stack ?? error.message : String(error) };
  }
}
