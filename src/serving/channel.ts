import type { OwnerMessage } from "./protocol.ts";

/** How the owner and one client exchange messages. */
export interface ClientChannel {
  /** Is handed whatever arrives, and the descriptors that came along, which are closed afterwards. Must not throw. */
  receive: (data: unknown, fds: readonly number[]) => void;
  /** Is told when nothing will arrive any more. Must not throw. */
  hungUp: () => void;
  /** Is handed messages of numbers, which are its own during the call. Must not throw. */
  receiveNumbers?: (id: number, code: number, numbers: Float64Array) => void;
  /** Sends a message, and duplicates of descriptors with it. Never waits, and never throws. */
  post(message: OwnerMessage, fds?: readonly number[]): void;
  /** Sends a message of numbers, if `encode` makes numbers of it: it returns their code, 0 if it cannot. */
  postNumbers?(id: number, encode: (numbers: Float64Array) => number): boolean;
  /** Hands on what has arrived by now. Returns how many messages there were. */
  poll(): number;
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

/** A channel over a port. */
export class PortChannel implements ClientChannel {
  receive: (data: unknown, fds: readonly number[]) => void = () => {};
  hungUp: () => void = () => {};
  readonly #port: MessagePort;
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
    const { receiveMessageOnPort } = loadPorts();
    let count = 0;
    while (!this.#closed) {
      const received = receiveMessageOnPort(this.#port);
      if (received === undefined) break;
      this.receive(received.message, []);
      count++;
    }
    return count;
  }

  close(): void {
    this.#closed = true;
    this.#port.close();
  }
}
