/**
 * The thread of the vCPU: runs the guest and answers for its devices. What the guest asks of its memory goes to the
 * region manager in the other thread, and the guest goes on when that has answered.
 *
 * @module
 */

import { MemoryRange, SyncRegionManagerClient } from "membacking";
import { VcpuRunner } from "membacking/kvm";
import { Board } from "./board.ts";
import { ChipsetMemory } from "./chipset_memory.ts";
import type { BootEnd, VcpuJob, VcpuMessage } from "./protocol.ts";
import { crashOf } from "../pc/crash.ts";
import { timed } from "../pc/slot_log.ts";

/** What SeaBIOS says when it has tried everything. */
const LAST_WORDS = "No bootable device.";

// What a Worker's global object has, and the types of a page do not know.
interface WorkerScope {
  onmessage: ((event: MessageEvent<VcpuJob>) => void) | null;
  postMessage(message: VcpuMessage): void;
}
const scope = globalThis as unknown as WorkerScope;

/** Never disposed: the memory that is asked for through it stays for as long as this thread does. */
let regions: SyncRegionManagerClient;

scope.onmessage = async ({ data: job }) => {
  try {
    regions = await SyncRegionManagerClient.connect(job.regions);
    const number = new Int32Array(job.request);
    const memory = new ChipsetMemory(regions, (request, carryOut) => {
      Atomics.add(number, 0, 1);
      const micros = timed(carryOut);
      scope.postMessage({ kind: "request", number: number[0] ?? 0, request, micros });
    });
    using runner = VcpuRunner.attach(job.vcpu);
    scope.postMessage({ kind: "end", end: boot(runner, memory, job) });
  } catch (error) {
    scope.postMessage({ kind: "failed", error });
  }
};

function boot(runner: VcpuRunner, memory: ChipsetMemory, { ram, bus: [start, end], files }: VcpuJob): BootEnd {
  let finished = false;
  const board = new Board({
    ram,
    bus: new MemoryRange(start, end),
    files,
    memory,
    onLog(line) {
      scope.postMessage({ kind: "log", line });
      finished = line.startsWith(LAST_WORDS);
    },
    onFinding: (line) => scope.postMessage({ kind: "finding", line }),
    onRefused: (error) => scope.postMessage({ kind: "refused", error: String(error) }),
  });
  const exits: Record<string, number> = {};
  const started = performance.now();
  const ended = (why: BootEnd["why"], crash: BootEnd["crash"] = null): BootEnd => ({
    why,
    crash,
    exits,
    millis: performance.now() - started,
  });
  while (!finished) {
    const exit = runner.run();
    exits[exit.kind] = (exits[exit.kind] ?? 0) + 1;
    switch (exit.kind) {
      case "io":
        board.io(exit);
        break;
      case "mmio":
        board.mmio(exit);
        break;
      case "interrupted":
        return ended("kicked");
      default:
        return ended("crash", crashOf(runner.vcpu, exit));
    }
  }
  return ended("done");
}
