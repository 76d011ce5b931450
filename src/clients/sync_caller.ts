import { DisposedError, MembackingError } from "../core/errors.ts";
import { buildError, type Json } from "../serving/error_data.ts";
import { answerNumbersOf, decodeAnswer, encodeRequest, numbersOf } from "../serving/mail_codes.ts";
import type { Answer, Mail, Request } from "../serving/protocol.ts";
import { growable, MAIL, TEXT } from "../serving/shared_words.ts";
import { OWNER_ENDED } from "./hold.ts";
import { plain } from "./plain.ts";
import type { PortConnection } from "./port_link.ts";
import { RequestTimeoutError } from "./request_timeout_error.ts";

/** How large a request or an answer may become, in bytes. */
const TEXT_LIMIT = 2 ** 28;
const FIRST_TEXT = 1024;
/** How long to sleep before looking whether the client is still served, in milliseconds. */
const NAP = 100;

/** Makes requests and blocks until they are answered: the client's half of what `Mailbox` describes. */
export class SyncCaller {
  /** What the owner reads requests from, and writes answers to. */
  readonly mail: Mail = {
    words: new SharedArrayBuffer(MAIL.bytes),
    request: growable(FIRST_TEXT, TEXT_LIMIT),
    answer: growable(FIRST_TEXT, TEXT_LIMIT),
  };
  readonly #words = new Int32Array(this.mail.words, 0, MAIL.words);
  readonly #numbers = numbersOf(this.mail.words);
  readonly #answerNumbers = answerNumbersOf(this.mail.words);
  #requests = 0;

  /**
   * The owner's answer to a request.
   *
   * @param options How long to wait, in milliseconds, and what the request is called.
   * @throws {RequestTimeoutError} If there is none in time.
   * @throws {DisposedError} If the owner is gone, or serves this client no longer.
   */
  call(owner: PortConnection, request: Request, options: { timeout: number; name: string }): Json {
    const { timeout, name } = options;
    const { connection } = owner;
    connection.check();
    const code = encodeRequest(request, this.#numbers);
    if (code === TEXT) this.#writeText(request);
    this.#words[MAIL.asked] = code;
    // 30 bits, and never 0: the word holds twice the number.
    const id = this.#requests = this.#requests % 0x3fff_ffff + 1;
    Atomics.store(this.#words, MAIL.request, 2 * id);
    try {
      owner.ring();
      if (!this.#wait(owner, id, timeout)) {
        if (Atomics.compareExchange(this.#words, MAIL.request, 2 * id, 0) === 2 * id) {
          throw new RequestTimeoutError(name, timeout, false);
        }
        // It has begun: most requests are done in a moment then, and one that waits for locks can be called off.
        connection.post({ kind: "abort", id });
        if (!this.#wait(owner, id, timeout)) throw new RequestTimeoutError(name, timeout, true);
        const late = this.#answer();
        if (!("error" in late) || late.error.name !== "AbortError") return this.#result(late);
        throw new RequestTimeoutError(name, timeout, false);
      }
      return this.#result(this.#answer());
    } finally {
      Atomics.store(this.#words, MAIL.request, 0);
    }
  }

  /** Whether the request has been answered in time. */
  #wait({ connection }: PortConnection, id: number, timeout: number): boolean {
    // Nearly always one sleep: what is asked of a clock or the owner's thread is asked if that was not enough.
    let until = 0;
    for (let left = timeout;;) {
      const answered = Atomics.load(this.#words, MAIL.answered);
      if (answered === id) return true;
      if (until !== 0) connection.check();
      if (left <= 0) return false;
      if (until === 0) until = performance.now() + timeout;
      const ended = Atomics.wait(this.#words, MAIL.answered, answered, Math.min(left, NAP));
      if (ended === "ok" && Atomics.load(this.#words, MAIL.answered) === id) return true;
      if (ended === "timed-out" && !connection.isOwnerAlive) {
        connection.lose(...OWNER_ENDED);
        throw new DisposedError(...OWNER_ENDED);
      }
      left = until - performance.now();
    }
  }

  #writeText(request: Request): void {
    const bytes = new TextEncoder().encode(JSON.stringify(request, plain));
    const { request: text } = this.mail;
    if (bytes.length > text.byteLength) {
      if (bytes.length > TEXT_LIMIT) throw new RangeError(`A request of ${bytes.length} bytes is too long`);
      text.grow(Math.min(2 * bytes.length, TEXT_LIMIT));
    }
    new Uint8Array(text, 0, bytes.length).set(bytes);
    this.#words[MAIL.askedLength] = bytes.length;
  }

  #answer(): Answer {
    const value = decodeAnswer(this.#words[MAIL.answer] ?? TEXT, this.#answerNumbers);
    if (value !== undefined) return { value };
    const length = this.#words[MAIL.answerLength] ?? 0;
    try {
      const answer: Answer | null = JSON.parse(
        new TextDecoder().decode(new Uint8Array(this.mail.answer, 0, length).slice()),
      );
      if (answer !== null) return answer;
    } catch {
      // As if there were none.
    }
    throw new MembackingError("The owner of the region manager gave no answer that can be read");
  }

  #result(answer: Answer): Json {
    if ("error" in answer) throw buildError(answer.error);
    return answer.value;
  }
}
