/**
 * What it costs to know which pages were written: `take` beside the bare requests of KVM, how it grows, and what writers
 * pay.
 *
 * `measureDirty` returns the rows; run by itself, this file prints them.
 *
 * @module
 */

import { Mappable, MemoryRange, type PageSet, RegionManager, VaMapper } from "membacking";
import type { Kvm, KvmVcpu, KvmVm } from "membacking/kvm";
import { LongModeCode, startLongMode, STOP_PORT } from "../examples/guest/mod.ts";
import { ioctl } from "../ffi/kvm/ioctl.ts";
import { CLEAR_DIRTY_LOG, DIRTY_LOG } from "../ffi/kvm/layout.ts";
import { type Figure, figure, ratio, type Verdict, verdict } from "./stats.ts";

/** One line of the table. Times in microseconds. */
export interface DirtyRow {
  /** What was written of how much. */
  readonly title: string;
  /** Runs of pages that were found. */
  readonly runs: number;
  /** `take` with KVM's bitmap. */
  readonly log: Figure;
  /** The bare requests: for each slot one to get the bitmap, one to clear it. */
  readonly bare: Figure;
  /** How often the one is the other, 40 ns a run taken off. */
  readonly ratio: Figure;
  /** Whether that is 1.3 at most. */
  readonly verdict: Verdict;
  /** `take` with a ring; `null` where more is written than it holds. */
  readonly ring: Figure | null;
}

/** What writers pay. Times in nanoseconds. */
export interface WriterRow {
  /** Who writes. */
  readonly title: string;
  /** A write while nobody tracks. */
  readonly off: Figure;
  /** The same while somebody does. */
  readonly on: Figure;
}

/** All that is measured. */
export interface DirtyResults {
  readonly takes: readonly DirtyRow[];
  readonly writers: readonly WriterRow[];
}

const PAGE = 4096;
const MIB = 2 ** 20;
/** The guest's program and page tables lie below, in a slot of their own. */
const DATA_AT = 16 * MIB;
const AT_MOST = 1.3;
const NS_PER_RUN = 40;

/** A machine whose guest writes pages when it is told to. */
class Machine implements Disposable {
  readonly regions: RegionManager;
  readonly vm: KvmVm;
  readonly range: MemoryRange;
  readonly #vcpu: KvmVcpu;
  readonly #stack = new DisposableStack();

  constructor(kvm: Kvm, size: number, dirtyLog: "bitmap" | "ring") {
    const end = DATA_AT + size;
    this.range = new MemoryRange(DATA_AT, end);
    const va = this.#stack.use(VaMapper.reserve(end));
    this.regions = this.#stack.use(new RegionManager(va));
    const ram = this.#stack.use(Mappable.memfd("ram", end));
    for (const range of [new MemoryRange(0, DATA_AT), this.range]) {
      const region = this.regions.newRegion({ name: "ram", range, priority: 0 });
      region.addMapping({
        rangeInRegion: new MemoryRange(0, range.length),
        mappable: ram,
        fileOffset: range.start,
      });
      region.map();
    }
    this.vm = this.#stack.use(kvm.createVm({ dirtyLog }));
    this.regions.addPartition(this.vm);
    this.#vcpu = this.#stack.use(this.vm.createVcpu(0));
    this.#vcpu.setCpuid2(kvm.getSupportedCpuid());
  }

  /** Has the guest write each `step`th page up to `end`; returns how many nanoseconds that took. */
  write(step: number, end = this.range.end): number {
    const program = new LongModeCode()
      .set("rbx", DATA_AT).set("rcx", end).set("rsi", step * PAGE)
      .label("again").store("rbx", "rcx", 8).addRegister("rbx", "rsi")
      .compareRegister("rbx", "rcx").jumpIf("below", "again")
      .out(STOP_PORT).bytes();
    startLongMode(this.#vcpu, {
      write: (gpa, bytes) => this.regions.memory.write(gpa, bytes),
      tables: 0x1_0000,
      code: 0x1000,
      program,
      ranges: [{ start: 0, end: this.range.end }],
    });
    const began = performance.now();
    const exit = this.#vcpu.run();
    if (exit.kind !== "io" || exit.port !== STOP_PORT) throw new Error(`The guest came out with ${exit.kind}`);
    return (performance.now() - began) * 1e6;
  }

  [Symbol.dispose](): void {
    this.#stack.dispose();
  }
}

/** KVM's own requests for the log of one slot: get all of it, clear all of it. */
class BareLog {
  readonly #vm: KvmVm;
  readonly #bits: Uint8Array<ArrayBuffer>;
  readonly #get = new Uint8Array(DIRTY_LOG.size);
  readonly #clear = new Uint8Array(CLEAR_DIRTY_LOG.size);

  constructor(vm: KvmVm, range: MemoryRange) {
    this.#vm = vm;
    const pages = range.length / PAGE;
    const slot = vm.slots.find((slot) => slot.range.equals(range))?.slot ?? -1;
    this.#bits = new Uint8Array(Math.ceil(pages / 64) * 8);
    const address = Deno.UnsafePointer.value(Deno.UnsafePointer.of(this.#bits));
    const [get, clear] = [new DataView(this.#get.buffer), new DataView(this.#clear.buffer)];
    get.setUint32(DIRTY_LOG.slot, slot, true);
    get.setBigUint64(DIRTY_LOG.dirty_bitmap, address, true);
    clear.setUint32(CLEAR_DIRTY_LOG.slot, slot, true);
    clear.setUint32(CLEAR_DIRTY_LOG.num_pages, pages, true);
    clear.setBigUint64(CLEAR_DIRTY_LOG.dirty_bitmap, address, true);
  }

  take(): void {
    // SAFETY: the bitmap has a bit for each page of the slot, rounded up to 64.
    ioctl(this.#vm.fd, "KVM_GET_DIRTY_LOG", this.#get);
    ioctl(this.#vm.fd, "KVM_CLEAR_DIRTY_LOG", this.#clear);
  }
}

/** What is written between two takes: each `step`th page up to `share` of memory; nothing for a step of 0. */
interface Pattern {
  readonly title: string;
  readonly size: number;
  readonly step: number;
  readonly end?: number;
}

const GIB = 2 ** 30;
const PATTERNS: readonly Pattern[] = [
  { title: "64 MiB, nothing", size: 64 * MIB, step: 0 },
  { title: "256 MiB, nothing", size: 256 * MIB, step: 0 },
  { title: "1 GiB, nothing", size: GIB, step: 0 },
  { title: "1 GiB, 64 pages", size: GIB, step: 4096 },
  { title: "1 GiB, 4,096 pages", size: GIB, step: 64 },
  { title: "1 GiB, 32,768 pages", size: GIB, step: 8 },
  { title: "1 GiB, all pages", size: GIB, step: 1 },
];
/** How much memory the owner writes in. */
const OWNED = 64 * MIB;
/** How many pages a ring holds before the vCPU has to stop: the rest would be measured as exits. */
const RING_ROOM = 60_000;

function timed(act: () => void): number {
  const began = performance.now();
  act();
  return (performance.now() - began) * 1000;
}

/** The patterns of one size, in one machine by bitmap and one by ring: it takes a while until all memory is there. */
function takeRows(kvm: Kvm, size: number, patterns: readonly Pattern[], rounds: number): DirtyRow[] {
  using byBitmap = new Machine(kvm, size, "bitmap");
  using byRing = new Machine(kvm, size, "ring");
  for (const machine of [byBitmap, byRing]) {
    machine.write(1);
    // Until the engine has compiled what is measured.
    using tracker = machine.regions.trackDirty();
    for (let i = 0; i < 300; i++) {
      if (i % 10 === 0) machine.write(64, DATA_AT + 64 * MIB);
      tracker.take();
    }
  }
  return patterns.map((pattern) =>
    takeRow(byBitmap, byRing, pattern, pattern.step === 1 ? Math.ceil(rounds / 4) : rounds)
  );
}

function takeRow(byBitmap: Machine, byRing: Machine, { title, size, step }: Pattern, rounds: number): DirtyRow {
  const times = { log: [] as number[], bare: [] as number[], net: [] as number[], ring: [] as number[] };
  let runs = 0;
  {
    using tracker = byBitmap.regions.trackDirty();
    const bare = byBitmap.vm.slots.map(({ range }) => new BareLog(byBitmap.vm, range));
    // As many again ahead: code that was compiled while other patterns were written is compiled anew for this one.
    for (let round = -rounds; round < rounds; round++) {
      if (step > 0) byBitmap.write(step);
      let taken: PageSet | undefined;
      const log = timed(() => taken = tracker.take());
      const found = taken?.within(byBitmap.range);
      if (step > 0) byBitmap.write(step);
      const alone = timed(() => bare.forEach((log) => log.take()));
      tracker.take();
      if (round < 0) continue;
      runs = found === undefined ? 0 : [...found].length;
      times.log.push(log);
      times.bare.push(alone);
      times.net.push(Math.max(0, log - runs * NS_PER_RUN / 1000));
    }
  }
  if (step === 0 || size / PAGE / step < RING_ROOM) {
    using tracker = byRing.regions.trackDirty();
    for (let round = -rounds; round < rounds; round++) {
      if (step > 0) byRing.write(step);
      const ring = timed(() => tracker.take());
      if (round >= 0) times.ring.push(ring);
    }
  }
  const net = ratio(times.net, times.bare);
  return {
    title,
    runs,
    log: figure(times.log),
    bare: figure(times.bare),
    ratio: net,
    verdict: verdict(net, AT_MOST),
    ring: times.ring.length === 0 ? null : figure(times.ring),
  };
}

/** A first write of a page, by the guest. */
function guestRow(kvm: Kvm, dirtyLog: "bitmap" | "ring", rounds: number): WriterRow {
  using machine = new Machine(kvm, 64 * MIB, dirtyLog);
  const pages = machine.range.length / PAGE;
  machine.write(1);
  const off: number[] = [];
  const on: number[] = [];
  for (let round = 0; round < rounds; round++) {
    // What the last round has left protected is not what is measured.
    machine.write(1);
    off.push(machine.write(1) / pages);
    using tracker = machine.regions.trackDirty();
    tracker.take();
    on.push(machine.write(1) / pages);
  }
  return { title: `a native guest's first write of a page, by ${dirtyLog}`, off: figure(off), on: figure(on) };
}

/** Four bytes, by the owner; `address` says where the next ones go in `OWNED` bytes. */
function ownerRow(title: string, address: (i: number) => number, rounds: number): WriterRow {
  const size = OWNED;
  using va = VaMapper.reserve(size);
  using regions = new RegionManager(va);
  using ram = Mappable.memfd("ram", size);
  const region = regions.newRegion({ name: "ram", range: new MemoryRange(0, size), priority: 0 });
  region.addMapping({ rangeInRegion: new MemoryRange(0, size), mappable: ram });
  region.map();
  const { memory } = regions;
  const addresses = Int32Array.from({ length: 50_000 }, (_, i) => address(i) & (size - 4));
  const measure = () => {
    const write = () => {
      for (let i = 0; i < addresses.length; i++) memory.writeUint32(addresses[i]!, i);
    };
    write();
    // The best of a few: what disturbs takes longer than what is measured.
    let best = Infinity;
    for (let i = 0; i < 8; i++) best = Math.min(best, timed(write));
    return best * 1000 / addresses.length;
  };
  for (let i = 0; i < 20; i++) measure();
  const off: number[] = [];
  const on: number[] = [];
  for (let round = 0; round < rounds; round++) {
    off.push(measure());
    using _tracker = regions.trackDirty();
    on.push(measure());
  }
  return { title, off: figure(off), on: figure(on) };
}

/** Measures all of it. */
export function measureDirty(kvm: Kvm | null, { quick }: { quick: boolean }): DirtyResults {
  const rounds = quick ? 3 : 21;
  // Ahead of the machines, whose memory would be in the way.
  const owner = [
    ownerRow("GuestMemory.writeUint32, page after page", (i) => i * 64, rounds),
    ownerRow("GuestMemory.writeUint32, anywhere", () => Math.random() * OWNED, rounds),
    ownerRow("GuestMemory.writeUint32, each time the next page", (i) => i * (4096 + 64), rounds),
  ];
  const sizes = kvm === null ? [] : [...Map.groupBy(PATTERNS, ({ size }) => size)];
  const takes = kvm === null ? [] : sizes.flatMap(([size, patterns]) => takeRows(kvm, size, patterns, rounds));
  const guests = kvm === null ? [] : (["bitmap", "ring"] as const).map((by) => guestRow(kvm, by, rounds));
  return { takes, writers: [...guests, ...owner] };
}

function micro(value: number): string {
  return value >= 100 ? Math.round(value).toLocaleString("en-US") : value.toPrecision(3);
}

/** The results as tables of Markdown. */
export function dirtyTables({ takes, writers }: DirtyResults): string {
  const lines = [
    "| us, for `take` after a guest has written | runs | bitmap | bare requests | less 40 ns a run, times bare | ring |",
    "| --- | --: | --: | --: | --: | --: |",
    ...takes.map(({ title, runs, log, bare, ratio, verdict, ring }) => {
      const cells = [micro(log.median), micro(bare.median), `${ratio.median.toFixed(2)} (${verdict})`];
      return `| ${title} | ${runs} | ${cells.join(" | ")} | ${ring === null ? "" : micro(ring.median)} |`;
    }),
    "",
    "| ns, for one write | nobody tracks | somebody tracks | |",
    "| --- | --: | --: | --: |",
    ...writers.map(({ title, off, on }) =>
      `| ${title} | ${micro(off.median)} | ${micro(on.median)} | ${(on.median / off.median).toFixed(2)} times |`
    ),
  ];
  return lines.join("\n");
}

if (import.meta.main) {
  const { Kvm } = await import("membacking/kvm");
  let kvm: Kvm | null = null;
  try {
    kvm = Kvm.open();
  } catch {
    // Then there is less to be measured.
  }
  using _kvm = kvm;
  const results = measureDirty(kvm, { quick: Deno.args.includes("--quick") });
  console.log(Deno.args.includes("--json") ? JSON.stringify(results) : dirtyTables(results));
}
