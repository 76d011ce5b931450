import { Bell, ring } from "../serving/bell.ts";
import { clientBell, LaneReceiver, LaneSender } from "../serving/lane.ts";
import { decodeAnswer, encodeRequest } from "../serving/mail_codes.ts";
import type { OwnerMessage, Request } from "../serving/protocol.ts";

type AnswerMessage = Extract<OwnerMessage, { kind: "answer" }>;

/** A client's ends of a lane. */
export class ClientLane {
  readonly #ownerBell: Int32Array;
  readonly #bell: Bell;
  readonly #sender: LaneSender;
  readonly #receiver: LaneReceiver;
  #receive: (message: AnswerMessage) => void = () => {};

  constructor(lane: SharedArrayBuffer, ownerBell: Int32Array) {
    this.#ownerBell = ownerBell;
    this.#bell = new Bell(new Int32Array(lane, clientBell(lane).byteOffset, 1));
    this.#sender = new LaneSender(lane, "to-owner");
    this.#receiver = new LaneReceiver(lane, "to-client", (id, code, numbers) => {
      const value = decodeAnswer(code, numbers);
      if (value !== undefined) this.#receive({ kind: "answer", id, answer: { value } });
    });
  }

  /** Hands answers to `receive` from now on, those that come by the lane and those that come by the port. */
  listen(receive: (message: AnswerMessage) => void): void {
    this.#receive = receive;
    void this.#bell.listen(() => this.#drain());
  }

  /** Sends a request. Returns 0 if it went by the lane, else its number, to be sent by the port. */
  send(id: number, request: Request): number {
    const order = this.#sender.send(id, (numbers) => encodeRequest(request, numbers));
    if (order === 0) ring(this.#ownerBell);
    return order;
  }

  /** Takes an answer that came by the port. */
  accept(message: AnswerMessage): void {
    try {
      this.#receiver.accept(message.order ?? 0, () => this.#receive(message));
    } catch {
      // Not in its turn, which the owner does not do: whoever waits for it gets it all the same.
      this.#receive(message);
    }
  }

  /** Takes no more answers. */
  close(): void {
    this.#receive = () => {};
    this.#bell.close();
  }

  #drain(): void {
    try {
      this.#receiver.drain();
    } catch {
      // No message: there is nobody to tell, and the port says when the owner is gone.
    }
  }
}
