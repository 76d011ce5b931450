import { packError } from "./error_data.ts";
import { answerNumbersOf, decodeRequest, encodeAnswer, numbersOf } from "./mail_codes.ts";
import { readRequest } from "./messages.ts";
import { ProtocolError } from "./protocol_error.ts";
import type { Answer, Mail, Request } from "./protocol.ts";
import { MAIL, TEXT } from "./shared_words.ts";

/** A request that a client has begun to wait for. */
export interface MailedRequest {
  readonly id: number;
  readonly request: Request;
}

/**
 * Requests of a client that blocks until it has its answer: the owner's half.
 *
 * The word `request` says which request the client waits for. The owner sets its lowest bit when it begins, the client
 * resets the word when it gives up, each by an exchange that only one of them can win: a request that was given up
 * before it began is never carried out, and the answer to one that was given up later is thrown away.
 *
 * All of it is memory that the client may write at any time, so everything is read once and then looked at.
 */
export class Mailbox {
  readonly #mail: Mail;
  readonly #words: Int32Array;
  readonly #numbers: Float64Array;
  readonly #answerNumbers: Float64Array;
  readonly #copy = new Float64Array(MAIL.numberCount);

  constructor(mail: Mail) {
    this.#mail = mail;
    this.#words = new Int32Array(mail.words, 0, MAIL.words);
    this.#numbers = numbersOf(mail.words);
    this.#answerNumbers = answerNumbersOf(mail.words);
  }

  /**
   * The request that waits, which counts as begun then; `null` if there is none.
   *
   * @throws {ProtocolError} If what the client wrote is none.
   */
  take(): MailedRequest | null {
    const word = Atomics.load(this.#words, MAIL.request);
    if (word <= 0 || word % 2 !== 0) return null;
    if (Atomics.compareExchange(this.#words, MAIL.request, word, word + 1) !== word) return null;
    const code = this.#words[MAIL.asked] ?? TEXT;
    if (code === TEXT) return { id: word / 2, request: this.#readText() };
    for (let i = 0; i < MAIL.numberCount; i++) this.#copy[i] = this.#numbers[i]!;
    return { id: word / 2, request: decodeRequest(code, this.#copy) };
  }

  /** Delivers an answer, if somebody still waits for it. */
  answer(id: number, answer: Answer, request: Request["kind"]): void {
    if (Atomics.load(this.#words, MAIL.request) !== 2 * id + 1) return;
    const code = "value" in answer ? encodeAnswer(answer.value, request, this.#answerNumbers) : TEXT;
    if (code === TEXT && !this.#writeText(JSON.stringify(answer))) {
      const error = packError(new RangeError("The answer does not fit the mailbox of the client"));
      this.#writeText(JSON.stringify({ error }));
    }
    this.#words[MAIL.answer] = code;
    Atomics.store(this.#words, MAIL.answered, id);
    Atomics.notify(this.#words, MAIL.answered);
  }

  /** Wakes the client, which then sees that it is no longer served. */
  close(): void {
    Atomics.store(this.#words, MAIL.answered, 0);
    Atomics.notify(this.#words, MAIL.answered);
  }

  #readText(): Request {
    const { request } = this.#mail;
    const length = this.#words[MAIL.askedLength] ?? 0;
    if (length < 0 || length > request.byteLength) throw new ProtocolError(`A request has ${length} bytes`);
    let data: unknown;
    try {
      data = JSON.parse(new TextDecoder().decode(new Uint8Array(request, 0, length).slice()));
    } catch (cause) {
      throw new ProtocolError("A request cannot be read", { cause });
    }
    return readRequest(data);
  }

  /** Whether there was room. */
  #writeText(text: string): boolean {
    const { answer } = this.#mail;
    const bytes = new TextEncoder().encode(text);
    try {
      if (bytes.length > answer.byteLength) answer.grow(Math.min(bytes.length * 2, answer.maxByteLength));
      new Uint8Array(answer, 0, bytes.length).set(bytes);
    } catch {
      this.#words[MAIL.answerLength] = 0;
      return false;
    }
    this.#words[MAIL.answerLength] = bytes.length;
    return true;
  }
}
