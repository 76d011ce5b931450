/**
 * Switching memory under a running guest: by one mmap, as this package does it, and by tearing down and setting up
 * (delete the slot, mmap, make the slot anew), as the original does it.
 *
 * The guest runs natively on a vCPU in a Worker and reads the memory in a loop. It leaves only where something is wrong.
 *
 * @module
 */

import { Mappable, MemoryRange, RegionManager, VaMapper } from "membacking";
import type { Kvm } from "membacking/kvm";
import { pollForever, startLongMode, VcpuThread } from "../examples/guest/mod.ts";
import { tornSwitch } from "./bare.ts";
import { KIB, MIB, PAGE } from "./layout.ts";
import { type Figure, figure } from "./stats.ts";

/** Where the memory lies that is switched, a guest-physical address. */
const AT = 1024 * MIB;
const RAM = 2 * MIB;
const CODE = 0x1000;
const COUNTER = 0x2000;
const TABLES = 0x10_0000;
/** The part of the memory that the guest reads. */
const READ = 64 * KIB;
const SWITCHES = 500;
const TURNS = 5;

/** How a way to switch did. */
export interface LiveFigures {
  /** Microseconds per switch. */
  readonly latency: Figure;
  /** The slowest switch in a hundred, in microseconds. */
  readonly p99: number;
  /** Unexpected exits per 1,000 switches. */
  readonly exits: number;
  /** What ended the guest before it was asked to, if anything did. */
  readonly died: string | null;
}

/** Both ways at one size of the memory. */
export interface LiveRow {
  /** In bytes. */
  readonly size: number;
  readonly ours: LiveFigures;
  readonly torn: LiveFigures;
}

interface Turn {
  readonly latencies: readonly number[];
  readonly exits: number;
  readonly died: string | null;
}

/** One guest, and `SWITCHES` switches under it. */
async function turn(kvm: Kvm, size: number, way: "ours" | "torn"): Promise<Turn> {
  using stack = new DisposableStack();
  const vm = stack.use(kvm.createVm());
  const va = stack.use(VaMapper.reserve(AT + size));
  const regions = stack.use(new RegionManager(va));
  stack.use(regions.addPartition(vm));

  const ramFile = stack.use(Mappable.memfd("ram", RAM));
  const ram = regions.newRegion({ name: "ram", range: MemoryRange.of(0, RAM), priority: 0 });
  ram.addMapping({ rangeInRegion: MemoryRange.of(0, RAM), mappable: ramFile });
  ram.map();

  const files = [1, 2].map((content) => {
    const file = stack.use(Mappable.memfd("switched", size));
    file.write(0, new Uint8Array(READ).fill(content));
    return file;
  });
  const [first, second] = files as [Mappable, Mappable];
  let switchOnce: () => void;
  if (way === "ours") {
    const [older] = files.map((mappable) => {
      const region = regions.newRegion({ name: "switched", range: MemoryRange.of(AT, size), priority: 0 });
      region.addMapping({ rangeInRegion: MemoryRange.of(0, size), mappable });
      region.map();
      return region;
    });
    switchOnce = () => older!.mapParams === null ? older!.map() : older!.unmap();
  } else {
    const torn = stack.use(tornSwitch(vm, AT, size, first.fd, second.fd));
    switchOnce = () => torn.switch();
  }

  const vcpu = stack.use(vm.createVcpu(0));
  startLongMode(vcpu, {
    write: (gpa, bytes) => regions.memory.write(gpa, bytes),
    tables: TABLES,
    code: CODE,
    program: pollForever({
      ...{ start: AT, end: AT + READ, step: PAGE, counter: COUNTER },
      expected: [0x0101_0101_0101_0101n, 0x0202_0202_0202_0202n],
    }),
    ranges: [{ start: 0, end: RAM }, { start: AT, end: AT + 2 * MIB }],
  });
  const thread = await VcpuThread.start(vcpu);
  const deadline = performance.now() + 5000;
  while (regions.memory.readBigUint64(COUNTER) === 0n && performance.now() < deadline) await pause(1);
  for (let i = 0; i < 20; i++) switchOnce();
  const latencies: number[] = [];
  for (let i = 0; i < SWITCHES; i++) {
    const start = performance.now();
    switchOnce();
    latencies.push((performance.now() - start) * 1e3);
    // Lets the guest come back to what it was doing.
    if (i % 50 === 0) await pause(1);
  }
  const report = await thread.stop();
  const { mmio = 0, fault = 0, io = 0 } = report.exits;
  const died = report.end === "asked" ? null : report.end;
  return { latencies, exits: mmio + fault + io, died };
}

function pause(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

function figures(turns: readonly Turn[]): LiveFigures {
  const latencies = turns.flatMap((turn) => turn.latencies);
  const sorted = latencies.toSorted((a, b) => a - b);
  const exits = turns.reduce((sum, turn) => sum + turn.exits, 0) * 1000 / latencies.length;
  const died = turns.find((turn) => turn.died !== null)?.died ?? null;
  return { latency: figure(latencies), p99: sorted[Math.floor(sorted.length * 0.99)] ?? NaN, exits, died };
}

/** Switches memory of `size` bytes under a running guest, both ways in turns. */
export async function liveSwitch(kvm: Kvm, size: number): Promise<LiveRow> {
  // Stays for as long as any guest may be kicked: a signal without a handler ends the process.
  const ignore = () => {};
  Deno.addSignalListener("SIGUSR2", ignore);
  using stack = new DisposableStack();
  stack.defer(() => Deno.removeSignalListener("SIGUSR2", ignore));
  const turns = { ours: [] as Turn[], torn: [] as Turn[] };
  for (let i = 0; i < TURNS; i++) {
    for (const way of i % 2 === 0 ? ["ours", "torn"] as const : ["torn", "ours"] as const) {
      turns[way].push(await turn(kvm, size, way));
    }
  }
  return { size, ours: figures(turns.ours), torn: figures(turns.torn) };
}
