/**
 * virtio-console: a terminal.
 *
 * Specified in section 5.3 of the virtio specification.
 *
 * @module
 */

import type { VirtioDevice, VirtioHost } from "./device.ts";
import { gather, lengthOf, scatter } from "./queue.ts";

const TO_GUEST = 0;
const FROM_GUEST = 1;

/** The terminal. */
export class VirtioConsole implements VirtioDevice {
  readonly kind = 3;
  readonly queues = 2;
  readonly features = 0n;
  readonly configuration = new Uint8Array(12);
  readonly #onOutput: (bytes: Uint8Array) => void;
  #host: VirtioHost | null = null;
  #input = new Uint8Array(0);

  /** `onOutput` is told what the guest writes. */
  constructor(onOutput: (bytes: Uint8Array) => void) {
    this.#onOutput = onOutput;
  }

  /** Types something. It waits until the guest has room for it. */
  type(bytes: Uint8Array): void {
    this.#input = new Uint8Array([...this.#input, ...bytes]);
    this.#deliver();
  }

  start(host: VirtioHost): void {
    this.#host = host;
  }

  reset(): void {
    this.#host = null;
  }

  notified(index: number): void {
    if (index === TO_GUEST) return this.#deliver();
    const host = this.#host;
    const queue = host?.queue(FROM_GUEST);
    if (!host || !queue) return;
    for (const chain of queue.requests()) {
      this.#onOutput(gather(host.memory, chain.readable, lengthOf(chain.readable)));
      queue.push(chain, 0);
    }
    host.finished(queue);
  }

  #deliver(): void {
    const host = this.#host;
    const queue = host?.queue(TO_GUEST);
    if (!host || !queue || this.#input.length === 0) return;
    while (this.#input.length > 0) {
      const chain = queue.pop();
      if (chain === null) break;
      const written = scatter(host.memory, chain.writable, this.#input);
      this.#input = this.#input.slice(written);
      queue.push(chain, written);
    }
    host.finished(queue);
  }
}
