/**
 * What copies of memory cost, each beside the same system calls or the same bytes moved in another way:
 * `deno run -A bench/copies.ts [--quick] [--json]`.
 *
 * @module
 */

import { GuestMemoryManager, Mappable, MemoryRange, Snapshot } from "membacking";
import { Kvm } from "membacking/kvm";
import { startRealMode } from "../examples/guest/mod.ts";
import { dropPages, privatePages } from "../ffi/host/private_pages.ts";
import { releaseAddresses, reserveAddresses } from "../ffi/os/address_space.ts";
import { libc } from "../ffi/os/libc.ts";
import { MAP_FIXED, MAP_NORESERVE, MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE } from "../ffi/os/mman.ts";
import { hostView, revokeView } from "../ffi/os/view.ts";
import { attempt, buildLimit, Child } from "./child.ts";
import { contest, here, there } from "./contest.ts";
import { MIB, PAGE, PORT_LOOP } from "./layout.ts";
import { onOneCpu } from "./one_cpu.ts";
import { figure, ratio } from "./stats.ts";

/** One line: what, in which unit, ours, the other, and the one over the other. */
export interface CopyRow {
  readonly title: string;
  readonly ours: string;
  readonly other: string;
  readonly ratio: string;
}

const READ_WRITE = PROT_READ | PROT_WRITE;

function guestOf(size: number): GuestMemoryManager {
  return GuestMemoryManager.create({
    maxAddress: size,
    ram: [{ ranges: [new MemoryRange(0, size)], transparentHugepages: false }],
  });
}

/** Nanoseconds of one call. */
function time(call: () => void): number {
  const start = performance.now();
  call();
  return (performance.now() - start) * 1e6;
}

function row(title: string, ours: readonly number[], other: readonly number[], otherIs: string): CopyRow {
  const text = (times: readonly number[]) => `${(figure(times).median / 1e3).toFixed(1)} us`;
  const { median, low, high } = ratio(ours, other);
  return {
    title,
    ours: text(ours),
    other: `${text(other)}, ${otherIs}`,
    ratio: `${median.toFixed(2)} (${low.toFixed(2)}-${high.toFixed(2)})`,
  };
}

/** Made until everything is compiled, which takes thousands of them: each is a little of everything. */
const CLONES = 8000;

async function cloneRows(rounds: number, many: number): Promise<CopyRow[]> {
  const out = new URL("out", import.meta.url).pathname;
  await Deno.mkdir(out, { recursive: true });
  const limit = await buildLimit(out);
  if ("missing" in limit) return [{ title: "a clone to its first exit", ours: "", other: limit.missing, ratio: "" }];
  using kvm = Kvm.open();
  using guest = guestOf(64 * MIB);
  guest.memory.write(0x1000, PORT_LOOP);
  using template = guest.freeze();
  const run = (count: number) => {
    for (let i = 0; i < count; i++) {
      using clone = template.clone();
      using vm = kvm.createVm();
      using _attached = clone.attachPartition(vm);
      using vcpu = vm.createVcpu(0);
      startRealMode(vcpu, 0x1000);
      if (vcpu.run().kind !== "io") throw new Error("Unexpected exit");
    }
  };
  using _cpu = onOneCpu();
  await using child = new Child(limit.path);
  const measure = async (when: string) => {
    const programs = [["ours", here({ run, [Symbol.dispose]() {} })], ["C", there(child, "clone")]] as const;
    const times = await contest(programs, { rounds, roundTime: 20, warmUp: 500 });
    return row(
      `a clone of 64 MiB and its VM, to its first exit and back, ${when}`,
      times.ours ?? [],
      times.C ?? [],
      "C",
    );
  };
  const first = await measure("one of the first thousand");
  run(many);
  return [first, await measure("later on")];
}

/** A private mapping of a file for bare calls, with pages to be written. */
function bareCopy(size: number) {
  const file = Mappable.memfd("bare", size);
  const address = reserveAddresses(size, 2 * MIB);
  const { sys } = libc();
  const map = (flags: number) => sys.mmap(BigInt(address), BigInt(size), READ_WRITE, flags | MAP_FIXED, file.fd, 0n);
  map(MAP_PRIVATE | MAP_NORESERVE);
  const view = hostView(address, size);
  return {
    address,
    map,
    bytes: new Uint8Array(view),
    [Symbol.dispose]() {
      revokeView(view);
      releaseAddresses(address, size);
      file[Symbol.dispose]();
    },
  };
}

function rollbackRow(pages: number, rounds: number): CopyRow {
  const size = 64 * MIB;
  using guest = guestOf(size);
  using _template = guest.freeze();
  using bare = bareCopy(size);
  const step = Math.floor(size / PAGE / pages) * PAGE;
  const ours: number[] = [];
  const other: number[] = [];
  for (let i = 0; i < rounds; i++) {
    for (let at = 0; at < pages; at++) guest.memory.writeUint8(at * step, 1);
    ours.push(time(() => guest.rollback()));
    for (let at = 0; at < pages; at++) bare.bytes[at * step] = 1;
    other.push(time(() => {
      for (const { start, end } of privatePages(bare.address, size)) dropPages(start, end - start);
    }));
  }
  return row(`rollback of ${pages} pages written all over 64 MiB`, ours, other, "bare scan and madvise");
}

function freezeRow(size: number, rounds: number): CopyRow {
  using guest = guestOf(size);
  guest.memory.fill(0, size, 1);
  using bare = bareCopy(size);
  bare.map(MAP_SHARED);
  bare.bytes.fill(1);
  const ours: number[] = [];
  const other: number[] = [];
  const touch = (read: (at: number) => number) => {
    let sum = 0;
    for (let at = 0; at < size; at += PAGE) sum += read(at);
    return sum;
  };
  for (let i = 0; i < rounds; i++) {
    touch((at) => guest.memory.readUint8(at));
    ours.push(time(() => guest.freeze()[Symbol.dispose]()));
    guest.thaw();
    touch((at) => bare.bytes[at] ?? 0);
    other.push(time(() => void bare.map(MAP_PRIVATE | MAP_NORESERVE)));
    bare.map(MAP_SHARED);
  }
  return row(`freeze of ${size / MIB} MiB, all of it touched`, ours, other, "bare mmap");
}

/** Saves memory of which half is zeros, beside what cp makes of a file with the same bytes. */
async function saveRow(size: number, rounds: number): Promise<CopyRow[]> {
  const folder = await Deno.makeTempDir();
  try {
    using guest = guestOf(size);
    for (let at = 0; at < size; at += 2 * MIB) guest.memory.fill(at, MIB, 1 + at % 251);
    await Deno.writeFile(`${folder}/memory`, guest.memory.read(0, size));
    const ours: number[] = [];
    const other: number[] = [];
    const restores: number[] = [];
    const reads: number[] = [];
    let stored = 0;
    let copied = 0;
    for (let i = 0; i < rounds; i++) {
      let start = performance.now();
      using _snapshot = await guest.save(`${folder}/${i}`);
      ours.push((performance.now() - start) * 1e6);
      start = performance.now();
      const copy = await attempt("sh", [
        "-c",
        `cp --sparse=always ${folder}/memory ${folder}/copy && sync ${folder}/copy`,
      ]);
      if (copy.missing !== undefined) throw new Error(copy.missing);
      other.push((performance.now() - start) * 1e6);
      stored = (await Deno.stat(`${folder}/${i}/memory`)).blocks ?? 0;
      copied = (await Deno.stat(`${folder}/copy`)).blocks ?? 0;
      using opened = await Snapshot.open(`${folder}/${i}`);
      restores.push(time(() => GuestMemoryManager.restore(opened)[Symbol.dispose]()));
      reads.push(time(() => Deno.readFileSync(`${folder}/copy`)));
      await Deno.remove(`${folder}/${i}`, { recursive: true });
      await Deno.remove(`${folder}/copy`);
    }
    const title = `save of ${size / MIB} MiB, half of it zeros, until it is on the disk`;
    return [
      { ...row(title, ours, other, "cp --sparse=always and sync"), title: `${title}; blocks ${stored} and ${copied}` },
      row(`restore of ${size / MIB} MiB`, restores, reads, "reading the file"),
    ];
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

/** All rows. */
export async function measureCopies({ quick }: { quick: boolean }): Promise<CopyRow[]> {
  const rounds = quick ? 5 : 31;
  return [
    ...await cloneRows(rounds, quick ? 100 : CLONES),
    ...[1, 64, 1024].map((pages) => rollbackRow(pages, rounds * 4)),
    freezeRow(64 * MIB, rounds),
    freezeRow(512 * MIB, Math.ceil(rounds / 4)),
    ...await saveRow(64 * MIB, Math.ceil(rounds / 4)),
    ...await saveRow(512 * MIB, Math.ceil(rounds / 8)),
  ];
}

if (import.meta.main) {
  const rows = await measureCopies({ quick: Deno.args.includes("--quick") });
  if (Deno.args.includes("--json")) console.log(JSON.stringify(rows));
  else for (const { title, ours, other, ratio } of rows) console.log(`${title}: ${ours}, beside ${other}: ${ratio}`);
}
