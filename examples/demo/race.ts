import type { MemoryRange, RegionManager } from "membacking";
import type { KvmVm } from "membacking/kvm";
import { LongModeCode, REPORT_PORT, startLongMode } from "../guest/mod.ts";
import { toWord } from "./word.ts";

/** Where the guest keeps what it needs: RAM that nobody switches. */
const TABLES = 0x1_0000;
const CODE = 0x1_8000;
const NOTES = { first: 0x1_9000, second: 0x1_9040, other: 0x1_9080, stop: 0x1_90c0 };

const KVM_RUN = 0xae80n;

/** What a guest saw that read the same addresses over and over. */
export interface Sightings {
  /** How often it saw the first of the two values. */
  readonly first: number;
  /** How often it saw the second. */
  readonly second: number;
  /** How often it saw anything else. */
  readonly other: number;
  /** Whether it left before it was told to: for an access that found no memory, say. */
  readonly leftEarly: boolean;
}

/**
 * Runs a second vCPU at full speed in another thread. It reads `range` eight bytes at a time, and counts which of
 * two words it finds there, while this thread does what `meanwhile` does.
 */
export async function race(
  vm: KvmVm,
  { memory }: RegionManager,
  range: MemoryRange,
  [first, second]: readonly [string, string],
  meanwhile: () => void,
): Promise<Sightings> {
  using vcpu = vm.createVcpu(1);
  startLongMode(vcpu, {
    write: (gpa, bytes) => memory.write(gpa, bytes),
    tables: TABLES,
    code: CODE,
    program: new LongModeCode()
      .set("r9", 1).set("r10", range.end)
      .label("sweep").set("rbx", range.start)
      .set("rdx", NOTES.stop).load("rax", "rdx", 8).compare("rax", 1).jumpIf("equal", "stop")
      .label("next").load("rax", "rbx", 8)
      .set("rdx", NOTES.first).set("rcx", twice(first)).compareRegister("rax", "rcx").jumpIf("equal", "count")
      .set("rdx", NOTES.second).set("rcx", twice(second)).compareRegister("rax", "rcx").jumpIf("equal", "count")
      .set("rdx", NOTES.other)
      .label("count").atomicAdd("rdx", "r9")
      .add("rbx", 64).compareRegister("rbx", "r10").jumpIf("below", "next").jump("sweep")
      .label("stop").out(REPORT_PORT)
      .bytes(),
    ranges: [{ start: 0, end: 0x2_0000, pageSize: 0x1000 }],
  });
  for (const note of Object.values(NOTES)) memory.writeBigUint64(note, 0n);

  // A VMM runs its vCPUs in Workers (see `KvmVcpu.attach`). Deno starts those with --allow-read only, which a demo should
  // not ask for, and this guest comes out just once: so one call on a thread of Deno's pool will do.
  const libc = Deno.dlopen("libc.so.6", {
    ioctl: { parameters: ["i32", "u64", "u64"], result: "i32", nonblocking: true },
  });
  try {
    let left = false;
    const running = libc.symbols.ioctl(vcpu.share().fd, KVM_RUN, 0n).then(() => left = true);
    while (!left && memory.readBigUint64(NOTES.first) === 0n) await delay(1);
    meanwhile();
    await delay(1);
    const leftEarly = left;
    memory.writeBigUint64(NOTES.stop, 1n);
    await running;
    const seen = (note: number) => Number(memory.readBigUint64(note));
    return { first: seen(NOTES.first), second: seen(NOTES.second), other: seen(NOTES.other), leftEarly };
  } finally {
    libc.close();
  }
}

/** Four letters, twice over, as the number that a load of eight bytes gives. */
function twice(letters: string): bigint {
  return new DataView(toWord(letters.repeat(2)).buffer).getBigUint64(0, true);
}

function delay(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
