/**
 * The connection to one back end process: requests and their replies, in order, awaited on the event loop or here and
 * now, each with a deadline.
 *
 * Whoever breaks the protocol or misses a deadline is cut off: nothing is sent or read any more. Since such a back end
 * may still use the memory it has been given, the socket is watched on, until the other side closes it.
 *
 * @module
 */

import { type FdWatch, Poll, pollAny, pollOne, watchFd } from "../../ffi/os/poll.ts";
import { closeFds, type UnixSocket } from "../../ffi/os/socket.ts";
import type { BackendChannel } from "./backend_channel.ts";
import { VhostUserError } from "./errors.ts";
import { ALL_WELL, decodeU64, type Message } from "./message.ts";
import { MessageSocket } from "./message_socket.ts";
import { FLAG_NEED_REPLY, FLAG_REPLY, Request, requestName } from "./protocol.ts";
import type { Outgoing } from "./vring.ts";

/** How a connection is. */
export type ConnectionState = "open" | "cut off" | "gone";

/** How long requests of the back end may wait for the owner while the owner waits for the back end, in milliseconds. */
const PATIENCE = 10;

/**
 * How long it looks for an answer again and again before it sleeps, in milliseconds. Back ends that are idle answer within
 * tens of microseconds, and to be woken takes as long again. With one processor nobody can answer meanwhile.
 */
const LOOKS_FOR = navigator.hardwareConcurrency > 1 ? 0.1 : 0;

/** A reply that is on its way. */
export interface Reply<T> {
  /** Which request it is of. */
  readonly name: string;
  /** Whether it has come, or will not come any more. */
  readonly settled: boolean;
  /** What came. @throws What went wrong, or that it is too early. */
  result(): T;
}

class PendingReply<T> implements Reply<T> {
  readonly name: string;
  readonly id: number;
  readonly maxFds: number;
  settled = false;
  onSettled: (() => void) | undefined;
  readonly #decode: (message: Message) => T;
  #result: (() => T) | undefined;

  constructor(id: number, maxFds: number, decode: (message: Message) => T) {
    this.id = id;
    this.name = requestName(id);
    this.maxFds = maxFds;
    this.#decode = decode;
  }

  /** Takes the reply. @throws {VhostUserError} `"protocol"` if it is not what was asked for. */
  take(message: Message): void {
    try {
      const value = this.#decode(message);
      this.settle(() => value);
    } catch (error) {
      if (!(error instanceof VhostUserError) || error.kind !== "refused") throw error;
      this.fail(error);
    }
  }

  fail(error: unknown): void {
    this.settle(() => {
      throw error;
    });
  }

  settle(result: () => T): void {
    if (this.settled) return;
    this.#result = result;
    this.settled = true;
    this.onSettled?.();
  }

  result(): T {
    if (this.#result === undefined) throw new Error(`${this.name} has not been answered yet`);
    return this.#result();
  }
}

/** The connection to a back end. */
export class Connection implements Disposable {
  /** How long the back end may take for an answer, in milliseconds. */
  readonly deadline: number;
  /** Whether each request is acknowledged (REPLY_ACK), which the handshake finds out. */
  acknowledges = false;
  /** The requests of the back end, where there are any. */
  backend: BackendChannel | undefined;
  /** Is called once, in a microtask, when the connection does not work any more. */
  onEnd: ((error: VhostUserError) => void) | undefined;
  readonly #messages: MessageSocket;
  readonly #watch: FdWatch;
  readonly #pending: PendingReply<unknown>[] = [];
  #state: ConnectionState = "open";
  #error: VhostUserError | undefined;
  #awaited = false;
  /** Whether answers come so soon that it is worth while to look for them. */
  #isQuick = true;
  // Made once, for what happens with every message.
  readonly #pumpAll = () => this.#pump();
  readonly #waitForOne = () => void this.#pumpOne(true);

  /** Takes a connected socket over. */
  constructor(socket: UnixSocket, deadline: number) {
    this.deadline = deadline;
    this.#messages = new MessageSocket(socket);
    socket.patience = PATIENCE;
    this.#watch = watchFd(socket.fd, Poll.IN, (events) => this.#ready(events));
  }

  /** Whether it works. A back end that has gone in the meantime is found out by asking. */
  get state(): ConnectionState {
    return this.#state;
  }

  /** Why it does not work any more. */
  get error(): VhostUserError | undefined {
    return this.#error;
  }

  /** Looks whether the back end has gone, without waiting. */
  look(): ConnectionState {
    if (this.#state === "open") this.#guard(this.#pumpAll);
    else if (this.#state === "cut off" && (pollOne(this.#messages.socket.fd, 0, 0) & Poll.HUP) !== 0) this.#gone();
    return this.#state;
  }

  /**
   * Waits for a back end that was cut off to close its socket, here and now. One that still runs sees the end of the
   * connection and does so at once, so it is waited for the first time only.
   */
  awaitEnd(): ConnectionState {
    if (this.#state !== "cut off") return this.#state;
    // One that missed its deadline has had its time.
    const patience = this.#awaited ? 0 : this.#error?.kind === "deadline" ? PATIENCE : this.deadline;
    this.#awaited = true;
    if ((pollOne(this.#messages.socket.fd, 0, patience) & Poll.HUP) !== 0) this.#gone();
    return this.#state;
  }

  /**
   * Sends a request without an answer.
   *
   * @throws {VhostUserError} If the connection does not work any more.
   */
  post(out: Outgoing, flags = 0): void {
    this.#checkOpen(out.request);
    try {
      this.#messages.send(Request[out.request], flags, out.payload, out.fds);
    } catch (error) {
      this.#fail(error);
    }
    this.#checkOpen(out.request);
    if (this.#messages.isFull) this.#watch.events = Poll.IN | Poll.OUT;
  }

  /**
   * Sends a request that is answered by a message of its own.
   *
   * @param decode What the answer means. It throws `"protocol"` for what makes no sense, and `"refused"`.
   * @param maxFds How many descriptors may come with the answer.
   */
  ask<T>(out: Outgoing, decode: (message: Message) => T, maxFds = 0): Reply<T> {
    this.post(out);
    const reply = new PendingReply<T>(Request[out.request], maxFds, decode);
    this.#pending.push(reply as PendingReply<unknown>);
    return reply;
  }

  /** Sends a request, and has it acknowledged if the back end does that; otherwise `null`. */
  tell(out: Outgoing): Reply<void> | null {
    if (!this.acknowledges) {
      this.post(out);
      return null;
    }
    this.post(out, FLAG_NEED_REPLY);
    const reply = new PendingReply<void>(Request[out.request], 0, (message) => acknowledged(message));
    this.#pending.push(reply as PendingReply<unknown>);
    return reply;
  }

  /**
   * Sends requests in one go. The last reply says that all of them have been served, whether the back end acknowledges
   * them or not: messages are served in order.
   */
  tellAll(requests: readonly Outgoing[]): Reply<unknown>[] {
    const replies: Reply<unknown>[] = [];
    for (const out of requests) {
      const reply = this.tell(out);
      if (reply !== null) replies.push(reply);
    }
    if (requests.length > 0 && replies.length === 0) replies.push(this.barrier());
    return replies;
  }

  /** A request that changes nothing, whose answer says that all before it have been served. */
  barrier(): Reply<unknown> {
    return this.ask({ request: "GET_FEATURES", payload: new Uint8Array(0), fds: [] }, (message) => u64Of(message));
  }

  /**
   * Waits for an answer on the event loop.
   *
   * @throws {VhostUserError} What went wrong, `"deadline"` if it took too long.
   */
  async settled<T>(reply: Reply<T>): Promise<T> {
    if (!reply.settled) {
      const { promise, resolve } = Promise.withResolvers<void>();
      (reply as PendingReply<T>).onSettled = resolve;
      const timer = setTimeout(() => this.#miss(reply.name), this.deadline);
      await promise;
      clearTimeout(timer);
    }
    return reply.result();
  }

  /**
   * Waits for answers here and now: the thread does nothing else meanwhile. Requests of the back end that come in are
   * kept for later. If the answers take a while, those that wait for a reply are refused, lest both sides wait for each
   * other.
   */
  waitFor(replies: readonly Reply<unknown>[]): void {
    const start = performance.now();
    const { fd } = this.#messages.socket;
    const looksFor = this.#isQuick ? LOOKS_FOR : 0;
    for (const reply of replies) {
      while (!reply.settled) {
        const waited = performance.now() - start;
        if (waited >= this.deadline) {
          this.#miss(reply.name);
          break;
        }
        if (this.#messages.isFull) this.#guard(() => this.#messages.flush());
        else if (waited < PATIENCE) {
          // For as long as requests of the back end may wait, there is one socket to be waited for.
          this.#guard(waited < looksFor ? this.#pumpAll : this.#waitForOne);
          continue;
        }
        const { backend } = this;
        if (waited >= PATIENCE) backend?.refuseWaiting();
        const fds = backend?.canCollect ? [fd, backend.fd] : [fd];
        const ready = pollAny(fds, this.#messages.isFull ? 1 : Math.max(1, this.deadline - waited));
        if ((ready & 1) !== 0) this.#guard(() => this.#pump());
        if ((ready & 2) !== 0) backend?.collect();
      }
    }
    // What was slept for is looked for again once it comes nearly as soon.
    this.#isQuick = performance.now() - start < (this.#isQuick ? LOOKS_FOR : 2 * LOOKS_FOR);
    // It may have acknowledged everything and gone.
    if (this.#state === "open") this.#guard(this.#pumpAll);
  }

  /** Cuts the back end off for what it did. */
  cutOff(error: VhostUserError): void {
    if (this.#state !== "open") return;
    this.#state = "cut off";
    this.#end(error);
    this.#messages.discard();
    this.#messages.socket.endSending();
    // Whatever it still sends is not read; that it hangs up is reported all the same.
    this.#watch.events = 0;
  }

  /** Closes the connection, whoever is at the other end. */
  [Symbol.dispose](): void {
    if (this.#state === "gone") return;
    const wasOpen = this.#state === "open";
    this.#gone();
    if (wasOpen) this.#end(new VhostUserError("disconnected", "", "The connection has been closed"), false);
  }

  #ready(events: number): void {
    if (this.#state === "cut off") {
      if ((events & (Poll.HUP | Poll.ERR)) !== 0) this.#gone();
      return;
    }
    this.#guard(() => {
      if ((events & Poll.OUT) !== 0) {
        this.#messages.flush();
        if (!this.#messages.isFull) this.#watch.events = Poll.IN;
      }
      this.#pump();
    });
  }

  /** Reads what has arrived. */
  #pump(): void {
    while (this.#pumpOne());
  }

  /** Reads one message, if it is there, or, with `waits`, comes in a moment. */
  #pumpOne(waits = false): boolean {
    const message = this.#messages.receive(waits);
    if (message === null) return false;
    try {
      this.#dispatch(message);
    } finally {
      // Whoever wants one has made a duplicate.
      closeFds(message.fds);
    }
    return true;
  }

  #dispatch(message: Message): void {
    const name = requestName(message.request);
    const [reply] = this.#pending;
    if ((message.flags & FLAG_REPLY) === 0 || reply === undefined || reply.id !== message.request) {
      const expected = reply === undefined ? "nothing" : `an answer to ${reply.name}`;
      throw new VhostUserError("protocol", name, `The back end sent an answer to ${name} where ${expected} was due`);
    }
    if (message.fds.length > reply.maxFds) {
      throw new VhostUserError("protocol", name, `The answer to ${name} came with ${message.fds.length} descriptors`);
    }
    reply.take(message);
    this.#pending.shift();
  }

  /** Runs what reads or writes; if it fails, the connection is over. */
  #guard(act: () => void): void {
    if (this.#state !== "open") return;
    try {
      act();
    } catch (error) {
      this.#fail(error);
    }
  }

  /** What reads or writes has failed: the connection is over. */
  #fail(error: unknown): void {
    // What else the kernel refuses (no descriptors left, say) ends the connection too: a message may be half gone.
    if (!(error instanceof VhostUserError)) {
      return this.cutOff(new VhostUserError("protocol", "", "The socket of the back end failed", { cause: error }));
    }
    if (error.kind !== "disconnected") return this.cutOff(error);
    this.#gone();
    this.#end(error);
  }

  #miss(name: string): void {
    const message = `The back end has not answered ${name} within ${this.deadline} ms`;
    this.cutOff(new VhostUserError("deadline", name, message));
  }

  #checkOpen(request: string): void {
    if (this.#state === "open") return;
    const { message = "", kind } = this.#error ?? {};
    throw new VhostUserError(kind ?? "disconnected", request, `${request} cannot be sent: ${message}`, {
      cause: this.#error,
    });
  }

  #gone(): void {
    this.#state = "gone";
    this.#watch[Symbol.dispose]();
    this.#messages[Symbol.dispose]();
  }

  #end(error: VhostUserError, tell = true): void {
    this.#error = error;
    this.backend?.[Symbol.dispose]();
    for (const reply of this.#pending.splice(0)) {
      reply.fail(
        new VhostUserError(error.kind, reply.name, `${reply.name} failed: ${error.message}`, { cause: error }),
      );
    }
    if (tell) queueMicrotask(() => this.onEnd?.(error));
  }
}

/** The number a reply consists of. @throws {VhostUserError} `"protocol"` if it does not. */
export function u64Of(message: Message): bigint {
  const value = decodeU64(message.payload);
  if (value !== null) return value;
  throw malformed(message);
}

/** What to say of a reply that makes no sense. */
export function malformed({ request, payload }: Message, cause?: unknown): VhostUserError {
  const name = requestName(request);
  const message = `The answer to ${name} makes no sense, it has ${payload.length} bytes`;
  return new VhostUserError("protocol", name, message, cause === undefined ? undefined : { cause });
}

function acknowledged(message: Message): void {
  if (message.payload === ALL_WELL) return;
  const value = u64Of(message);
  if (value === 0n) return;
  const name = requestName(message.request);
  throw new VhostUserError("refused", name, `The back end refused ${name}, with ${value}`);
}
