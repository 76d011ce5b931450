/**
 * Requests that a back end makes, served in order.
 *
 * @module
 */

import { type FdWatch, Poll, watchFd } from "../../ffi/os/poll.ts";
import { closeFds, type UnixSocket } from "../../ffi/os/socket.ts";
import { VhostUserError } from "./errors.ts";
import { encodeU64, type Message } from "./message.ts";
import { MessageSocket } from "./message_socket.ts";
import { FLAG_NEED_REPLY, FLAG_REPLY } from "./protocol.ts";

/** How many requests are kept at most before no more are read. */
const MAX_KEPT = 64;
/** How many are served before the event loop gets its turn. */
const MAX_AT_ONCE = 16;

/** Serves one request; the descriptors that came with it are closed afterwards. @returns Whether it was granted. */
export type ServeBackend = (message: Message) => boolean;

/** The front end's end of the socket that a back end makes its requests on. */
export class BackendChannel implements Disposable {
  readonly #messages: MessageSocket;
  readonly #serve: ServeBackend;
  readonly #onFailure: (error: VhostUserError) => void;
  readonly #watch: FdWatch;
  #kept: Message[] = [];
  #scheduled = false;
  #disposed = false;

  /**
   * Takes the socket over.
   *
   * @param onFailure Is called when the back end says something that makes no sense.
   */
  constructor(socket: UnixSocket, serve: ServeBackend, onFailure: (error: VhostUserError) => void) {
    this.#messages = new MessageSocket(socket);
    this.#serve = serve;
    this.#onFailure = onFailure;
    this.#watch = watchFd(socket.fd, Poll.IN, (events) => this.#ready(events));
  }

  /** The descriptor, to be waited for. */
  get fd(): number {
    return this.#messages.socket.fd;
  }

  /** Whether `collect` would read anything. */
  get canCollect(): boolean {
    return !this.#disposed && this.#kept.length < MAX_KEPT;
  }

  /** Reads the requests that have come in, to be served on a later turn of the event loop. */
  collect(): void {
    this.#guard(() => {
      while (this.canCollect) {
        const message = this.#messages.receive();
        if (message === null) break;
        this.#kept.push(message);
      }
    });
    if (this.#kept.length > 0) this.#schedule();
  }

  /** Refuses all requests that wait for a reply. The others stay to be served. */
  refuseWaiting(): void {
    const rest: Message[] = [];
    for (const message of this.#kept) {
      if ((message.flags & FLAG_NEED_REPLY) === 0) rest.push(message);
      else {
        closeFds(message.fds);
        this.#reply(message, false);
      }
    }
    this.#kept = rest;
  }

  /** Closes the socket and what came with requests that were not served. */
  [Symbol.dispose](): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#watch[Symbol.dispose]();
    for (const { fds } of this.#kept.splice(0)) closeFds(fds);
    this.#messages[Symbol.dispose]();
  }

  #ready(events: number): void {
    if (this.#disposed) return;
    if ((events & Poll.OUT) !== 0) this.#guard(() => this.#messages.flush());
    if (!this.#disposed && !this.#messages.isFull) this.#watch.events = Poll.IN;
    this.collect();
    this.#serveKept();
  }

  /** What was collected while the owner was waiting is served even if nothing more comes. */
  #schedule(): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    setTimeout(() => {
      this.#scheduled = false;
      this.#serveKept();
    }, 0);
  }

  #serveKept(): void {
    for (let served = 0; served < MAX_AT_ONCE && !this.#disposed; served++) {
      const message = this.#kept.shift();
      if (message === undefined) break;
      let granted = false;
      try {
        granted = this.#serve(message);
      } finally {
        closeFds(message.fds);
      }
      if ((message.flags & FLAG_NEED_REPLY) !== 0) this.#reply(message, granted);
    }
    // More may have been read than was kept.
    this.collect();
  }

  #reply({ request }: Message, granted: boolean): void {
    if (this.#disposed) return;
    this.#guard(() => {
      this.#messages.flush();
      this.#messages.send(request, FLAG_REPLY, encodeU64(granted ? 0 : 1));
      if (this.#messages.isFull) this.#watch.events = Poll.IN | Poll.OUT;
    });
  }

  #guard(act: () => void): void {
    if (this.#disposed) return;
    try {
      act();
    } catch (error) {
      this[Symbol.dispose]();
      if (!(error instanceof VhostUserError)) {
        this.#onFailure(new VhostUserError("protocol", "", "The socket for requests failed", { cause: error }));
      } else if (error.kind !== "disconnected") {
        // A back end may close this socket and go on without it.
        this.#onFailure(error);
      }
    }
  }
}
