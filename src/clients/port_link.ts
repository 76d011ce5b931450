import { currentThread, isAlive, type ThreadIdentity } from "../../ffi/os/thread.ts";
import { borrowMappable, type Mappable } from "../../ffi/files/mappable.ts";
import type { OpenFile } from "../../ffi/files/open_file.ts";
import { checkSignal, onAbort } from "../core/abort.ts";
import { DisposedError } from "../core/errors.ts";
import { WriteMarks } from "../memory/write_marks.ts";
import { ring } from "../serving/bell.ts";
import { claimPort } from "../serving/channel.ts";
import { LANE_BYTES } from "../serving/lane.ts";
import { LockSlots } from "../serving/lock_slots.ts";
import type { ClientMessage, FileReference, Mail, OwnerMessage, Request, Welcome } from "../serving/protocol.ts";
import { LINE, ThreadWords } from "../serving/shared_words.ts";
import { ClientAccess, type MemoryHost } from "./client_access.ts";
import { ClientMemory } from "./client_memory.ts";
import { ClientLane } from "./client_lane.ts";
import { type Attached, type ClientView, Connection, type LentFile, type OwnerLink } from "./connection.ts";
import { Hold } from "./hold.ts";
import { readOwnerMessage } from "./owner_messages.ts";
import { PageReader, type Row } from "./page_reader.ts";

/** A connection to an owner in another thread of this process, or in this one. */
export interface PortConnection {
  readonly connection: Connection;
  /** The thread of the owner. */
  readonly owner: ThreadIdentity;
  /** Wakes the owner, for it to look into the mail. */
  ring(): void;
}

/**
 * Says hello to whoever serves the other end of `port`, and waits to be welcomed.
 *
 * @throws {TypeError} If the port is in use.
 * @throws {DisposedError} If the manager is gone.
 * @throws The signal's reason, if it aborts first.
 */
export async function connectPort(
  port: MessagePort,
  options: { mail?: Mail; signal: AbortSignal | undefined },
): Promise<PortConnection> {
  const { mail, signal } = options;
  const lane = mail === undefined ? new SharedArrayBuffer(LANE_BYTES) : undefined;
  checkSignal(signal);
  const { promise, resolve, reject } = Promise.withResolvers<Welcome>();
  promise.catch(() => {}); // Who does not get as far as to wait for it has an error already.
  using _abort = onAbort(signal, () => reject(signal?.reason));
  claimPort(port, "A client connects");
  const { port1: messages, port2: owners } = new MessageChannel();
  port.onmessage = ({ data }: MessageEvent<unknown>) => {
    const message = readOwnerMessage(data);
    if (message?.kind === "welcome") resolve(message);
    else if (message?.kind === "closed") reject(new DisposedError("The region manager"));
  };
  port.addEventListener("close", () => reject(new DisposedError("The region manager", "does not serve this port")));
  try {
    const hello: ClientMessage = {
      kind: "hello",
      thread: currentThread(),
      messages: owners,
      ...(mail !== undefined && { mail }),
      ...(lane !== undefined && { lane }),
    };
    port.postMessage(hello, [owners]);
    const welcome = await promise;
    const bell = new Int32Array(welcome.bell);
    const link = new PortLink(port, messages, welcome, lane === undefined ? null : new ClientLane(lane, bell));
    const connection = new Connection(link, viewOf(welcome, link));
    return { connection, owner: welcome.owner, ring: () => ring(bell) };
  } catch (error) {
    port.close();
    messages.close();
    throw error;
  }
}

/** The other end of a port at which the same manager serves another client. */
export function forkPort(connection: Connection): MessagePort {
  connection.check();
  const { port1, port2 } = new MessageChannel();
  connection.post({ kind: "serve", port: port1 }, [port1]);
  return port2;
}

/** How many borrowed files are remembered; each costs some system calls to get to know. */
const REMEMBERED = 64;

/** Guest memory where the owner has it: this is the owner's process. */
class SharedHost implements MemoryHost {
  readonly base: number;
  readonly isExact = false;
  /** The owner's files by the serial numbers of their rows. */
  readonly #files = new Map<number, Mappable>();

  constructor(base: number) {
    this.base = base;
  }

  file({ fd, serial }: Row): Mappable {
    const known = this.#files.get(serial);
    if (known !== undefined) return known;
    if (this.#files.size >= REMEMBERED) this.#files.clear();
    const file = borrowMappable(fd, `file descriptor ${fd}`);
    this.#files.set(serial, file);
    return file;
  }

  show(): boolean {
    return true;
  }
}

class PortLink implements OwnerLink {
  receive: (message: OwnerMessage) => void = () => {};
  hungUp: () => void = () => {};
  /** What the owner says. */
  readonly #port: MessagePort;
  /** What the client says. */
  readonly #messages: MessagePort;
  readonly #line: Int32Array;
  readonly #bell: Int32Array;
  readonly #owner: ThreadIdentity;
  readonly #lane: ClientLane | null;
  #closed = false;

  constructor(port: MessagePort, messages: MessagePort, { owner, line, bell }: Welcome, lane: ClientLane | null) {
    this.#port = port;
    this.#messages = messages;
    this.#line = new Int32Array(line);
    this.#bell = new Int32Array(bell);
    this.#owner = owner;
    this.#lane = lane;
    lane?.listen((message) => this.receive(message));
    port.onmessage = ({ data }: MessageEvent<unknown>) => {
      const message = readOwnerMessage(data);
      if (message === undefined) return;
      if (message.kind === "answer" && lane !== null) lane.accept(message);
      else this.receive(message);
    };
    port.addEventListener("close", () => this.#closed || this.hungUp());
  }

  post(message: ClientMessage, attached: readonly Attached[] = []): void {
    if (this.#closed) return;
    this.#messages.postMessage(message, attached.filter((each) => each instanceof MessagePort));
    Atomics.add(this.#line, LINE.posted, 1);
    ring(this.#bell);
  }

  request(id: number, request: Request): void {
    if (this.#closed) return;
    const order = this.#lane?.send(id, request);
    if (order === 0) return;
    try {
      this.post({ kind: "request", id, request, ...(order !== undefined && { order }) });
    } catch (error) {
      // It holds what no message can. Those behind it must not wait for it.
      if (order !== undefined) this.post({ kind: "skip", order });
      throw error;
    }
  }

  reference(key: number, { fd }: OpenFile): FileReference {
    return { key, fd };
  }

  borrow({ fd, label }: LentFile): Mappable {
    return borrowMappable(fd, label);
  }

  isOwnerAlive(): boolean {
    return isAlive(this.#owner);
  }

  close(): void {
    this.#closed = true;
    this.#lane?.close();
    this.#messages.close();
    this.#port.close();
  }
}

function viewOf(welcome: Welcome, link: OwnerLink): ClientView {
  const { owner, base, length } = welcome;
  const line = new ThreadWords(welcome.line);
  const hold = new Hold(line, () => link.isOwnerAlive(), owner.tid === currentThread().tid);
  if (base === null) return { hold, access: null, memory: null };
  const pages = new PageReader(length, welcome.nodes, welcome.rows);
  const slots = new LockSlots(line.words, welcome.locks);
  const access = new ClientAccess({
    length,
    pages,
    slots,
    hold,
    host: new SharedHost(base),
    marks: () => {
      const { words } = line;
      return WriteMarks.at((words[LINE.marksLow]! >>> 0) + words[LINE.marksHigh]! * 2 ** 32, length);
    },
    released: () => {
      if (hold.isDraining || hold.closed !== null) link.post({ kind: "released" });
    },
  });
  return { hold, access, memory: new ClientMemory(access, hold) };
}
