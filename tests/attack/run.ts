/**
 * Runs children that attack, for as long as one likes, and says how each of them ended.
 *
 * @module
 */

import type { Family, Report } from "./family.ts";
import { Random } from "./random.ts";

/** How a child ended. */
export type Ending = "clean" | "broken" | "crash" | "hang";

/** What came of one child. */
export interface Result {
  /** The family. */
  readonly family: string;
  /** What repeats it. */
  readonly seed: number;
  /** How it ended. */
  readonly ending: Ending;
  /** What went wrong: one line or several. */
  readonly detail: string;
  /** What it has seen, where it came to its end. */
  readonly report: Report | undefined;
}

const TIMEOUT = 30_000;

/** Runs one child. */
export async function runChild(family: Family, seed: number): Promise<Result> {
  // Where whatever it makes of files goes with it.
  const directory = await Deno.makeTempDir({ prefix: "attack-" });
  const child = new Deno.Command(Deno.execPath(), {
    args: [
      "run",
      "--quiet",
      "-A",
      "--no-check",
      new URL("./child.ts", import.meta.url).pathname,
      family.name,
      `${seed}`,
    ],
    cwd: directory,
    env: { NO_COLOR: "1" },
    ...{ stdin: "null", stdout: "piped", stderr: "piped" },
  }).spawn();
  let hangs = false;
  const timer = setTimeout(() => {
    hangs = true;
    child.kill("SIGKILL");
  }, family.timeout ?? TIMEOUT);
  const { code, signal, stdout, stderr } = await child.output();
  clearTimeout(timer);
  await Deno.remove(directory, { recursive: true });
  const said = new TextDecoder().decode(stderr).trim().split("\n").slice(0, 12).join("\n");
  const ended = (ending: Ending, detail: string, report?: Report): Result => ({
    ...{ family: family.name, seed, ending, detail, report },
  });
  if (hangs) return ended("hang", said);
  if (code !== 0) return ended("crash", `${signal ?? `exit code ${code}`}\n${said}`);
  const report = reportIn(new TextDecoder().decode(stdout));
  if (report === undefined) return ended("crash", `without a report\n${said}`);
  return ended(report.broken.length > 0 ? "broken" : "clean", report.broken.join("\n"), report);
}

/** Runs children of `families` in turn for so many seconds, two at a time, and hands each result to `use`. */
export async function attack(
  families: readonly Family[],
  seconds: number,
  seed: number,
  use: (result: Result) => void,
): Promise<Result[]> {
  const random = new Random(seed);
  const until = performance.now() + seconds * 1000;
  const results: Result[] = [];
  let next = 0;
  const worker = async () => {
    // Each family once, however short the time.
    while (performance.now() < until || next < families.length) {
      const family = families[next++ % families.length];
      if (family === undefined) return;
      const result = await runChild(family, random.next());
      results.push(result);
      use(result);
    }
  };
  await Promise.all([worker(), worker()]);
  return results;
}

/** The results counted: one line for each family. */
export function table(results: readonly Result[]): string {
  const families = [...new Set(results.map(({ family }) => family))].sort();
  const rows = families.map((family) => {
    const of = results.filter((result) => result.family === family);
    const ended = (ending: Ending) => of.filter((result) => result.ending === ending).length;
    const attempts = of.reduce((sum, { report }) => sum + (report?.attempts ?? 0), 0);
    return [family, of.length, attempts, ended("clean"), ended("broken"), ended("crash"), ended("hang")];
  });
  const all = [["family", "children", "attempts", "clean", "broken", "crash", "hang"], ...rows];
  return all.map((row) => row.map((cell, i) => i === 0 ? `${cell}`.padEnd(12) : `${cell}`.padStart(9)).join("")).join(
    "\n",
  );
}

function reportIn(text: string): Report | undefined {
  try {
    return JSON.parse(text.trim().split("\n").at(-1) ?? "");
  } catch {
    return undefined;
  }
}
