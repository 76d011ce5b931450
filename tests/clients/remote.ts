/**
 * A client in a Worker, told from a test what to do.
 *
 * @module
 */

import type { RegionManager } from "membacking";

/** The first message to the Worker. */
export interface RemoteStart {
  readonly kind: "start";
  readonly port: MessagePort;
  readonly sync: boolean;
  readonly options: { readonly timeout?: number };
}

/** Code to run in the Worker, and what it is to be run with. */
export interface RemoteJob {
  readonly kind: "job";
  readonly code: string;
  readonly names: readonly string[];
  readonly values: readonly unknown[];
}

/** What came of it. */
export type RemoteReply = { readonly value: unknown } | { readonly error: unknown };

/** An error that was thrown in a Worker, as it looked there. */
export interface RemoteErrorData {
  readonly name: string;
  readonly className: string;
  readonly message: string;
  readonly fields: Record<string, unknown>;
  readonly cause?: RemoteErrorData;
}

/** An error as plain data; what is none, as `value`. */
export function describe(error: unknown): unknown {
  if (!(error instanceof Error)) return { value: error };
  const { cause, ...fields } = error as Error & Record<string, unknown>;
  return {
    name: error.name,
    className: error.constructor.name,
    message: error.message,
    fields: JSON.parse(JSON.stringify(fields)),
    ...("cause" in error && { cause: describe(cause) }),
  };
}

/** What `run` throws when the code did. */
export class RemoteError extends Error {
  override name = "RemoteError";
  constructor(readonly data: RemoteErrorData) {
    super(`In the Worker: ${data.name}: ${data.message}`);
  }
}

/** A Worker with a client. */
export class Remote implements AsyncDisposable {
  readonly #worker: Worker;
  readonly #waiting: PromiseWithResolvers<unknown>[] = [];
  tid = 0;

  private constructor() {
    this.#worker = new Worker(new URL("./remote_worker.ts", import.meta.url), { type: "module" });
    this.#worker.onmessage = ({ data }: MessageEvent<RemoteReply>) => {
      const waiting = this.#waiting.shift();
      if ("error" in data) waiting?.reject(new RemoteError(data.error as RemoteErrorData));
      else waiting?.resolve(data.value);
    };
    this.#worker.onerror = (event) => {
      event.preventDefault();
      for (const { reject } of this.#waiting.splice(0)) reject(new Error(event.message));
    };
  }

  /** Starts a Worker with a client of `regions`, or of whoever serves the other end of a port. */
  static async start(
    regions: RegionManager | MessagePort,
    options: { sync?: boolean; timeout?: number } = {},
  ): Promise<Remote> {
    const remote = new Remote();
    let port: MessagePort;
    if (regions instanceof MessagePort) port = regions;
    else {
      const { port1, port2 } = new MessageChannel();
      regions.serve(port1);
      port = port2;
    }
    const { sync = false, timeout } = options;
    const start: RemoteStart = { kind: "start", port, sync, options: timeout === undefined ? {} : { timeout } };
    remote.tid = await remote.#send(start, [port]) as number;
    return remote;
  }

  /**
   * Runs the body of an async function in the Worker. It finds there everything the package exports, `client`, `kept`
   * (an object that stays), and the entries of `values` by their names. Returns what it returned.
   */
  run<T = unknown>(code: string, values: Record<string, unknown> = {}): Promise<T> {
    const job: RemoteJob = { kind: "job", code, names: Object.keys(values), values: Object.values(values) };
    return this.#send(job, []) as Promise<T>;
  }

  /** Ends the Worker at once. */
  terminate(): void {
    this.#worker.terminate();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.terminate();
    await new Promise((resolve) => setTimeout(resolve, 0));
  }

  #send(message: RemoteStart | RemoteJob, transfer: Transferable[]): Promise<unknown> {
    const waiting = Promise.withResolvers<unknown>();
    this.#waiting.push(waiting);
    this.#worker.postMessage(message, transfer);
    return waiting.promise;
  }
}
