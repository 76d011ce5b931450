/**
 * A client in another process, told from a test what to do.
 *
 * @module
 */

import type { RegionManager } from "membacking";
import { RemoteError, type RemoteErrorData, type RemoteJob } from "./remote.ts";

/** A process with a client. */
export class RemoteProcess implements AsyncDisposable {
  readonly child: Deno.ChildProcess;
  readonly served: Disposable;
  readonly #waiting: PromiseWithResolvers<string>[] = [];
  readonly #writer: WritableStreamDefaultWriter<Uint8Array>;
  readonly #reading: Promise<void>;

  private constructor(regions: RegionManager, options: { deadline?: number }, args: readonly string[]) {
    const served = regions.serveProcess((fd) => RemoteProcess.spawn(fd, args), options);
    this.child = served.child;
    this.served = served;
    this.#writer = this.child.stdin.getWriter();
    this.#reading = this.#read();
  }

  /** Starts the process that is to connect by `fd`. */
  static spawn(fd: number, args: readonly string[] = []): Deno.ChildProcess {
    return new Deno.Command(Deno.execPath(), {
      args: [
        "run",
        "--no-check",
        "--allow-ffi",
        new URL("./process_child.ts", import.meta.url).href,
        String(fd),
        ...args,
      ],
      cwd: new URL("../../", import.meta.url),
      stdin: "piped",
      stdout: "piped",
      stderr: "inherit",
      env: { NO_COLOR: "1" },
    }).spawn();
  }

  /** Starts a process with a client of `regions`; with `later`, one that connects when it is told to. */
  static async start(
    regions: RegionManager,
    options: { deadline?: number; later?: boolean } = {},
  ): Promise<RemoteProcess> {
    const { later = false, ...rest } = options;
    const remote = new RemoteProcess(regions, rest, later ? ["later"] : []);
    await remote.#line();
    return remote;
  }

  /** Runs the body of an async function in the process, as `Remote.run` does. Values and results go as JSON. */
  async run<T = unknown>(code: string, values: Record<string, unknown> = {}): Promise<T> {
    const job: RemoteJob = { kind: "job", code, names: Object.keys(values), values: Object.values(values) };
    const answer = this.#line();
    await this.#writer.write(new TextEncoder().encode(JSON.stringify(job) + "\n"));
    const reply = JSON.parse(await answer);
    if ("error" in reply) throw new RemoteError(reply.error as RemoteErrorData);
    return reply.value;
  }

  /** Ends the process at once. */
  async kill(): Promise<void> {
    try {
      this.child.kill("SIGKILL");
    } catch {
      // It has ended.
    }
    await this.child.status;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
    await this.#reading;
    await this.#writer.abort().catch(() => {});
    this.served[Symbol.dispose]();
  }

  #line(): Promise<string> {
    const waiting = Promise.withResolvers<string>();
    waiting.promise.catch(() => {});
    this.#waiting.push(waiting);
    return waiting.promise;
  }

  async #read(): Promise<void> {
    let rest = "";
    for await (const chunk of this.child.stdout.pipeThrough(new TextDecoderStream())) {
      const lines = (rest + chunk).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) this.#waiting.shift()?.resolve(line);
    }
    for (const { reject } of this.#waiting.splice(0)) reject(new Error("The process has ended"));
  }
}
