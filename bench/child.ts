/**
 * Other programs that do the same rows: started once, asked for one round at a time, so that rounds of all programs
 * take turns.
 *
 * @module
 */

/** A program that reads `<row> <count>` and answers with nanoseconds. */
export class Child implements AsyncDisposable {
  readonly #process: Deno.ChildProcess;
  readonly #input: WritableStreamDefaultWriter<Uint8Array>;
  readonly #output: ReadableStreamDefaultReader<string>;
  #buffered = "";

  /** Starts the program at `path`. */
  constructor(path: string, args: readonly string[] = []) {
    this.#process = new Deno.Command(path, { args: [...args], stdin: "piped", stdout: "piped", stderr: "inherit" })
      .spawn();
    this.#input = this.#process.stdin.getWriter();
    this.#output = this.#process.stdout.pipeThrough(new TextDecoderStream()).getReader();
  }

  /** Does a row `count` times and says how many nanoseconds it took. */
  async run(row: string, count: number): Promise<number> {
    await this.#input.write(new TextEncoder().encode(`${row} ${count}\n`));
    while (!this.#buffered.includes("\n")) {
      const { value, done } = await this.#output.read();
      if (done) throw new Error(`The program ended in row "${row}"`);
      this.#buffered += value;
    }
    const end = this.#buffered.indexOf("\n");
    const time = Number(this.#buffered.slice(0, end));
    this.#buffered = this.#buffered.slice(end + 1);
    return time;
  }

  /** Ends the program. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#input.close().catch(() => {});
    await this.#output.cancel();
    await this.#process.status;
  }
}

/** A program built for this run, or why there is none. */
export type Built = { readonly path: string; readonly rows: ReadonlySet<string> } | { readonly missing: string };

/** The last lines of what a failed command said. */
function complaint(output: Deno.CommandOutput): string {
  const text = new TextDecoder().decode(output.stderr).trim();
  return text.split("\n").slice(-3).join("; ");
}

/** Runs a command to its end; `missing` says why it could not be done. */
export async function attempt(command: string, args: string[], env: Record<string, string> = {}) {
  try {
    const output = await new Deno.Command(command, { args, env, stdout: "piped", stderr: "piped" }).output();
    return output.success
      ? { stdout: new TextDecoder().decode(output.stdout) }
      : { missing: `${command} failed: ${complaint(output)}` };
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return { missing: `${command} is not installed` };
    throw error;
  }
}

/**
 * What another file of this folder measures, in a process of its own: what the engine has compiled by then for other rows,
 * and the kernel mappings there are, would be in the way. A string says why there is nothing.
 */
export async function apart<T>(script: string, { quick }: { quick: boolean }): Promise<T | string> {
  const path = new URL(script, import.meta.url).pathname;
  const args = ["run", "-A", "--no-check", path, "--json", ...(quick ? ["--quick"] : [])];
  const { stdout, missing } = await attempt(Deno.execPath(), args);
  return missing ?? JSON.parse(stdout);
}

async function withRows(path: string): Promise<Built> {
  const listed = await attempt(path, ["rows"]);
  return listed.missing === undefined ? { path, rows: new Set(listed.stdout.trim().split("\n")) } : listed;
}

/** Builds the C program into `out`. */
export async function buildLimit(out: string): Promise<Built> {
  const path = `${out}/limit`;
  const source = new URL("limit/limit.c", import.meta.url).pathname;
  const built = await attempt("cc", ["-O2", "-Wall", "-Wextra", "-Werror", "-o", path, source]);
  return built.missing === undefined ? await withRows(path) : built;
}

/** Builds the Rust program into `out`. */
export async function buildPeers(out: string): Promise<Built> {
  const manifest = new URL("peers/Cargo.toml", import.meta.url).pathname;
  const args = ["build", "--release", "--locked", "--quiet", "--manifest-path", manifest];
  const built = await attempt("cargo", args, { CARGO_TARGET_DIR: `${out}/peers` });
  return built.missing === undefined ? await withRows(`${out}/peers/release/peers`) : built;
}
