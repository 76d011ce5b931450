/**
 * Runs the test files in this folder one after the other, each in a process and with a time of its own, and prints a table:
 * one that hangs or breaks everything around it is one line. Made for the second KVM, where all of them take long.
 *
 * `deno run -A tests/nested/every_file.ts [--limit SECONDS] [FILE OR FOLDER]...`
 *
 * @module
 */

/** How long one file may take, in seconds. */
const LIMIT = 300;
/** How long a file has to end after it was told to, in milliseconds. */
const GRACE = 5000;

/** What came of one file. */
interface Outcome {
  readonly file: string;
  readonly passed: number;
  readonly failed: number;
  readonly ignored: number;
  readonly seconds: number;
  /** Why there is no summary, if there is none. */
  readonly why: string | null;
}

function* testFiles(path: string): Iterable<string> {
  if (Deno.statSync(path).isFile) return yield path;
  const entries = [...Deno.readDirSync(path)].sort((a, b) => a.name < b.name ? -1 : 1);
  for (const { name, isDirectory } of entries) {
    if (isDirectory) yield* testFiles(`${path}/${name}`);
    else if (name.endsWith(".test.ts")) yield `${path}/${name}`;
  }
}

async function run(file: string, limit: number): Promise<Outcome> {
  const began = performance.now();
  const child = new Deno.Command(Deno.execPath(), {
    args: ["test", "-A", "--no-check", file],
    env: { NO_COLOR: "1" },
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  let isLate = false;
  const late = setTimeout(() => {
    isLate = true;
    child.kill("SIGTERM");
    Deno.unrefTimer(setTimeout(() => kill(child), GRACE));
  }, limit * 1000);
  const { stdout, stderr, code } = await child.output();
  clearTimeout(late);
  const text = new TextDecoder().decode(stdout);
  const seconds = (performance.now() - began) / 1000;
  // ok | 12 passed (3 steps) | 0 failed | 3 ignored (2s)
  const summary = /^(?:ok|FAILED) \| (\d+) passed.* \| (\d+) failed(?:.*?(\d+) ignored)?/m.exec(text);
  const failed = Number(summary?.[2] ?? 0);
  if (code !== 0) console.log(text.trimEnd(), new TextDecoder().decode(stderr).trimEnd());
  return {
    ...{ file, seconds, failed, passed: Number(summary?.[1] ?? 0), ignored: Number(summary?.[3] ?? 0) },
    why: isLate ? `not over after ${limit} s` : summary === null ? `ended with status ${code}` : null,
  };
}

function kill(child: Deno.ChildProcess): void {
  try {
    child.kill("SIGKILL");
  } catch {
    // It has ended meanwhile.
  }
}

function line({ file, passed, failed, ignored, seconds, why }: Outcome): string {
  const numbers = [passed, failed, ignored].map((count) => `${count}`.padStart(6)).join(" |");
  return `| ${file.padEnd(44)} |${numbers} |${seconds.toFixed(0).padStart(5)} |${why === null ? "" : ` ${why}`}`;
}

const args = [...Deno.args];
const limit = args[0] === "--limit" ? Number(args.splice(0, 2)[1]) : LIMIT;
const paths = args.length === 0 ? ["tests"] : args;
const outcomes: Outcome[] = [];
for (const file of paths.flatMap((path) => [...testFiles(path)])) {
  const outcome = await run(file, limit);
  console.log(line(outcome));
  outcomes.push(outcome);
}
console.log(`\n| ${"file".padEnd(44)} |passed |failed |ignored| secs |\n| --- | --: | --: | --: | --: |`);
for (const outcome of outcomes) console.log(line(outcome));
const sum = (count: (outcome: Outcome) => number) => outcomes.reduce((sum, outcome) => sum + count(outcome), 0);
const broken = outcomes.filter(({ why }) => why !== null).length;
const [passed, failed, ignored] = [sum((o) => o.passed), sum((o) => o.failed), sum((o) => o.ignored)];
console.log(
  `\n${outcomes.length} files: ${passed} passed, ${failed} failed, ${ignored} ignored, ${broken} without a result`,
);
Deno.exit(failed + broken === 0 ? 0 : 1);
