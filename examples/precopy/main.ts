/**
 * Moves the memory of a running machine to a second one: `deno task precopy`.
 *
 * A guest writes natively, this thread by accessors and a lock, a Worker as a client, and a device by DMA, all at random
 * and all at a time. Rounds of `DirtyTracker.take` copy what they have written to the second memory until little is left;
 * then everybody stops, the rest is copied, and both memories are compared.
 *
 * ```
 * deno task precopy [--memory MiB] [--rounds N] [--ring]
 * ```
 *
 * @module
 */

import { GuestMemoryManager, MemoryRange, PageSet } from "membacking";
import { Device } from "./device.ts";
import { DATA_AT, ScribblingGuest } from "./guest.ts";
import { bar, drawWritten, grouped } from "./picture.ts";
import { preCopy, type Round, SecondMemory } from "./precopy.ts";
import { WritingWorker } from "./worker_thread.ts";

const MIB = 2 ** 20;

function option(name: string, otherwise: number): number {
  const at = Deno.args.indexOf(`--${name}`);
  if (at === -1) return otherwise;
  const value = Number(Deno.args[at + 1]);
  if (!Number.isInteger(value) || value < 1) throw new RangeError(`--${name} needs a number of at least 1`);
  return value;
}

const length = option("memory", 64) * MIB;
const dirtyLog = Deno.args.includes("--ring") ? "ring" : "bitmap";
if (length < 8 * MIB) throw new RangeError("--memory needs at least 8 MiB");

const all = new MemoryRange(0, length);
using guest = GuestMemoryManager.create({ maxAddress: length, ram: [{ ranges: [all] }] });
const { memory } = guest;
await using machine = ScribblingGuest.create(dirtyLog);
using _attached = guest.attachPartition(machine.vm);
using device = new Device();
using _dma = guest.regions.addDmaTarget(device, { needsFd: true });

// Each has a quarter of its own, so that the picture shows who writes how much.
const quarter = (n: number) => DATA_AT + Math.floor((length - DATA_AT) / 4 / 4096) * 4096 * n;
await machine.start(memory, { end: quarter(1), idle: 1500, seed: 1 });
using worker = await WritingWorker.start(guest.regions, quarter(1), quarter(2));
using frame = memory.lock(MemoryRange.of(quarter(2), 64 * 4096), { write: true });

/** A random address of a quarter, a multiple of 8. */
const somewhere = (n: number) => quarter(n) + 8 * Math.floor(Math.random() * (quarter(1) - DATA_AT - 4096) / 8);

/** What this thread and the device write each time it is their turn. */
function write(): void {
  for (let i = 0; i < 8; i++) memory.writeUint32(somewhere(2), Math.random() * 2 ** 32);
  frame.bytes.fill(Math.random() * 256, 0, 4096);
  for (let i = 0; i < 8; i++) device.write(somewhere(3), crypto.getRandomValues(new Uint8Array(8)));
}

const isTerminal = Deno.stdout.isTerminal();
const print = (text: string) => Deno.stdout.writeSync(new TextEncoder().encode(text));

const began = performance.now();
using tracker = guest.trackDirty();
const second = new SecondMemory(memory);
let roundBegan = began;

function show({ number, pages, isLast }: Round, done: number): void {
  const isDone = done >= pages.count;
  if (!isTerminal && !isDone) return;
  const seconds = (performance.now() - roundBegan) / 1000;
  const name = isLast ? "last" : `${number}`.padStart(4);
  const rate = `${grouped(done * 4096 / MIB / seconds).padStart(6)} MiB/s`;
  print(`${isTerminal ? "\r" : ""}round ${name} ${bar(pages.count === 0 ? 1 : done / pages.count, 24)} `);
  print(`${grouped(done).padStart(7)} of ${grouped(pages.count).padStart(7)} pages ${rate}${isDone ? "\n" : ""}`);
  if (isDone) roundBegan = performance.now();
}

let stopped = began;
const rounds = await preCopy(tracker, {
  everything: PageSet.of([all]),
  copy: (range) => second.copy(range),
  enough: 512,
  rounds: option("rounds", 12),
  pause: async (round, done) => {
    show(round, done);
    if (!round.isLast) write();
    // A turn for everybody else.
    await new Promise((resolve) => setTimeout(resolve, 0));
  },
  stop: async () => {
    stopped = performance.now();
    await machine.stop();
    worker.pause();
  },
});
const ended = performance.now();

const sent = rounds.reduce((sum, { pages }) => sum + pages.count, 0);
const rewritten = sent - (rounds[0]?.pages.count ?? 0);
print(`\n${drawWritten(rounds, length, 64, 16)}\n\n`);
print(`${rounds.length} rounds, ${grouped(sent)} pages (${(sent * 4096 / length).toFixed(2)} times the memory), `);
print(`${grouped(rewritten / ((ended - began) / 1000))} pages/s written\n`);
print(
  `${((ended - began) / 1000).toFixed(2)} s, of which the machine stood still for ${(ended - stopped).toFixed(1)} ms\n`,
);
const differing = second.differences();
print(differing.length === 0 ? "Both memories are equal\n" : `${differing.length} pages differ\n`);
if (differing.length > 0) Deno.exitCode = 1;
