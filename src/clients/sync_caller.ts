import { DisposedError, MembackingError } from "../core/errors.ts";
import type { Connection } from "./connection.ts";
import { buildError, type Json } from "../serving/error_data.ts";
import type { Answer, Request } from "../serving/protocol.ts";
import { RequestTimeoutError } from "./request_timeout_error.ts";
import { growable, MAIL } from "../serving/shared_words.ts";

/** How large an answer may become, in bytes. */
const ANSWER_LIMIT = 2 ** 28;
/** How long to sleep before looking whether the client is still served, in milliseconds. */
const NAP = 100;

/** Makes requests and blocks until they are answered: the client's half of what `Mailbox` describes. */
export class SyncCaller {
  /** Where the owner writes answers. */
  readonly mail: SharedArrayBuffer = growable(MAIL.text + 1024, ANSWER_LIMIT);
  readonly #words = new Int32Array(this.mail, 0, MAIL.text / Int32Array.BYTES_PER_ELEMENT);
  #requests = 0;

  /**
   * The owner's answer to a request.
   *
   * @param timeout In milliseconds.
   * @throws {RequestTimeoutError} If there is none in time.
   */
  call(connection: Connection, request: Request, timeout: number): Json {
    connection.check();
    // 30 bits, and never 0: the word holds twice the number.
    const id = this.#requests = this.#requests % 0x3fff_ffff + 1;
    Atomics.store(this.#words, MAIL.request, 2 * id);
    try {
      connection.post({ kind: "request", id, request });
      if (!this.#wait(connection, id, timeout)) {
        if (Atomics.compareExchange(this.#words, MAIL.request, 2 * id, 0) === 2 * id) {
          throw new RequestTimeoutError(request.kind, timeout, false);
        }
        // It has begun: most requests are done in a moment then, and one that waits for locks can be called off.
        connection.post({ kind: "abort", id });
        if (!this.#wait(connection, id, timeout)) throw new RequestTimeoutError(request.kind, timeout, true);
        const late = this.#answer();
        if (!("error" in late) || late.error.name !== "AbortError") return this.#result(late);
        throw new RequestTimeoutError(request.kind, timeout, false);
      }
      return this.#result(this.#answer());
    } finally {
      Atomics.store(this.#words, MAIL.request, 0);
    }
  }

  /** Whether the request has been answered in time. */
  #wait(connection: Connection, id: number, timeout: number): boolean {
    const until = performance.now() + timeout;
    while (true) {
      const answered = Atomics.load(this.#words, MAIL.answered);
      if (answered === id) return true;
      if (connection.closed) throw new DisposedError("The region manager client");
      const left = until - performance.now();
      if (left <= 0) return false;
      Atomics.wait(this.#words, MAIL.answered, answered, Math.min(left, NAP));
    }
  }

  #answer(): Answer {
    const length = this.#words[MAIL.length] ?? 0;
    const text = new TextDecoder().decode(new Uint8Array(this.mail, MAIL.text, length).slice());
    const answer: Answer | null = JSON.parse(text);
    if (answer === null) throw new MembackingError("The owner of the region manager gave no answer");
    return answer;
  }

  #result(answer: Answer): Json {
    if ("error" in answer) throw buildError(answer.error);
    return answer.value;
  }
}
