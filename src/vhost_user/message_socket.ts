/**
 * Messages over a socket, in both directions, without ever waiting.
 *
 * @module
 */

import { OsError } from "../../ffi/os/os_error.ts";
import { closeFds, type UnixSocket } from "../../ffi/os/socket.ts";
import { duplicateFd } from "../../ffi/os/socket.ts";
import { VhostUserError } from "./errors.ts";
import {
  ALL_WELL,
  decodeHeader,
  encodeMessage,
  HEADER_SIZE,
  MAX_PAYLOAD,
  type Message,
  type MessageHeader,
  putMessage,
} from "./message.ts";
import { isKnownVersion, MAX_FDS } from "./protocol.ts";

/** Bytes that found no room in the socket yet. */
interface Waiting {
  bytes: Uint8Array<ArrayBuffer>;
  /** Duplicates of the descriptors that go with the first byte. */
  fds: readonly number[];
}

/** The length of nearly all answers, and the least one has: a header and eight bytes. */
const ANSWER_SIZE = HEADER_SIZE + 8;
/** How many bytes may wait for a peer that reads none. */
const MAX_WAITING = 64 * 1024;

/**
 * One end of a connection that messages go over. What comes in is checked for everything that can be checked without
 * knowing what it is about.
 */
export class MessageSocket implements Disposable {
  readonly socket: UnixSocket;
  /** Where messages are sent from. */
  readonly #outgoing = new DataView(new ArrayBuffer(HEADER_SIZE + MAX_PAYLOAD));
  readonly #outgoingBytes = new Uint8Array(this.#outgoing.buffer);
  /** What has arrived of a message that is not all there. */
  readonly #incoming = new DataView(new ArrayBuffer(HEADER_SIZE + MAX_PAYLOAD));
  readonly #buffer = new Uint8Array(this.#incoming.buffer);
  #have = 0;
  /** The descriptors that came with it. */
  #fds: number[] = [];
  /** Messages that are all there. */
  readonly #ready: Message[] = [];
  /** Whether the last look found less than there was room for, so that another would find nothing. */
  #drained = false;
  #waiting: Waiting[] = [];

  /** Takes the socket over. */
  constructor(socket: UnixSocket) {
    this.socket = socket;
  }

  /** Whether something waits for room in the socket. */
  get isFull(): boolean {
    return this.#waiting.length > 0;
  }

  /**
   * Sends a message, or keeps it until there is room. The descriptors stay the caller's.
   *
   * @throws {VhostUserError} `"disconnected"` if the other end is closed, `"protocol"` if it reads nothing.
   */
  send(request: number, flags: number, payload: Uint8Array, fds: readonly number[] = []): void {
    if (this.#waiting.length > 0) return this.#wait(encodeMessage(request, flags, payload), fds);
    const length = putMessage(this.#outgoing, this.#outgoingBytes, request, flags, payload);
    const sent = this.#send(this.#outgoingBytes, fds, length);
    if (sent === length) return;
    const rest = this.#outgoingBytes.slice(sent ?? 0, length);
    if (sent === null) this.#wait(rest, fds);
    else this.#waiting.push({ bytes: rest, fds: [] });
  }

  #wait(bytes: Uint8Array<ArrayBuffer>, fds: readonly number[]): void {
    const waiting = this.#waiting.reduce((sum, each) => sum + each.bytes.length, 0);
    if (waiting > MAX_WAITING) {
      throw new VhostUserError("protocol", "", `The back end has left ${waiting} bytes of messages unread`);
    }
    this.#waiting.push({ bytes, fds: fds.map(duplicateFd) });
  }

  /** Sends what waits, as far as there is room. */
  flush(): void {
    for (let first = this.#waiting[0]; first !== undefined; first = this.#waiting[0]) {
      const sent = this.#send(first.bytes, first.fds, first.bytes.length);
      if (sent === null) return;
      closeFds(first.fds);
      first.fds = [];
      if (sent < first.bytes.length) first.bytes = first.bytes.subarray(sent);
      else this.#waiting.shift();
    }
  }

  #send(bytes: Uint8Array<ArrayBuffer>, fds: readonly number[], length: number): number | null {
    try {
      return this.socket.send(bytes, fds, length);
    } catch (cause) {
      throw goneBy(cause);
    }
  }

  /**
   * The next message, `null` while it is not all there.
   *
   * @param waits Whether it waits a moment for one (the socket's `patience`).
   * @throws {VhostUserError} `"disconnected"` at the end of the connection, `"protocol"` for what is no message.
   */
  receive(waits = false): Message | null {
    while (true) {
      if (this.#ready.length > 0) return this.#ready.shift() ?? null;
      if (this.#drained) {
        this.#drained = false;
        return null;
      }
      const into = this.#have === 0 ? this.#buffer : this.#buffer.subarray(this.#have);
      const length = waits ? this.#missing : into.length;
      const received = this.#receive(into, waits, length);
      if (received === null) return null;
      this.#drained = received.length < length && received.fds.length === 0;
      this.#take(received);
    }
  }

  /** What the next message lacks, in bytes. Back ends send a header and what belongs to it apart; one wait is for both. */
  get #missing(): number {
    if (this.#have < ANSWER_SIZE) return ANSWER_SIZE - this.#have;
    return HEADER_SIZE + decodeHeader(this.#incoming).size - this.#have;
  }

  /**
   * Cuts what has arrived into messages. Descriptors arrive with the last bytes of a look, at which the kernel stops for
   * them, so they belong to the last message that has begun.
   */
  #take({ length, fds, truncated }: { length: number; fds: readonly number[]; truncated: boolean }): void {
    const buffer = this.#buffer;
    const end = this.#have + length;
    let at = 0;
    let last: Message & { fds: number[] } | undefined;
    try {
      if (length === 0) throw new VhostUserError("disconnected", "", "The back end has closed the connection");
      while (end - at >= HEADER_SIZE) {
        const header = decodeHeader(this.#incoming, at);
        checkHeader(header);
        const { request, flags, size } = header;
        const next = at + HEADER_SIZE + size;
        if (next > end) break;
        // An array is memory outside of the heap, however small, and most answers say nothing but that all is well.
        const payload = size === 8 && isZero(this.#incoming, at + HEADER_SIZE)
          ? ALL_WELL
          : buffer.slice(at + HEADER_SIZE, next);
        last = { request, flags, size, payload, fds: at === 0 ? this.#fds : [] };
        if (at === 0) this.#fds = [];
        this.#ready.push(last);
        at = next;
      }
    } finally {
      // Whatever happens, they are somebody's to close.
      if (fds.length > 0) (last === undefined || at < end ? this.#fds : last.fds).push(...fds);
    }
    if (truncated || this.#fds.length > MAX_FDS || (last?.fds.length ?? 0) > MAX_FDS) {
      throw new VhostUserError("protocol", "", `The back end sent more than ${MAX_FDS} file descriptors at once`);
    }
    if (at > 0 && at < end) buffer.copyWithin(0, at, end);
    this.#have = end - at;
  }

  #receive(
    into: Uint8Array<ArrayBuffer>,
    waits: boolean,
    length: number,
  ): { length: number; fds: number[]; truncated: boolean } | null {
    try {
      return this.socket.receive(into, waits, length);
    } catch (cause) {
      throw goneBy(cause);
    }
  }

  /**
   * Closes what arrived with messages that nobody has received. It may be the other end's own socket, which would then
   * never be seen to close.
   */
  discard(): void {
    closeFds(this.#fds.splice(0));
    for (const { fds } of this.#ready.splice(0)) closeFds(fds);
  }

  /** Closes the socket, and whatever arrived or waits to be sent. */
  [Symbol.dispose](): void {
    this.discard();
    for (const { fds } of this.#waiting) closeFds(fds);
    this.#waiting = [];
    this.socket[Symbol.dispose]();
  }
}

function isZero(view: DataView, at: number): boolean {
  return view.getUint32(at, true) === 0 && view.getUint32(at + 4, true) === 0;
}

function checkHeader({ flags, size }: MessageHeader): void {
  if (!isKnownVersion(flags)) {
    throw new VhostUserError("protocol", "", `A message of the back end has the flags 0x${flags.toString(16)}`);
  }
  if (size > MAX_PAYLOAD) {
    throw new VhostUserError("protocol", "", `The back end announces a message of ${size} bytes`);
  }
}

function goneBy(cause: unknown): unknown {
  if (!(cause instanceof OsError) || (cause.code !== "EPIPE" && cause.code !== "ECONNRESET")) return cause;
  return new VhostUserError("disconnected", "", "The back end has closed the connection", { cause });
}
