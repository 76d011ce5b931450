/**
 * Running a program of `children/` in a process of its own: what it does to its limits and its address space, and what
 * the kernel does to it in turn, stays there.
 *
 * @module
 */

import { assertEquals } from "@std/assert";
import type { Attempt } from "./children/attempt.ts";

/** How a program is run. */
export interface ChildOptions {
  /**
   * Whether it leaves hardly a kernel mapping to the rest of its process: then the C library gets its memory beforehand
   * and in one piece, since V8 ends the process when it gets none.
   */
  readonly fewMappings?: boolean;
}

/** Runs a program with the permission to use FFI and no other, and returns what it reports. */
export async function runChild<Report>(name: string, options: ChildOptions = {}): Promise<Report> {
  const { fewMappings = false } = options;
  const program = new URL(`./children/${name}`, import.meta.url);
  const { code, signal, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: [
      ...["run", "--quiet", "--no-prompt", "--no-check", "--allow-ffi"],
      ...(fewMappings ? ["--v8-flags=--single-threaded"] : []),
      program.href,
    ],
    env: fewMappings ? { GLIBC_TUNABLES: TUNABLES } : {},
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).output();
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  if (code !== 0 || signal !== null) {
    throw new Error(`${name} ended with ${signal ?? code}:\n${text(stderr)}${text(stdout)}`);
  }
  return JSON.parse(text(stdout));
}

/** Keeps the runtime from making mappings, where there are few. */
export const TUNABLES: string = ["arena_max=1", `top_pad=${2 ** 26}`, `mmap_threshold=${2 ** 30}`]
  .map((tunable) => `glibc.malloc.${tunable}`).join(":");

/** Throws unless the request failed, left everything as it was, and came true once the cause of its failure was gone. */
export function assertAllOrNothing(attempt: Attempt, what: string): void {
  const { error, before, after, retried } = attempt;
  if (error === null) throw new Error(`${what}: the request did not fail`);
  assertEquals(after, before, `${what}: the failure left a trace`);
  assertEquals(retried, null, `${what}: the request fails without its cause`);
}
