import type { Credentials, UnixSocket } from "../../ffi/os/socket.ts";
import { type ClientChannel, MOST_AT_ONCE } from "./channel.ts";
import { LONGEST_ANSWER, LONGEST_REQUEST, MessageSocket } from "./message_socket.ts";
import type { OwnerMessage } from "./protocol.ts";

/** A channel to a client in another process. */
export class SocketChannel implements ClientChannel {
  receive: (data: unknown, fds: readonly number[]) => void = () => {};
  receiveNumbers: (id: number, code: number, numbers: Float64Array) => void = () => {};
  hungUp: (cause?: Error) => void = () => {};
  /** Who sent the message that is being handed on; `null` between two, and where the kernel does not say. */
  sender: Credentials | null = null;
  readonly #socket: MessageSocket;

  /** Over a socket that is the channel's from now on. */
  constructor(socket: UnixSocket) {
    socket.passCredentials();
    this.#socket = new MessageSocket(socket, { received: LONGEST_REQUEST, sent: LONGEST_ANSWER }, {
      message: (data, fds, credentials) => {
        this.sender = credentials;
        this.receive(data, fds);
        this.sender = null;
      },
      numbers: (id, code, numbers) => this.receiveNumbers(id, code, numbers),
      closed: (cause) => this.hungUp(cause),
    });
  }

  /** Whether nothing will arrive any more. */
  get closed(): boolean {
    return this.#socket.closed;
  }

  post(message: OwnerMessage, fds: readonly number[] = []): void {
    this.#socket.post(message, fds);
  }

  postNumbers(id: number, encode: (numbers: Float64Array) => number): boolean {
    return this.#socket.postNumbers(id, encode);
  }

  /** Sends what waits to be sent, as far as there is room. */
  flush(): void {
    this.#socket.flush();
  }

  poll(): number {
    return this.#socket.pump(MOST_AT_ONCE);
  }

  close(): void {
    this.#socket.close();
  }
}
