/**
 * virtio-blk whose work is done by another process: a vhost-user back end, which reads and writes guest memory itself.
 *
 * @module
 */

import { EventFd } from "membacking/kvm";
import type { VhostUserFrontend } from "membacking/vhost-user";
import type { VirtioDevice, VirtioHost } from "./device.ts";

const VERSION_1 = 1n << 32n;
/** What this transport can do for a back end, besides the size of its disk: flush, and nothing of several queues. */
const FEATURES = 1n << 9n;
const CONFIGURATION = 60;

/** The disk. */
export class VhostBlk implements VirtioDevice, AsyncDisposable {
  readonly kind = 2;
  readonly queues = 1;
  readonly features: bigint;
  readonly configuration: Uint8Array;
  readonly #frontend: VhostUserFrontend;
  readonly #onFailed: (error: unknown) => void;
  readonly #kick = new EventFd();
  readonly #call = new EventFd();
  #over = new AbortController();
  /** What is said to the back end, one after the other. */
  #last: Promise<unknown> = Promise.resolve();
  #isStarted = false;

  private constructor(frontend: VhostUserFrontend, configuration: Uint8Array, onFailed: (error: unknown) => void) {
    this.#frontend = frontend;
    this.#onFailed = onFailed;
    this.features = frontend.features & FEATURES;
    this.configuration = configuration;
  }

  /**
   * The disk that is served by a back end, which has to be given guest memory by a `VhostUserMemory`. The front end stays
   * the caller's. `onFailed` is told what the back end refuses later.
   */
  static async open(frontend: VhostUserFrontend, onFailed: (error: unknown) => void): Promise<VhostBlk> {
    return new VhostBlk(frontend, await frontend.getConfig(0, CONFIGURATION), onFailed);
  }

  start(host: VirtioHost, features: bigint): void {
    const queue = host.queue(0);
    if (queue === null) return;
    this.#isStarted = true;
    const { size, descriptors, available, used } = queue.layout;
    const ring = { size, descriptor: descriptors, available, used, kick: this.#kick, call: this.#call };
    this.#say(async () => {
      await this.#frontend.setFeatures(features & (FEATURES | VERSION_1) & this.#frontend.features);
      await this.#frontend.startVring(0, ring);
    });
    const { signal } = this.#over = new AbortController();
    const answered = async () => {
      while (!signal.aborted) {
        await this.#call.wait({ signal });
        host.finished(queue);
      }
    };
    answered().catch((error) => {
      if (!signal.aborted) this.#onFailed(error);
    });
  }

  /** A kick that comes before the back end is ready is counted, and seen. */
  notified(): void {
    this.#kick.signal();
  }

  reset(): void {
    this.#over.abort();
    if (!this.#isStarted) return;
    this.#isStarted = false;
    this.#say(() => this.#frontend.stopVring(0));
  }

  /** Stops the back end at this queue, and closes what it was signalled by. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.reset();
    await this.#last;
    this.#kick[Symbol.dispose]();
    this.#call[Symbol.dispose]();
  }

  #say(message: () => Promise<unknown>): void {
    this.#last = this.#last.then(message).catch(this.#onFailed);
  }
}
