/**
 * Counts the system calls of each row with strace, in this package and in the C program: between two calls of
 * close(-1000), which fail and do nothing else.
 *
 * Run by itself with `ours ROW COUNT` or `bare ROW COUNT`, it is what strace looks at.
 *
 * @module
 */

import { Kvm } from "membacking/kvm";
import { BARE, mark } from "./bare.ts";
import { attempt, type Built } from "./child.ts";
import { newFile, OURS } from "./ours.ts";

/** The system calls of one time of a row, such as `"2 mmap, 2 ioctl"`, by program. */
export interface Traced {
  readonly ours: string;
  readonly C: string;
  /** How many more calls ours makes. */
  readonly more: number;
}

/** What V8 does on its own to wake the threads of its garbage collector. */
const RUNTIME: readonly string[] = ["futex"];

const COUNT = 60;
/** Rows that take a second per time under strace need not be repeated as often. */
const FEW = 20;

/** The calls between markers: what most of the times have, since a garbage collection may fall into any of them. */
function usual(log: string): string[] {
  const lines = log.split("\n").map((line) => line.match(/^(\d+)\s+(?:<\.\.\. )?(\w+)(\(| resumed)(.*)$/));
  const marker = lines.find((line) => line?.[2] === "close" && line[4]?.startsWith("-1000"));
  if (marker == null) throw new Error("There is no marker in the trace");
  const turns: string[][] = [];
  for (const line of lines) {
    if (line?.[1] !== marker[1] || line?.[3] !== "(") continue;
    if (line[2] === "close" && line[4]?.startsWith("-1000")) turns.push([]);
    else if (!RUNTIME.includes(line[2]!)) turns.at(-1)?.push(line[2]!);
  }
  turns.pop(); // what comes after the last
  const counted = Map.groupBy(turns.slice(turns.length / 2), (turn) => summary(turn));
  const [most] = [...counted].sort((a, b) => b[1].length - a[1].length);
  return most?.[1][0] ?? [];
}

function summary(calls: readonly string[]): string {
  return [...Map.groupBy(calls, (call) => call)].map(([call, { length }]) => `${length} ${call}`).sort().join(", ");
}

/** Counts the calls of one row; a string says why it cannot be done. */
export async function trace(row: string, limit: Built, out: string): Promise<Traced | string> {
  if ("missing" in limit) return limit.missing;
  const log = `${out}/strace.log`;
  const strace = async (command: string[]) => {
    const done = await attempt("strace", ["-f", "-qq", "-o", log, ...command]);
    if (done.missing !== undefined) throw new Error(done.missing);
    return usual(await Deno.readTextFile(log));
  };
  const count = String(row.startsWith("region") ? FEW : COUNT);
  try {
    const ours = await strace([Deno.execPath(), "run", "-A", "--no-check", import.meta.url, "ours", row, count]);
    const C = await strace([limit.path, "trace", row, count]);
    return { ours: summary(ours), C: summary(C), more: ours.length - C.length };
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

if (import.meta.main) {
  const [who, row = "", count] = Deno.args;
  using kvm = Kvm.open();
  using vm = kvm.createVm();
  using file = newFile();
  using bench = (who === "ours" ? OURS : BARE)[row]?.({ kvm, vm, file });
  if (bench === undefined) throw new Error(`There is no row "${row}"`);
  for (let i = 0; i < Number(count); i++) {
    mark();
    bench.run(1);
  }
  mark();
}
