import type { Answer } from "./protocol.ts";
import { MAIL } from "./shared_words.ts";

/**
 * Answers for a client that blocks until it has them: the owner's half.
 *
 * The word `request` says which request the client waits for. The owner sets its lowest bit when it begins, the client
 * resets the word when it gives up, each by an exchange that only one of them can win: a request that was given up
 * before it began is never carried out, and the answer to one that was given up later is thrown away.
 */
export class Mailbox {
  readonly #mail: SharedArrayBuffer;
  readonly #words: Int32Array;

  constructor(mail: SharedArrayBuffer) {
    this.#mail = mail;
    this.#words = new Int32Array(mail, 0, MAIL.text / Int32Array.BYTES_PER_ELEMENT);
  }

  /** Whether the request is still wanted; it counts as begun then. */
  begin(id: number): boolean {
    return Atomics.compareExchange(this.#words, MAIL.request, 2 * id, 2 * id + 1) === 2 * id;
  }

  /** Delivers an answer, if somebody still waits for it. */
  answer(id: number, answer: Answer): void {
    if (Atomics.load(this.#words, MAIL.request) !== 2 * id + 1) return;
    const text = new TextEncoder().encode(JSON.stringify(answer));
    if (MAIL.text + text.length > this.#mail.byteLength) this.#mail.grow(MAIL.text + text.length * 2);
    new Uint8Array(this.#mail, MAIL.text, text.length).set(text);
    this.#words[MAIL.length] = text.length;
    Atomics.store(this.#words, MAIL.answered, id);
    Atomics.notify(this.#words, MAIL.answered);
  }

  /** Wakes the client, which then sees that it is no longer served. */
  close(): void {
    Atomics.store(this.#words, MAIL.answered, 0);
    Atomics.notify(this.#words, MAIL.answered);
  }
}
