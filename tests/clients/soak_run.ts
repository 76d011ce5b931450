/**
 * Runs the soak test in a process of its own, so that a crash or a deadlock of it is seen from outside.
 *
 * @module
 */

/** For how much longer than asked the process may take before it is taken to hang, in milliseconds. */
const PATIENCE = 60_000;

/** Runs the soak for `seconds`. */
export function runSoak(seconds: number, seed: number): Promise<Record<string, number>> {
  return runOwner("soak_owner.ts", seconds, seed);
}

/** Runs one program for `seconds`. Returns how often what was done; throws if the process failed, crashed or hung. */
export async function runOwner(program: string, seconds: number, seed: number): Promise<Record<string, number>> {
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", "--no-check", new URL(program, import.meta.url).href, String(seconds), String(seed)],
    cwd: new URL("../../", import.meta.url),
    env: { NO_COLOR: "1" },
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const hangs = setTimeout(() => child.kill("SIGKILL"), seconds * 1000 + PATIENCE);
  const { success, signal, stdout, stderr } = await child.output();
  clearTimeout(hangs);
  const decoder = new TextDecoder();
  if (success) return JSON.parse(decoder.decode(stdout));
  const how = signal === "SIGKILL" ? "hung" : signal === null ? "failed" : `crashed by ${signal}`;
  throw new Error(`${program} with seed ${seed} ${how}:\n${decoder.decode(stderr)}`);
}
