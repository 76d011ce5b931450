/**
 * Messages over a socket, in both directions, without ever waiting.
 *
 * @module
 */

import { OsError } from "../../ffi/os/os_error.ts";
import { closeFds, type UnixSocket } from "../../ffi/os/socket.ts";
import { duplicateFd } from "../../ffi/os/socket.ts";
import { VhostUserError } from "./errors.ts";
import { decodeHeader, HEADER_SIZE, MAX_PAYLOAD, type Message, type MessageHeader } from "./message.ts";
import { isKnownVersion, MAX_FDS } from "./protocol.ts";

/** Bytes that found no room in the socket yet. */
interface Waiting {
  bytes: Uint8Array<ArrayBuffer>;
  /** Duplicates of the descriptors that go with the first byte. */
  fds: readonly number[];
}

/** How many bytes may wait for a peer that reads none. */
const MAX_WAITING = 64 * 1024;

/**
 * One end of a connection that messages go over. What comes in is checked for everything that can be checked without
 * knowing what it is about.
 */
export class MessageSocket implements Disposable {
  readonly socket: UnixSocket;
  readonly #header = new Uint8Array(HEADER_SIZE);
  #have = 0;
  #current: MessageHeader | null = null;
  #payload: Uint8Array<ArrayBuffer> = new Uint8Array(0);
  #fds: number[] = [];
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
  send(bytes: Uint8Array<ArrayBuffer>, fds: readonly number[]): void {
    if (this.#waiting.length === 0) {
      const sent = this.#send(bytes, fds);
      if (sent === bytes.length) return;
      if (sent !== null) return void this.#waiting.push({ bytes: bytes.subarray(sent), fds: [] });
    }
    const waiting = this.#waiting.reduce((sum, each) => sum + each.bytes.length, 0);
    if (waiting > MAX_WAITING) {
      throw new VhostUserError("protocol", "", `The back end has left ${waiting} bytes of messages unread`);
    }
    this.#waiting.push({ bytes, fds: fds.map(duplicateFd) });
  }

  /** Sends what waits, as far as there is room. */
  flush(): void {
    for (let first = this.#waiting[0]; first !== undefined; first = this.#waiting[0]) {
      const sent = this.#send(first.bytes, first.fds);
      if (sent === null) return;
      closeFds(first.fds);
      first.fds = [];
      if (sent < first.bytes.length) first.bytes = first.bytes.subarray(sent);
      else this.#waiting.shift();
    }
  }

  #send(bytes: Uint8Array<ArrayBuffer>, fds: readonly number[]): number | null {
    try {
      return this.socket.send(bytes, fds);
    } catch (cause) {
      throw goneBy(cause);
    }
  }

  /**
   * The next message, `null` while it is not all there.
   *
   * @throws {VhostUserError} `"disconnected"` at the end of the connection, `"protocol"` for what is no message.
   */
  receive(): Message | null {
    while (true) {
      if (this.#current === null) {
        if (!this.#fill(this.#header)) return null;
        const header = decodeHeader(this.#header);
        this.#have = 0;
        if (!isKnownVersion(header.flags)) {
          throw new VhostUserError(
            "protocol",
            "",
            `A message of the back end has the flags 0x${header.flags.toString(16)}`,
          );
        }
        if (header.size > MAX_PAYLOAD) {
          throw new VhostUserError("protocol", "", `The back end announces a message of ${header.size} bytes`);
        }
        this.#payload = new Uint8Array(header.size);
        this.#current = header;
      }
      if (!this.#fill(this.#payload)) return null;
      const message: Message = { ...this.#current, payload: this.#payload, fds: this.#fds };
      this.#have = 0;
      this.#current = null;
      this.#fds = [];
      return message;
    }
  }

  /** Whether `into` is full now. */
  #fill(into: Uint8Array<ArrayBuffer>): boolean {
    while (this.#have < into.length) {
      const received = this.#receive(into.subarray(this.#have));
      if (received === null) return false;
      this.#fds.push(...received.fds);
      // The end of the connection has no bytes; whether descriptors came along does not matter then.
      if (received.length === 0) throw new VhostUserError("disconnected", "", "The back end has closed the connection");
      if (received.truncated || this.#fds.length > MAX_FDS) {
        throw new VhostUserError("protocol", "", `The back end sent more than ${MAX_FDS} file descriptors at once`);
      }
      this.#have += received.length;
    }
    return true;
  }

  #receive(into: Uint8Array<ArrayBuffer>): { length: number; fds: number[]; truncated: boolean } | null {
    try {
      return this.socket.receive(into);
    } catch (cause) {
      throw goneBy(cause);
    }
  }

  /**
   * Closes what arrived with a message that is not all there. It may be the other end's own socket, which would then
   * never be seen to close.
   */
  discard(): void {
    closeFds(this.#fds.splice(0));
  }

  /** Closes the socket, and whatever arrived or waits to be sent. */
  [Symbol.dispose](): void {
    this.discard();
    for (const { fds } of this.#waiting) closeFds(fds);
    this.#waiting = [];
    this.socket[Symbol.dispose]();
  }
}

function goneBy(cause: unknown): unknown {
  if (!(cause instanceof OsError) || (cause.code !== "EPIPE" && cause.code !== "ECONNRESET")) return cause;
  return new VhostUserError("disconnected", "", "The back end has closed the connection", { cause });
}
