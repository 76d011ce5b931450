import type { OwnerMessage } from "./protocol.ts";
import { LINE } from "./shared_words.ts";

/** How many messages of one client are handed on in one go: whoever says more has the owner to itself for no longer. */
export const MOST_AT_ONCE = 256;

/** How the owner and one client exchange messages. */
export interface ClientChannel {
  /** Is handed whatever arrives, and the descriptors that came along, which are closed afterwards. Must not throw. */
  receive: (data: unknown, fds: readonly number[]) => void;
  /** Is told when nothing will arrive any more: for `cause`, where that is not the client's own will. Must not throw. */
  hungUp: (cause?: Error) => void;
  /** Is handed messages of numbers, which are its own during the call. Must not throw. */
  receiveNumbers?: (id: number, code: number, numbers: Float64Array) => void;
  /** Sends a message, and duplicates of descriptors with it. Never waits, and never throws. */
  post(message: OwnerMessage, fds?: readonly number[]): void;
  /** Sends a message of numbers, if `encode` makes numbers of it: it returns their code, 0 if it cannot. */
  postNumbers?(id: number, encode: (numbers: Float64Array) => number): boolean;
  /** Hands on what has arrived by now, or the first of it. Returns how many messages there were. */
  poll(): number;
  /** Takes messages from `messages` too, from now on, whose sender counts them in `line` as `LINE.posted` says. */
  bring?(messages: MessagePort, line: Int32Array): void;
  /** Hands on what has arrived there by now, or the first of it. Returns how many messages there were. */
  take?(): number;
  /** Nothing is sent or received any more. */
  close(): void;
}

// What web ports lack, the module of Node.js has: the event that the other end is closed, which Deno fires only once
// this module has been loaded, and taking a message without a turn of the event loop. It is loaded at the first use.
type Ports = { receiveMessageOnPort(port: MessagePort): { message: unknown } | undefined };
let ports: Ports | undefined;

function loadPorts(): Ports {
  // SAFETY: the module of this name has that function, for web ports too.
  return ports ??= (globalThis as unknown as { process: { getBuiltinModule(name: string): Ports } }).process
    .getBuiltinModule("node:worker_threads");
}

const claimed = new WeakSet<MessagePort>();

/**
 * Makes sure that a port has one user: a manager that serves, or a client.
 *
 * @throws {TypeError} If it has one already, or is no port.
 */
export function claimPort(port: MessagePort, who: string): void {
  if (!(port instanceof MessagePort)) throw new TypeError(`${who} through a MessagePort`);
  if (claimed.has(port)) {
    throw new TypeError("The port is in use by a client or a manager already, make another MessageChannel");
  }
  claimed.add(port);
  loadPorts();
}

/**
 * Closes a port, whatever is still said at its other end. Deno's own `close` first hands on what there is, and goes on with
 * that for as long as more comes; what is sent along to nobody is just gone.
 */
function closeNow(port: MessagePort): void {
  // A new one each time: once an end knows that the other is gone, it takes nothing to be sent.
  const { port1, port2 } = new MessageChannel();
  port2.close();
  try {
    port1.postMessage(null, [port]);
  } catch {
    // One that was being waited at cannot be sent, and has been closed by trying. Or it was closed before.
  }
  port1.close();
}

/**
 * A channel over a port, and another one that the client brings along.
 *
 * What arrives at a port that is listened to, the event loop may have begun to take, and then nobody sees it before its
 * next turn. So nothing listens to the second port: it is looked at when a word says that something was sent.
 */
export class PortChannel implements ClientChannel {
  receive: (data: unknown, fds: readonly number[]) => void = () => {};
  hungUp: () => void = () => {};
  readonly #port: MessagePort;
  #messages: MessagePort | null = null;
  #line: Int32Array | null = null;
  /** How many messages have been sent there, as far as it is known. */
  #posted = 0;
  /** Set while there is more to take than was taken in one go. */
  #rest: ReturnType<typeof setTimeout> | undefined;
  #closed = false;

  /** Over a port that has been claimed. Messages are handed on from the next turn of the event loop on. */
  constructor(port: MessagePort) {
    this.#port = port;
    port.addEventListener("close", () => this.#closed || this.hungUp());
    port.onmessage = ({ data }: MessageEvent<unknown>) => this.#closed || this.receive(data, []);
    port.onmessageerror = () => this.#closed || this.receive(undefined, []);
  }

  post(message: OwnerMessage): void {
    if (this.#closed) return;
    try {
      this.#port.postMessage(message);
    } catch {
      // The other end is gone, which `hungUp` tells.
    }
  }

  poll(): number {
    let count = 0;
    while (count < MOST_AT_ONCE && this.#messages === null && this.#receive(this.#port)) count++;
    return count + this.take();
  }

  bring(messages: MessagePort, line: Int32Array): void {
    this.#messages = messages;
    this.#line = line;
  }

  take(): number {
    if (this.#messages === null || this.#line === null) return 0;
    const posted = Atomics.load(this.#line, LINE.posted);
    // What the client says is input: no more than it says is taken, and no more than there is.
    const left = posted - this.#posted >>> 0;
    let count = 0;
    while (count < left && count < MOST_AT_ONCE && this.#receive(this.#messages)) count++;
    const isAll = count === left || count < MOST_AT_ONCE;
    this.#posted = isAll ? posted : this.#posted + count | 0;
    if (!isAll) {
      this.#rest ??= setTimeout(() => {
        this.#rest = undefined;
        this.take();
      }, 0);
    }
    return count;
  }

  close(): void {
    this.#closed = true;
    clearTimeout(this.#rest);
    closeNow(this.#port);
    if (this.#messages !== null) closeNow(this.#messages);
  }

  /** Takes one message from a port, if there is one. */
  #receive(port: MessagePort): boolean {
    if (this.#closed) return false;
    let message: unknown;
    try {
      const received = loadPorts().receiveMessageOnPort(port);
      if (received === undefined) return false;
      ({ message } = received);
    } catch {
      // It cannot be read, so it is no message.
    }
    this.receive(message, []);
    return true;
  }
}
