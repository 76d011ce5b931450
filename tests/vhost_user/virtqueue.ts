/**
 * The driver's side of a split virtqueue, in JavaScript, one request at a time: for tests without a guest.
 *
 * @module
 */

import type { GuestMemory } from "membacking";
import { EventFd } from "membacking/kvm";
import type { VhostUserFrontend } from "membacking/vhost-user";

const SIZE = 16;

/** A part of a request: bytes for the device to read, or so many bytes for it to write. */
export type Part = Uint8Array | number;

/** A queue in 64 KiB of guest memory. */
export class Virtqueue implements Disposable {
  readonly kick = new EventFd();
  readonly call = new EventFd();
  readonly #memory: GuestMemory;
  readonly #at: number;
  #index = 0;

  constructor(memory: GuestMemory, at: number) {
    this.#memory = memory;
    this.#at = at;
  }

  /** Has the back end serve it as vring `index`. */
  async start(frontend: VhostUserFrontend, index: number): Promise<void> {
    const at = this.#at;
    await frontend.startVring(index, {
      ...{ size: SIZE, descriptor: at, available: at + 0x1000, used: at + 0x2000, kick: this.kick, call: this.call },
    });
  }

  /** Makes a request and waits until it has been used: what the device wrote into its parts. */
  async request(parts: readonly Part[], wait = 10_000): Promise<Uint8Array[]> {
    const [memory, at] = [this.#memory, this.#at];
    let buffer = at + 0x3000;
    const written: { gpa: number; length: number }[] = [];
    parts.forEach((part, i) => {
      const length = typeof part === "number" ? part : part.length;
      if (typeof part === "number") written.push({ gpa: buffer, length });
      else memory.write(buffer, part);
      const flags = (i + 1 < parts.length ? 1 : 0) | (typeof part === "number" ? 2 : 0);
      memory.writeBigUint64(at + 16 * i, BigInt(buffer));
      memory.writeBigUint64(at + 16 * i + 8, BigInt(length) | BigInt(flags) << 32n | BigInt(i + 1) << 48n);
      buffer += Math.ceil(length / 16) * 16;
    });
    memory.writeUint16(at + 0x1000 + 4 + 2 * (this.#index % SIZE), 0);
    this.#index = this.#index + 1 & 0xffff;
    memory.writeUint16(at + 0x1002, this.#index);
    this.kick.signal();
    const until = performance.now() + wait;
    while (memory.readUint16(at + 0x2002) !== this.#index) {
      if (performance.now() > until) throw new Error("The device does not use the request");
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
    return written.map(({ gpa, length }) => memory.read(gpa, length));
  }

  [Symbol.dispose](): void {
    this.kick[Symbol.dispose]();
    this.call[Symbol.dispose]();
  }
}
