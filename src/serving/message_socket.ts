import { type FdWatch, Poll, watchFd } from "../../ffi/os/poll.ts";
import { OsError } from "../../ffi/os/os_error.ts";
import { LimitError, MembackingError } from "../core/errors.ts";
import { ProtocolError } from "./protocol_error.ts";
import { MAIL } from "./shared_words.ts";
import { closeFds, type Credentials, duplicateFd, MAX_FDS, type UnixSocket } from "../../ffi/os/socket.ts";

/** How long a packet is at most, in bytes. A socket's buffer has room for several. */
const PACKET = 1 << 15;
/** How long a client's message may be, in bytes: room for a batch of ten thousand changes, which is read in no time. */
export const LONGEST_REQUEST = 1 << 21;
/** How long an owner's message may be, whose lists have no end. */
export const LONGEST_ANSWER = 1 << 26;
/** How many bytes may wait to be sent when there is more to be sent: beyond that the other side counts as gone. */
const MOST_WAITING = 1 << 23;
/** How many packets are taken in one go before others on the event loop get their turn. */
const TURN = 64;
/** How long to wait before descriptors are sent again that the kernel has no room for, in milliseconds. */
const RETRY = 10;

/** The first byte of a packet: whether the message ends with it, or whether it is one of numbers. */
const MORE = 0;
const LAST = 1;
const NUMBERS = 2;

/** How many numbers a message of numbers has: an id, a code, and what `mail_codes.ts` writes. */
const NUMBER_COUNT = 2 + MAIL.numberCount;
/** Behind the first byte, so that the numbers are aligned. */
const NUMBERS_AT = 8;
const NUMBERS_LENGTH = NUMBERS_AT + NUMBER_COUNT * Float64Array.BYTES_PER_ELEMENT;

/** A packet that waits to be sent, with descriptors of its own. */
interface Waiting {
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly fds: readonly number[];
}

/** How long messages may be, in bytes. */
export interface MessageLimits {
  /** Those that arrive; a longer one ends it. */
  readonly received: number;
  /** Those that are sent. */
  readonly sent: number;
}

/** What is told of a socket. None of it must throw. */
export interface SocketListener {
  /** A message has arrived; the descriptors are closed when this returns. */
  message(data: unknown, fds: readonly number[], credentials: Credentials | null): void;
  /** A message of numbers has arrived; they are the listener's during the call. */
  numbers(id: number, code: number, numbers: Float64Array): void;
  /** Nothing will arrive any more, and nothing can be sent: for `cause`, where the other side did not just close. */
  closed(cause?: Error): void;
}

/**
 * Messages in JSON, with descriptors, over a "seqpacket" socket. Sending never waits: what there is no room for is kept
 * and sent when there is. What arrives is handed on by the event loop, or by `pump`, here and now.
 */
export class MessageSocket {
  readonly #socket: UnixSocket;
  readonly #listener: SocketListener;
  readonly #limits: MessageLimits;
  readonly #watch: FdWatch;
  readonly #buffer = new Uint8Array(PACKET + 8);
  readonly #numbers = new Float64Array(this.#buffer.buffer, NUMBERS_AT, NUMBER_COUNT);
  readonly #rest = this.#numbers.subarray(2);
  readonly #packet = new Float64Array(1 + NUMBER_COUNT);
  readonly #packetBytes = new Uint8Array(this.#packet.buffer);
  readonly #packetRest = this.#packet.subarray(3);
  readonly #waiting: Waiting[] = [];
  #waitingBytes = 0;
  #parts: Uint8Array[] = [];
  #partBytes = 0;
  #fds: number[] = [];
  #closed = false;
  #retry: ReturnType<typeof setTimeout> | undefined;

  /** Over a socket that is this object's from now on. */
  constructor(socket: UnixSocket, limits: MessageLimits, listener: SocketListener) {
    this.#socket = socket;
    this.#limits = limits;
    this.#listener = listener;
    this.#watch = watchFd(socket.fd, Poll.IN, (events) => {
      if ((events & Poll.OUT) !== 0) this.flush();
      this.pump(TURN);
    });
  }

  /** Whether it has been closed, by either side. */
  get closed(): boolean {
    return this.#closed;
  }

  /**
   * Sends a message, and duplicates of descriptors with it. Never waits, and throws nothing else but what making JSON of
   * the message throws, with `replacer` as for `JSON.stringify`.
   *
   * @throws {LimitError} If the message is too long.
   */
  post(
    message: unknown,
    fds: readonly number[] = [],
    replacer?: (key: string, value: unknown) => unknown,
  ): void {
    if (!this.#isRead()) return;
    const text = new TextEncoder().encode(JSON.stringify(message, replacer));
    const { sent } = this.#limits;
    if (text.length > sent) {
      throw new LimitError("bytes of a message", sent, text.length, "make several batches of one");
    }
    for (let at = 0; at === 0 || at < text.length; at += PACKET) {
      const part = text.subarray(at, at + PACKET);
      const bytes = new Uint8Array(part.length + 1);
      bytes[0] = at + PACKET < text.length ? MORE : LAST;
      bytes.set(part, 1);
      this.#send(bytes, at === 0 ? fds : []);
    }
  }

  /**
   * Sends a message of numbers, if `encode` makes numbers of it: it returns their code, 0 if it cannot.
   *
   * @returns Whether it could.
   */
  postNumbers(id: number, encode: (numbers: Float64Array) => number): boolean {
    if (!this.#isRead()) return true;
    const code = encode(this.#packetRest);
    if (code === 0) return false;
    this.#packetBytes[0] = NUMBERS;
    this.#packet[1] = id;
    this.#packet[2] = code;
    const isNext = this.#waiting.length === 0 && this.#trySend(this.#packetBytes, []);
    if (!isNext) this.#send(this.#packetBytes.slice(), []);
    return true;
  }

  /** Hands on what has arrived by now, in `most` packets at most. Returns how many messages there were. */
  pump(most: number = Infinity): number {
    let count = 0;
    for (let packets = 0; !this.#closed && packets < most; packets++) {
      let received;
      try {
        received = this.#socket.receive(this.#buffer);
      } catch {
        this.#end();
        break;
      }
      if (received === null) break;
      this.#fds.push(...received.fds);
      if (received.length === 0) {
        this.#end();
        break;
      }
      if (received.truncated || this.#fds.length > MAX_FDS) {
        // Descriptors are lost too where this process can have no more of them.
        this.#end(new MembackingError("A message came with more bytes or descriptors than there was room for"));
        break;
      }
      if (this.#take(received.length, received.credentials)) count++;
    }
    return count;
  }

  /** Waits until something has arrived. Returns whether it has. */
  waitFor(timeout: number): boolean {
    return !this.#closed && this.#socket.waitFor("receive", timeout);
  }

  /** Closes it, without telling the listener. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.flush(); // As much as goes at once: the last words.
    clearTimeout(this.#retry);
    this.#watch[Symbol.dispose]();
    this.#socket[Symbol.dispose]();
    closeFds(this.#fds.splice(0));
    for (const { fds } of this.#waiting.splice(0)) closeFds(fds);
  }

  #end(cause?: Error): void {
    if (this.#closed) return;
    this.close();
    this.#listener.closed(cause);
  }

  /** Takes one packet in. Returns whether a message was complete with it. */
  #take(length: number, credentials: Credentials | null): boolean {
    if (this.#buffer[0] === NUMBERS && length === NUMBERS_LENGTH && this.#partBytes === 0) {
      this.#listener.numbers(this.#numbers[0]!, this.#numbers[1]!, this.#rest);
      closeFds(this.#fds.splice(0));
      return true;
    }
    this.#parts.push(this.#buffer.slice(1, length));
    this.#partBytes += length - 1;
    const isMore = this.#buffer[0] === MORE;
    // Packets with little in them would take more memory than they have bytes.
    if (this.#partBytes > this.#limits.received || (isMore && length !== PACKET + 1)) {
      this.#end(new ProtocolError("A message is longer than messages are, or comes in crumbs"));
      return false;
    }
    if (isMore) return false;
    const [parts, fds] = [this.#parts, this.#fds];
    this.#parts = [];
    this.#partBytes = 0;
    this.#fds = [];
    let data: unknown;
    try {
      const decoder = new TextDecoder();
      let text = "";
      for (const part of parts) text += decoder.decode(part, { stream: true });
      data = JSON.parse(text + decoder.decode());
    } catch {
      data = undefined; // Which is no message to anybody.
    }
    try {
      this.#listener.message(data, fds, credentials);
    } finally {
      closeFds(fds);
    }
    return true;
  }

  /** Whether there is somebody to send to, who reads what is sent. */
  #isRead(): boolean {
    if (!this.#closed && this.#waitingBytes > MOST_WAITING) {
      this.#endSoon(new MembackingError("What was sent is not read"));
      return false;
    }
    return !this.#closed;
  }

  #send(bytes: Uint8Array<ArrayBuffer>, fds: readonly number[]): void {
    if (this.#waiting.length === 0 && this.#trySend(bytes, fds)) return;
    if (this.#closed) return;
    this.#waitingBytes += bytes.length;
    try {
      this.#waiting.push({ bytes, fds: fds.map(duplicateFd) });
    } catch {
      return this.#endSoon();
    }
    this.#watch.events = Poll.IN | Poll.OUT;
  }

  /** Whether there was room. */
  #trySend(bytes: Uint8Array, fds: readonly number[]): boolean {
    try {
      return this.#socket.send(bytes, fds) !== null;
    } catch (error) {
      if (error instanceof OsError && error.code === "ETOOMANYREFS") {
        this.#retry ??= setTimeout(() => {
          this.#retry = undefined;
          this.flush();
        }, RETRY);
        return false;
      }
      this.#endSoon();
      return false;
    }
  }

  /** Sends what waits to be sent, as far as there is room. */
  flush(): void {
    while (this.#waiting.length > 0) {
      const [first] = this.#waiting;
      if (first === undefined || !this.#trySend(first.bytes, first.fds)) return;
      this.#waiting.shift();
      this.#waitingBytes -= first.bytes.length;
      closeFds(first.fds);
    }
    if (!this.#closed) this.#watch.events = Poll.IN;
  }

  /** Ends it on the next turn of the event loop: whoever sends does not expect to be called. */
  #endSoon(cause?: Error): void {
    setTimeout(() => this.#end(cause), 0);
  }
}
