/**
 * From nothing to the first exit of a guest, by hyperfine.
 *
 * @module
 */

import { attempt, type Built } from "./child.ts";

/** Milliseconds from the start of a program to its end. */
export interface StartUp {
  readonly title: string;
  readonly median: number;
  readonly min: number;
  readonly max: number;
}

interface HyperfineReport {
  readonly results: readonly { readonly median: number; readonly min: number; readonly max: number }[];
}

function file(name: string): string {
  return new URL(`startup/${name}.ts`, import.meta.url).pathname;
}

/** Measures all that were built; or says why nothing can be measured. */
export async function startUp(limit: Built, peers: Built, out: string): Promise<readonly StartUp[] | string> {
  const deno = `${Deno.execPath()} run --allow-ffi`;
  const programs: [title: string, command: string][] = [
    ["the smallest VMM in Deno", `${deno} ${file("smallest")}`],
    ["an empty program in Deno", `${deno} ${file("nothing")}`],
  ];
  if ("path" in limit) programs.push(["the smallest VMM in C", `${limit.path} first-exit`]);
  if ("path" in peers) programs.push(["the smallest VMM in Rust", `${peers.path} first-exit`]);
  const report = `${out}/hyperfine.json`;
  const commands = programs.map(([, command]) => command);
  const args = ["--shell=none", "--warmup=3", "--runs=25", "--style=none", "--export-json", report, ...commands];
  const done = await attempt("hyperfine", args);
  if (done.missing !== undefined) return done.missing;
  const { results } = JSON.parse(await Deno.readTextFile(report)) as HyperfineReport;
  return results.map(({ median, min, max }, i) => ({
    title: programs[i]?.[0] ?? "",
    median: median * 1e3,
    min: min * 1e3,
    max: max * 1e3,
  }));
}
