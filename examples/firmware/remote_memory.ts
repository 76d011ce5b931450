/**
 * Memory requests of the vCPU's thread to the thread that owns the memory. A vCPU in the middle of an exit cannot go
 * back to its event loop to wait for an answer, so it sleeps on shared memory.
 *
 * @module
 */

import { MembackingError } from "membacking";
import type { MemoryRequests } from "./memory_requests.ts";
import type { PamChange } from "./pam.ts";
import type { MemoryMessage } from "./protocol.ts";

const STATE = 0;
const LENGTH = 1;
const TEXT = 8;
const WAITING = 0;
const DONE = 1;
const REFUSED = 2;
/** How long an answer may take, in milliseconds. */
const PATIENCE = 10_000;

/** Makes the memory that answers are left in. */
export function newMailbox(): SharedArrayBuffer {
  return new SharedArrayBuffer(0x1_0000);
}

/** The owner refused the request. Nothing has changed. */
export class RequestRefused extends MembackingError {
  override name = "RequestRefused";
}

/** The vCPU's side. */
export class RemoteMemory implements MemoryRequests {
  readonly #mailbox: SharedArrayBuffer;
  readonly #send: (message: MemoryMessage) => void;

  /** Sends requests by `send`, waits for answers in `mailbox`. */
  constructor(mailbox: SharedArrayBuffer, send: (message: MemoryMessage) => void) {
    this.#mailbox = mailbox;
    this.#send = send;
  }

  /** Switches RAM below 1 MiB. */
  setVisibility(changes: readonly PamChange[], cause: string): void {
    const plain = changes.map(({ range: { start, end }, to }) => ({ start, end, to }));
    this.#request({ kind: "visibility", changes: plain, cause });
  }

  /** Puts a BAR of the card somewhere else, or nowhere. */
  placeBar(bar: number, gpa: number | null, cause: string): void {
    this.#request({ kind: "bar", bar, gpa, cause });
  }

  #request(message: MemoryMessage): void {
    const words = new Int32Array(this.#mailbox, 0, 2);
    Atomics.store(words, STATE, WAITING);
    this.#send(message);
    if (Atomics.wait(words, STATE, WAITING, PATIENCE) === "timed-out") {
      throw new MembackingError(`The thread that owns the memory has not answered for ${PATIENCE / 1000} s`);
    }
    if (Atomics.load(words, STATE) === DONE) return;
    const text = new Uint8Array(this.#mailbox, TEXT, words[LENGTH]).slice();
    throw new RequestRefused(new TextDecoder().decode(text));
  }
}

/** The owner's side: does what the request says, and says whether it could be done. */
export function answer(mailbox: SharedArrayBuffer, request: () => void): void {
  const words = new Int32Array(mailbox, 0, 2);
  let state = DONE;
  try {
    request();
  } catch (error) {
    state = REFUSED;
    const text = new TextEncoder().encode(String(error)).subarray(0, mailbox.byteLength - TEXT);
    new Uint8Array(mailbox, TEXT).set(text);
    words[LENGTH] = text.length;
  }
  Atomics.store(words, STATE, state);
  Atomics.notify(words, STATE);
}
