/**
 * The owner's side of a Worker that writes guest memory.
 *
 * @module
 */

import type { RegionManager } from "membacking";

/** What the Worker is to do: the first of its words. The second is 1 while it does nothing. */
export const STATE = { run: 0, pause: 1, stop: 2 } as const;

/** The first message to the Worker. */
export interface WorkerJob {
  /** Where the region manager serves it. */
  readonly port: MessagePort;
  /** The GPAs it writes to. */
  readonly start: number;
  readonly end: number;
  /** The words both sides share. */
  readonly words: Int32Array<SharedArrayBuffer>;
}

/** A Worker that writes guest memory. */
export class WritingWorker implements Disposable {
  readonly #words: Int32Array<SharedArrayBuffer>;
  readonly #served: Disposable;

  private constructor(words: Int32Array<SharedArrayBuffer>, served: Disposable) {
    this.#words = words;
    this.#served = served;
  }

  /** Starts one, which writes to `[start, end)`. */
  static async start(regions: RegionManager, start: number, end: number): Promise<WritingWorker> {
    const words = new Int32Array(new SharedArrayBuffer(8));
    const { port1, port2 } = new MessageChannel();
    const served = regions.serve(port1);
    const worker = new Worker(new URL("./worker.ts", import.meta.url), { type: "module" });
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    worker.onmessage = () => resolve();
    worker.onerror = (event) => reject(new Error(`The writing Worker failed: ${event.message}`));
    worker.postMessage({ port: port2, start, end, words } satisfies WorkerJob, [port2]);
    await promise;
    return new WritingWorker(words, served);
  }

  /** Has it stop writing, and returns once it does. */
  pause(): void {
    Atomics.store(this.#words, 0, STATE.pause);
    Atomics.notify(this.#words, 0);
    while (Atomics.load(this.#words, 1) === 0) {
      if (Atomics.wait(this.#words, 1, 0, 10_000) === "timed-out") throw new Error("The Worker does not stop");
    }
  }

  /** Lets it go on. */
  resume(): void {
    Atomics.store(this.#words, 0, STATE.run);
    Atomics.notify(this.#words, 0);
  }

  [Symbol.dispose](): void {
    Atomics.store(this.#words, 0, STATE.stop);
    Atomics.notify(this.#words, 0);
    this.#served[Symbol.dispose]();
  }
}
