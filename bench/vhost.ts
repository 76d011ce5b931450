/**
 * What a vhost-user back end costs: QEMU's storage daemon with our front end, beside one in C that does nothing but send
 * the same messages and drive the same ring.
 *
 * `measureVhost` returns the rows; run by itself, this file prints them.
 *
 * @module
 */

import { GuestMemoryManager, type LockedMemory, Mappable, MemoryRange } from "membacking";
import { EventFd } from "membacking/kvm";
import { VhostUserFrontend, VhostUserMemory } from "membacking/vhost-user";
import { makeImage, StorageDaemon, whyNoDaemon } from "../examples/vhost/storage_daemon.ts";
import { attempt, Child } from "./child.ts";
import { contest, type Effort, here, there } from "./contest.ts";
import { onOneCpu } from "./one_cpu.ts";
import type { Bench } from "./ours.ts";
import { type Figure, figure, ratio, verdict } from "./stats.ts";

/** One line of the table. */
export interface VhostRow {
  /** A short name. */
  readonly name: string;
  /** What is done. */
  readonly title: string;
  /** Time by our front end, in nanoseconds. */
  readonly ours: Figure;
  /** Time of what it is compared with, in nanoseconds. */
  readonly other: Figure;
  /** What that is. */
  readonly than: string;
  /** Ours by the other, round by round. */
  readonly ratio: Figure;
  /** The most the ratio may be. */
  readonly atMost?: number;
}

const RAM = new MemoryRange(0, 0x200_0000);
const HOT = MemoryRange.of(0x1_0000_0000, 0x4000_0000);
const RING = 0x10_0000;
/** Tells the processor that this is a loop that waits; the library's types do not know it yet. */
const pause = (Atomics as unknown as { pause(): void }).pause;

/** Daemons in a directory of their own. */
class Daemons implements AsyncDisposable {
  readonly directory = Deno.makeTempDirSync();
  readonly #daemons: StorageDaemon[] = [];

  /** Starts so many, and returns where they listen. */
  start(count: number): string[] {
    return Array.from({ length: count }, () => {
      const name = `${this.directory}/${this.#daemons.length}`;
      makeImage(`${name}.img`, 2048);
      this.#daemons.push(StorageDaemon.start(`${name}.img`, `${name}.sock`));
      return `${name}.sock`;
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#daemons.map((daemon) => daemon.kill()));
    Deno.removeSync(this.directory, { recursive: true });
  }
}

/** A guest's memory with back ends on it. */
class Vmm implements Disposable {
  readonly guest: GuestMemoryManager;
  readonly frontends: VhostUserFrontend[] = [];
  readonly #stack = new DisposableStack();

  private constructor() {
    this.guest = this.#stack.use(GuestMemoryManager.create({ maxAddress: HOT.end, ram: [{ ranges: [RAM] }] }));
  }

  static async start(sockets: readonly string[]): Promise<Vmm> {
    const vmm = new Vmm();
    for (const socket of sockets) {
      const frontend = vmm.#stack.use(await VhostUserFrontend.connect(socket, { patience: 10_000 }));
      vmm.frontends.push(frontend);
      const memory = vmm.#stack.use(new VhostUserMemory(frontend));
      vmm.#stack.use(vmm.guest.regions.addDmaTarget(memory));
    }
    return vmm;
  }

  /** Adds 1 GiB and removes it again. */
  hotAdd(): Bench {
    using file = Mappable.memfd("hot", HOT.length);
    const region = this.guest.regions.newRegion({ name: "hot", range: HOT, priority: 255 });
    region.addMapping({ rangeInRegion: new MemoryRange(0, HOT.length), mappable: file });
    return {
      run(count) {
        for (let i = 0; i < count; i++) {
          region.map();
          region.unmap();
        }
      },
      [Symbol.dispose]: () => region[Symbol.dispose](),
    };
  }

  /** Switches between two regions of 1 GiB, and back. */
  switching(): Bench {
    const regions = [0, 1].map((i) => {
      using file = Mappable.memfd("switched", HOT.length);
      const region = this.guest.regions.newRegion({ name: `switched ${i}`, range: HOT, priority: 100 });
      region.addMapping({ rangeInRegion: new MemoryRange(0, HOT.length), mappable: file });
      region.map();
      return region;
    });
    const [first] = regions;
    return {
      run(count) {
        for (let i = 0; i < count; i++) {
          first?.unmap();
          first?.map();
        }
      },
      [Symbol.dispose]: () => regions.forEach((region) => region[Symbol.dispose]()),
    };
  }

  /** Reads a sector by a ring, polling. */
  async reading(): Promise<Bench> {
    const { memory } = this.guest;
    const [frontend] = this.frontends;
    if (frontend === undefined) throw new Error("There is no back end");
    const descriptor = (i: number, address: number, length: number, flags: number) => {
      memory.writeBigUint64(RING + 16 * i, BigInt(address));
      memory.writeBigUint64(RING + 16 * i + 8, BigInt(length) | BigInt(flags) << 32n | BigInt(i + 1) << 48n);
    };
    descriptor(0, RING + 0x3000, 16, 1);
    descriptor(1, RING + 0x4000, 512, 3);
    descriptor(2, RING + 0x3010, 1, 2);
    const kick = this.#stack.use(new EventFd());
    const call = this.#stack.use(new EventFd());
    await frontend.setFeatures(1n << 32n);
    const ring = { descriptor: RING, available: RING + 0x1000, used: RING + 0x2000 };
    await frontend.startVring(0, { size: 8, ...ring, kick, call });
    const lock: LockedMemory = this.#stack.use(memory.lock(MemoryRange.of(RING, 0x4000), { write: true }));
    const words = new Uint16Array(lock.bytes.buffer, lock.bytes.byteOffset, 0x2000);
    const status = lock.bytes.subarray(0x3010, 0x3011);
    const [available, used] = [0x1002 / 2, 0x2002 / 2];
    let index = 0;
    return {
      run(count) {
        for (let i = 0; i < count; i++) {
          status[0] = 0xff;
          index = index + 1 & 0xffff;
          Atomics.store(words, available, index);
          kick.signal();
          while (Atomics.load(words, used) !== index) pause();
          if (status[0] !== 0) throw new Error("The disk failed");
        }
      },
      [Symbol.dispose]() {},
    };
  }

  [Symbol.dispose](): void {
    this.#stack.dispose();
  }
}

async function buildFrontend(out: string): Promise<string | { missing: string }> {
  const path = `${out}/frontend`;
  const source = new URL("vhost/frontend.c", import.meta.url).pathname;
  const built = await attempt("cc", ["-O2", "-Wall", "-Wextra", "-Werror", "-o", path, source]);
  return built.missing === undefined ? path : { missing: built.missing };
}

/** All rows, or why there are none. */
export async function measureVhost(effort: Effort): Promise<VhostRow[] | string> {
  const missing = whyNoDaemon();
  if (missing !== undefined) return missing;
  await using daemons = new Daemons();
  const program = await buildFrontend(daemons.directory);
  if (typeof program !== "string") return program.missing;
  const rows: VhostRow[] = [];
  const add = (name: string, title: string, than: string, times: readonly [number[], number[]], atMost?: number) =>
    rows.push({
      ...{ name, title, than, ours: figure(times[0]), other: figure(times[1]), ratio: ratio(...times) },
      ...(atMost !== undefined && { atMost }),
    });
  const against = async (ours: Bench, program: Child, row: string): Promise<[number[], number[]]> => {
    const { ours: a = [], C: b = [] } = await contest([["ours", here(ours)], ["C", there(program, row)]], effort);
    return [[...a], [...b]];
  };

  for (const count of [1, 8]) {
    const [mine, others] = [daemons.start(count), daemons.start(count)];
    using vmm = await Vmm.start(mine);
    await Promise.all(others.map(listening));
    // The front ends, that is: their daemons have both.
    using _cpu = onOneCpu();
    await using c = new Child(program, others);
    using hot = vmm.hotAdd();
    const title = `add and remove 1 GiB, ${count} back end${count === 1 ? "" : "s"}`;
    add(`hot-add-${count}`, title, "bare messages in C", await against(hot, c, "hot-add"), 1.3);
    hot[Symbol.dispose]();
    if (count > 1) continue;
    using reading = await vmm.reading();
    add("sector-read", "read a sector, polling", "a front end in C", await against(reading, c, "read"), 1.05);
    using alone = await Vmm.start([]);
    using attached = vmm.switching();
    using plain = alone.switching();
    const { ours = [], bare = [] } = await contest([["ours", here(attached)], ["bare", here(plain)]], effort);
    add("table-switch", "switch two regions of 1 GiB, and back", "without a back end", [[...ours], [...bare]]);
  }
  return rows;
}

/** Waits until somebody listens at a path. */
async function listening(path: string): Promise<void> {
  for (let i = 0; i < 1000; i++) {
    try {
      Deno.statSync(path);
      return;
    } catch {
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  }
}

/** The rows as cells, below `VHOST_HEAD`. */
export function vhostRows(rows: readonly VhostRow[]): string[][] {
  const us = ({ median }: Figure) => (median / 1000).toFixed(1);
  return rows.map(({ title, ours, other, than, ratio, atMost }) => [
    title,
    us(ours),
    `${us(other)} (${than})`,
    `${ratio.median.toFixed(2)} (${ratio.low.toFixed(2)}-${ratio.high.toFixed(2)})`,
    ...(atMost === undefined ? ["", ""] : [String(atMost), verdict(ratio, atMost)]),
  ]);
}

/** The head of the table. */
export const VHOST_HEAD: readonly string[] = ["", "ours, us", "beside it, us", "ratio", "target", "verdict"];

if (import.meta.main) {
  const quick = Deno.args.includes("--quick");
  const rows = await measureVhost(
    quick ? { rounds: 7, roundTime: 2, warmUp: 100 } : { rounds: 61, roundTime: 4, warmUp: 1500 },
  );
  if (Deno.args.includes("--json")) console.log(JSON.stringify(rows));
  else if (typeof rows === "string") console.log(rows);
  else for (const row of [VHOST_HEAD, ...vhostRows(rows)]) console.log(row.join(" | "));
}
