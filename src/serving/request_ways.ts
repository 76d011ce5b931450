import { ring } from "./bell.ts";
import type { ClientChannel } from "./channel.ts";
import { clientBell, LaneReceiver, LaneSender } from "./lane.ts";
import { decodeRequest, encodeAnswer } from "./mail_codes.ts";
import { Mailbox } from "./mailbox.ts";
import type { Answer, Hello, Request } from "./protocol.ts";
import { ProtocolError } from "./protocol_error.ts";
import { TEXT } from "./shared_words.ts";

/** The owner's ends of a lane. */
interface OwnerLane {
  readonly sender: LaneSender;
  readonly receiver: LaneReceiver;
  readonly bell: Int32Array;
}

/**
 * The ways on which requests of one client come and answers go: its channel, and beside that, as its hello said, a mailbox
 * (of a client that waits), a lane (of one that does not), or numbers on the channel (of another process).
 */
export class RequestWays {
  readonly #channel: ClientChannel;
  readonly #serve: (id: number, request: Request) => void;
  #mailbox: Mailbox | null = null;
  #lane: OwnerLane | null = null;

  /** `serve` is handed the requests that do not come as messages. */
  constructor(channel: ClientChannel, serve: (id: number, request: Request) => void) {
    this.#channel = channel;
    this.#serve = serve;
  }

  /**
   * Serves a request in numbers, wherever it came from.
   *
   * @throws {ProtocolError} If it is none.
   */
  receiveNumbers(id: number, code: number, numbers: Float64Array): void {
    if (!Number.isSafeInteger(id)) throw new ProtocolError(`There is no request ${id}`);
    this.#serve(id, decodeRequest(code, numbers));
  }

  /** Sets up what the client brings along. */
  open({ mail, lane }: Hello): void {
    if (mail !== undefined) this.#mailbox = new Mailbox(mail);
    else if (lane !== undefined) {
      this.#lane = {
        sender: new LaneSender(lane, "to-client"),
        receiver: new LaneReceiver(lane, "to-owner", (id, code, numbers) => this.receiveNumbers(id, code, numbers)),
        bell: clientBell(lane),
      };
    }
  }

  /**
   * Serves what waits in memory that is shared with the client. Returns how many requests there were.
   *
   * @throws {ProtocolError} If there is what no client writes.
   */
  drain(): number {
    if (this.#lane !== null) return this.#lane.receiver.drain();
    const mailed = this.#mailbox?.take() ?? null;
    if (mailed === null) return 0;
    this.#serve(mailed.id, mailed.request);
    return 1;
  }

  /**
   * Serves a request that came as a message, in its turn.
   *
   * @throws {ProtocolError} If it is not its turn.
   */
  accept(id: number, order: number, request: Request): void {
    if (this.#lane === null) this.#serve(id, request);
    else this.#lane.receiver.accept(order, () => this.#serve(id, request));
  }

  /**
   * Passes over a request that could not be sent.
   *
   * @throws {ProtocolError} If it is not its turn.
   */
  skip(order: number): void {
    this.#lane?.receiver.accept(order, () => {});
  }

  /** Sends an answer the way its client looks for it. `file` goes along with it, to another process. */
  answer(id: number, request: Request["kind"], answer: Answer, file?: number): void {
    const channel = this.#channel;
    if (this.#mailbox !== null) return this.#mailbox.answer(id, answer, request);
    const encode = (numbers: Float64Array) => "value" in answer ? encodeAnswer(answer.value, request, numbers) : TEXT;
    if (this.#lane === null) {
      if (file === undefined && channel.postNumbers?.(id, encode)) return;
      return channel.post({ kind: "answer", id, answer }, file === undefined ? [] : [file]);
    }
    const { sender, bell } = this.#lane;
    const order = sender.send(id, encode);
    if (order === 0) ring(bell);
    else channel.post({ kind: "answer", id, order, answer });
  }

  /** Wakes a client that waits for an answer: it sees that it is served no longer. */
  close(): void {
    this.#mailbox?.close();
  }
}
