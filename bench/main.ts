/**
 * All benchmarks: `deno task bench`. What each row means is in bench/README.md.
 *
 *   --quick          a tenth of the rounds, to see whether everything works
 *   --only PATTERN   only the rows and parts whose names match: a row, "live", "scale", "slots", "heap", "accessors",
 *                    "clients", "copies", "dirty", "firmware", "vhost", "startup"
 *   --strace         also counts system calls
 *   --record         also counts system calls, and writes the tables into bench/README.md
 *
 * @module
 */

import type { Mappable } from "membacking";
import { Kvm } from "membacking/kvm";
import { BARE } from "./bare.ts";
import { apart, attempt, buildLimit, buildPeers, type Built, Child } from "./child.ts";
import { contest, type Effort, here, type Program, there } from "./contest.ts";
import { firmwareRows } from "./firmware.ts";
import type { Heap } from "./heap.ts";
import { ACCESSES } from "./layout.ts";
import { liveSwitch } from "./live.ts";
import { type Machine, newFile, OURS } from "./ours.ts";
import { drawScale } from "./picture.ts";
import { type Row, ROWS } from "./rows.ts";
import { ownTime, SHAPES, slotTime } from "./scale.ts";
import { startUp } from "./startup.ts";
import { figure, ratio, verdict } from "./stats.ts";
import { type Accessor, report, type Results, type RowResult } from "./table.ts";
import { trace, type Traced } from "./trace.ts";
import { IN_A_VMM, Vmm } from "./vmm.ts";

interface Options {
  readonly effort: Effort;
  readonly only: RegExp;
  readonly strace: boolean;
  readonly record: boolean;
}

function parse(args: readonly string[]): Options {
  let [quick, strace, record, only] = [false, false, false, ""];
  for (let i = 0; i < args.length; i++) {
    if (args[i] === "--quick") quick = true;
    else if (args[i] === "--strace") strace = true;
    else if (args[i] === "--record") record = strace = true;
    else if (args[i] === "--only" && i + 1 < args.length) only = args[++i] ?? "";
    else if (args[i] !== "--") throw new TypeError(`Unknown option "${args[i]}": see the top of bench/main.ts`);
  }
  const effort = quick ? { rounds: 7, roundTime: 1, warmUp: 50 } : { rounds: 61, roundTime: 2, warmUp: 400 };
  return { effort, only: new RegExp(only), strace, record };
}

const HERE = new URL("./", import.meta.url);
const OUT = new URL("out", HERE).pathname;

function say(text: string): void {
  console.error(text);
}

/** What the figures were taken on, without anything that names a particular machine. */
async function machineFacts(load: number): Promise<Record<string, string>> {
  const cpuInfo = await Deno.readTextFile("/proc/cpuinfo").catch(() => "");
  const model = cpuInfo.match(/^model name\s*:\s*(.*)$/m)?.[1] ?? "unknown";
  const kinds = ["kvm_intel", "kvm_amd", "kvm_pvm"];
  const kind = kinds.find((name) => {
    try {
      return Deno.statSync(`/sys/module/${name}`).isDirectory;
    } catch {
      return false;
    }
  });
  const version = async (command: string) => (await attempt(command, ["--version"])).stdout?.split("\n")[0] ?? "none";
  return {
    "CPU": `${model}, ${navigator.hardwareConcurrency} visible`,
    "Kernel": `Linux ${Deno.osRelease().match(/^[\d.]+/)?.[0] ?? ""}`,
    "KVM": kind ?? "of unknown kind",
    "Deno": `${Deno.version.deno}, V8 ${Deno.version.v8}`,
    "C": await version("cc"),
    "Rust": await version("rustc"),
    "Load": `${load.toFixed(1)} processes running before the benchmarks; 0 on an idle machine`,
  };
}

function openKvm(): Kvm | string {
  try {
    return Kvm.open();
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

/** One row in all programs that have it. */
async function measure(row: Row, machine: Machine, children: ReadonlyMap<Program, [Child, Built]>, effort: Effort) {
  await using stack = new AsyncDisposableStack();
  const inVmm = IN_A_VMM[row.name];
  // A VMM is set up for its row alone: a client that is served makes every request of its manager dearer.
  const ours = inVmm === undefined
    ? stack.use(OURS[row.name]!(machine))
    : stack.use(inVmm(stack.use(await Vmm.start(machine, { hook: row.name.endsWith("-held") })), machine));
  const bare = stack.use(BARE[row.name]!(machine));
  const runners: [Program, ReturnType<typeof here>][] = [["ours", here(ours)], ["bare", here(bare)]];
  for (const [program, [child, built]] of children) {
    if ("rows" in built && built.rows.has(row.name)) runners.push([program, there(child, row.name)]);
  }
  return await contest(runners, effort);
}

async function rowResult(
  row: Row,
  machine: Machine,
  children: ReadonlyMap<Program, [Child, Built]>,
  effort: Effort,
): Promise<RowResult> {
  if (row.needsKvm && machine.kvm === null) return { row, skipped: true, times: {}, ratios: {} };
  const rounds = await measure(row, machine, children, effort);
  const ours = rounds.ours ?? [];
  const figures: Record<string, ReturnType<typeof figure>> = {};
  const ratios: Record<string, ReturnType<typeof figure>> = {};
  for (const [program, times] of Object.entries(rounds)) {
    figures[program] = figure(times);
    if (program !== "ours") ratios[program] = ratio(ours, times);
  }
  const { target } = row;
  const against = target === undefined ? undefined : ratios[target.to];
  return {
    row,
    times: figures,
    ratios,
    ...(row.section === "requests" && rounds.bare && {
      own: figure(ours.map((time, i) => time - (rounds.bare?.[i] ?? NaN))),
    }),
    ...(target !== undefined && against !== undefined && { verdict: verdict(against, target.atMost) }),
  };
}

/** Each in a process of its own: what one leaves to the garbage collector must not count for the other. */
async function measureHeap(): Promise<Heap | string> {
  const script = new URL("heap.ts", HERE).pathname;
  const measure = (what: keyof Heap) =>
    attempt(Deno.execPath(), ["run", "-A", "--no-check", "--v8-flags=--expose-gc", script, what]);
  const [region, mapping] = [await measure("region"), await measure("mapping")];
  if (region.missing !== undefined) return region.missing;
  if (mapping.missing !== undefined) return mapping.missing;
  return { region: Number(region.stdout), mapping: Number(mapping.stdout) };
}

interface BenchReport {
  readonly benches: readonly {
    readonly group: string;
    readonly name: string;
    readonly results: readonly { readonly ok?: { readonly avg: number } }[];
  }[];
}

async function measureAccessors(): Promise<Accessor[] | string> {
  const script = new URL("accessors.bench.ts", HERE).pathname;
  const done = await attempt(Deno.execPath(), ["bench", "-A", "--no-check", "--json", script]);
  if (done.missing !== undefined) return done.missing;
  const { benches } = JSON.parse(done.stdout) as BenchReport;
  return [...Map.groupBy(benches, ({ group }) => group)].map(([name, pair]) => {
    const average = (of: string) => (pair.find((bench) => bench.name === of)?.results[0]?.ok?.avg ?? NaN) / ACCESSES;
    return { name: name.slice(`${ACCESSES} times `.length), ours: average("GuestMemory"), plain: average("DataView") };
  });
}

/** Puts the tables into bench/README.md, and the picture beside it. */
async function record(text: string, picture: string): Promise<void> {
  const readme = new URL("README.md", HERE);
  const [begin, end] = ["<!-- recorded: begin -->", "<!-- recorded: end -->"];
  const old = await Deno.readTextFile(readme);
  const [before, after] = [old.indexOf(begin), old.indexOf(end)];
  if (before < 0 || after < before) throw new Error(`bench/README.md lacks ${begin} and ${end}`);
  await Deno.writeTextFile(readme, `${old.slice(0, before + begin.length)}\n\n${text}\n\n${old.slice(after)}`);
  const drawing = new URL("scale.svg", HERE);
  await Deno.writeTextFile(drawing, picture);
  await attempt(Deno.execPath(), ["fmt", "--quiet", readme.pathname, drawing.pathname]);
}

async function main(): Promise<void> {
  const { effort, only, strace, record: recorded } = parse(Deno.args);
  const quick = { quick: effort.rounds < 10 };
  const wants = (name: string) => only.test(name);
  const [load = NaN] = Deno.loadavg();
  await Deno.mkdir(OUT, { recursive: true });
  say("Building the programs in C and Rust");
  const [limit, peers] = [await buildLimit(OUT), await buildPeers(OUT)];
  const opened = openKvm();
  const noKvm = typeof opened === "string" ? opened : null;
  const needsKvm = "there is no KVM";

  await using stack = new AsyncDisposableStack();
  const kvm = typeof opened === "string" ? null : stack.use(opened);
  const children = new Map<Program, [Child, Built]>();
  const missing: Record<string, string> = noKvm === null ? {} : { KVM: noKvm };
  for (const [program, built] of [["C", limit], ["Rust", peers]] as const) {
    if ("missing" in built) missing[program] = built.missing;
    else children.set(program, [stack.use(new Child(built.path)), built]);
  }

  const rows: RowResult[] = [];
  {
    using vm = kvm?.createVm();
    using file: Mappable = newFile();
    const machine = { kvm, vm: vm ?? null, file };
    for (const row of ROWS.filter(({ name }) => wants(name))) {
      say(`Row ${row.name}`);
      rows.push(await rowResult(row, machine, children, effort));
    }
  }

  const live: Results["live"] = !wants("live") ? [] : kvm === null ? needsKvm : await (async () => {
    say("Switching under a running guest");
    return [await liveSwitch(kvm, 2 ** 21), await liveSwitch(kvm, 2 ** 30)];
  })();
  const scale = !wants("scale") ? [] : SHAPES.flatMap((shape) => {
    say(`Scale: ${shape.title}`);
    return ownTime(effort, [shape]);
  });
  if (wants("slots")) say("Scale: slots");
  const slots: Results["slots"] = !wants("slots") ? [] : kvm === null ? needsKvm : slotTime(kvm, effort);
  if (wants("heap")) say("Heap");
  const heap = wants("heap") ? await measureHeap() : null;
  if (wants("accessors")) say("Accessors");
  const accessors = wants("accessors") ? await measureAccessors() : [];
  if (wants("copies")) say("Copies of memory");
  const copies: Results["copies"] = !wants("copies") ? [] : kvm === null ? needsKvm : await apart("copies.ts", quick);
  if (wants("clients")) say("Clients in other threads");
  const clients: Results["clients"] = wants("clients") ? await apart("clients.ts", quick) : [];
  const roundTrips: Results["roundTrips"] = wants("clients") ? await apart("round_trips.ts", quick) : null;
  if (wants("dirty")) say("Written pages");
  const dirty: Results["dirty"] = wants("dirty") ? await apart("dirty.ts", quick) : null;
  if (wants("firmware")) say("Firmware");
  const firmware = wants("firmware") ? await firmwareRows(effort.rounds < 10 ? 1 : 3) : [];
  if (wants("vhost")) say("Devices in other processes");
  const vhost: Results["vhost"] = wants("vhost") ? await apart("vhost.ts", quick) : [];
  if (wants("startup")) say("Start-up");
  const started = !wants("startup") ? [] : kvm === null ? needsKvm : await startUp(limit, peers, OUT);
  const traced: Record<string, Traced | string> = {};
  if (strace && kvm !== null) {
    // Those of a whole VMM need more than a row by itself can be.
    for (const { row } of rows.filter(({ row }) => row.section !== "memory" && !(row.name in IN_A_VMM))) {
      say(`System calls of ${row.name}`);
      traced[row.name] = await trace(row.name, limit, OUT);
    }
  }

  const results: Results = {
    machine: await machineFacts(load),
    missing,
    rows,
    live,
    scale,
    slots,
    heap,
    accessors,
    clients,
    copies,
    roundTrips,
    dirty,
    firmware,
    vhost,
    startUp: started,
    traced: strace ? traced : null,
  };
  const text = report(results);
  console.log(text);
  await Deno.writeTextFile(`${OUT}/results.json`, JSON.stringify(results, null, 2));
  await Deno.writeTextFile(`${OUT}/table.md`, `${text}\n`);
  if (scale.length > 0) await Deno.writeTextFile(`${OUT}/scale.svg`, drawScale(scale));
  if (recorded) await record(text, drawScale(scale));
}

await main();
