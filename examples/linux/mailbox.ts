/**
 * How a vCPU's thread asks the thread of the devices what an access of the guest gives, and waits for the answer.
 *
 * ```
 *   word 0       0: nothing asked   1: asked, the vCPU waits
 *   words 1-5    is it a port, does the guest write, size, count, length of the data
 *   byte 24      the address: a double
 *   byte 32      the data
 * ```
 *
 * While it waits, the vCPU is out of the guest, so that devices may change memory under `quiesce`.
 *
 * @module
 */

import type { KvmIoExit, KvmMmioExit } from "membacking/kvm";

const STATE = 0;
const IDLE = 0;
const ASKED = 1;
const ADDRESS = 24;
const DATA = 32;
/** A string instruction can transfer a page at once. */
const MOST_DATA = 4096;

/** An access that a device answers: the exit, as far as devices are concerned. */
export interface Access {
  /** Whether it is to a port; to memory otherwise. */
  readonly isPort: boolean;
  /** Whether the guest writes. */
  readonly isWrite: boolean;
  /** The port, or the guest-physical address. */
  readonly address: number;
  /** The width of one access, in bytes. */
  readonly size: number;
  /** How many accesses in a row. */
  readonly count: number;
  /** What the guest writes, or is to read. */
  readonly data: Uint8Array;
}

/** The two sides of it. */
export class Mailbox {
  /** To be sent to the other thread. */
  readonly buffer: SharedArrayBuffer;
  readonly #words: Int32Array;
  readonly #address: Float64Array;
  readonly #data: Uint8Array;

  /** A new one, or the one of another thread. */
  constructor(buffer: SharedArrayBuffer = new SharedArrayBuffer(DATA + MOST_DATA)) {
    this.buffer = buffer;
    this.#words = new Int32Array(buffer);
    this.#address = new Float64Array(buffer, ADDRESS, 1);
    this.#data = new Uint8Array(buffer, DATA);
  }

  /** Asks, and waits. What the guest is to read is in the exit afterwards. */
  ask(exit: KvmIoExit | KvmMmioExit): void {
    const isPort = exit.kind === "io";
    const isWrite = isPort ? exit.direction === "out" : exit.isWrite;
    const { data } = exit;
    this.#words.set([isPort ? 1 : 0, isWrite ? 1 : 0, isPort ? exit.size : exit.length, isPort ? exit.count : 1], 1);
    this.#words[5] = data.length;
    this.#address[0] = isPort ? exit.port : exit.gpa;
    if (isWrite) this.#data.set(data);
    Atomics.store(this.#words, STATE, ASKED);
    Atomics.notify(this.#words, STATE);
    while (Atomics.load(this.#words, STATE) === ASKED) Atomics.wait(this.#words, STATE, ASKED);
    if (!isWrite) data.set(this.#data.subarray(0, data.length));
  }

  /** Answers, as the thread of the devices, for as long as `isOver` says no. `answer` fills the data of reads. */
  async serve(answer: (access: Access) => void, isOver: () => boolean): Promise<void> {
    while (true) {
      const waiting = Atomics.waitAsync(this.#words, STATE, IDLE);
      if (waiting.async) await waiting.value;
      if (isOver()) return;
      if (Atomics.load(this.#words, STATE) !== ASKED) continue;
      try {
        answer(this.#access());
      } finally {
        Atomics.store(this.#words, STATE, IDLE);
        Atomics.notify(this.#words, STATE);
      }
    }
  }

  /** Wakes the side that serves, to look whether it is over. */
  wake(): void {
    Atomics.notify(this.#words, STATE);
  }

  #access(): Access {
    const [, isPort, isWrite, size = 0, count = 0, length] = this.#words;
    const address = this.#address[0] ?? 0;
    return { isPort: isPort === 1, isWrite: isWrite === 1, address, size, count, data: this.#data.subarray(0, length) };
  }
}
