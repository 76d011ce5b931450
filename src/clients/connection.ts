import { currentThread, type ThreadIdentity } from "../../ffi/os/thread.ts";
import { Mappable } from "../../ffi/files/mappable.ts";
import type { OpenFile } from "../../ffi/files/open_file.ts";
import { DisposedError, MembackingError } from "../core/errors.ts";
import type { GuestMemory } from "../memory/guest_memory.ts";
import { ClientAccess } from "./client_access.ts";
import { ClientMemory } from "./client_memory.ts";
import type { Json } from "../serving/error_data.ts";
import { Hold } from "./hold.ts";
import { LockSlots } from "../serving/lock_slots.ts";
import { PageReader } from "./page_reader.ts";
import type { ClientMessage, FileReference, OwnerMessage, Welcome } from "../serving/protocol.ts";
import { GATE } from "../serving/shared_words.ts";

/** A file that the owner lends: what the client needs to use it. */
export type LentFile = { readonly key: number; readonly fd: number; readonly label: string };

/** What both kinds of client are made of: the port, the memory, and the files that both sides know. */
export class Connection {
  /** Is handed the messages that come after the welcome. */
  receive: (message: OwnerMessage) => void = () => {};
  /** The thread of the owner. */
  readonly owner: ThreadIdentity;
  readonly #port: MessagePort;
  readonly #gate: Int32Array;
  readonly #hold: Hold;
  readonly #access: ClientAccess | null;
  readonly #memory: GuestMemory | null;
  readonly #keys = new WeakMap<OpenFile, number>();
  readonly #lent = new Set<OpenFile>();
  #files = 0;
  #closed = false;

  private constructor(port: MessagePort, welcome: Welcome) {
    const { owner, base, length } = welcome;
    const line = new Int32Array(welcome.line);
    this.owner = owner;
    this.#port = port;
    this.#gate = new Int32Array(welcome.gate);
    this.#hold = new Hold(this.#gate, line, owner, owner.tid === currentThread().tid);
    if (base === null) {
      this.#access = this.#memory = null;
      return;
    }
    this.#access = new ClientAccess({
      base,
      length,
      pages: new PageReader(length, welcome.nodes, welcome.rows),
      slots: new LockSlots(line, welcome.locks),
      hold: this.#hold,
      released: () => {
        if (Atomics.load(this.#gate, GATE.draining) + Atomics.load(this.#gate, GATE.closed) > 0) {
          this.post({ kind: "released" });
        }
      },
    });
    this.#memory = new ClientMemory(this.#access, this.#hold);
  }

  /**
   * Says hello, and waits to be welcomed.
   *
   * @throws The signal's reason, if it aborts first.
   */
  static async open(
    port: MessagePort,
    options: { mail?: SharedArrayBuffer; signal: AbortSignal | undefined },
  ): Promise<Connection> {
    if (!(port instanceof MessagePort)) throw new TypeError("A client connects through a MessagePort");
    const { mail, signal } = options;
    signal?.throwIfAborted();
    const { promise, resolve, reject } = Promise.withResolvers<Welcome>();
    port.onmessage = ({ data }: MessageEvent<OwnerMessage>) => {
      if (data.kind === "welcome") resolve(data);
      else if (data.kind === "closed") reject(new DisposedError("The region manager"));
    };
    const abort = () => reject(signal?.reason);
    signal?.addEventListener("abort", abort);
    try {
      const hello: ClientMessage = { kind: "hello", thread: currentThread(), ...(mail !== undefined && { mail }) };
      port.postMessage(hello);
      const connection = new Connection(port, await promise);
      port.onmessage = ({ data }: MessageEvent<OwnerMessage>) => connection.receive(data);
      return connection;
    } catch (error) {
      port.close();
      throw error;
    } finally {
      signal?.removeEventListener("abort", abort);
    }
  }

  /** Whether it has been closed, or the owner serves it no longer. */
  get closed(): boolean {
    return this.#closed || !this.#hold.isOpen;
  }

  /** Throws once it is closed. */
  check(): void {
    if (!this.closed) return;
    throw new DisposedError(
      Atomics.load(this.#gate, GATE.closed) !== 0 ? "The region manager" : "The region manager client",
    );
  }

  /** Guest memory. */
  get memory(): GuestMemory {
    if (this.#memory === null) throw new MembackingError("This region manager has no memory to look at");
    return this.#memory;
  }

  /** Sends a message. */
  post(message: ClientMessage, transfer: Transferable[] = []): void {
    if (!this.#closed) this.#port.postMessage(message, transfer);
  }

  /** The other end of a port at which the same manager serves another client. */
  fork(): MessagePort {
    this.check();
    const { port1, port2 } = new MessageChannel();
    this.post({ kind: "serve", port: port1 }, [port1]);
    return port2;
  }

  /** How the owner finds the file of `mappable`, which has to stay open until the request is answered. */
  reference(mappable: Mappable): FileReference {
    const { file } = mappable;
    let key = this.#keys.get(file);
    if (key === undefined) {
      key = ++this.#files;
      this.#remember(file, key);
    }
    return { key, fd: file.fd };
  }

  /** A handle of a file that the owner lends, as `memfd` and `open` answer. */
  borrow(answer: Json): Mappable {
    // SAFETY: what the owner's `#lend` made.
    const { key, fd, label } = answer as LentFile;
    const mappable = Mappable.borrow(fd, label);
    this.#lent.add(mappable.file);
    this.#remember(mappable.file, key);
    return mappable;
  }

  /**
   * Gives everything back: locks, files, memory.
   *
   * @throws {MembackingError} If the bytes of a lock were transferred away. The memory stays locked until the thread
   * ends; everything else is done.
   */
  close(): void {
    if (this.#closed) return;
    const failures = this.#access?.revokeAll() ?? [];
    this.#hold.close();
    for (const file of this.#lent) file.revoke();
    this.#lent.clear();
    if (failures.length === 0) this.post({ kind: "bye" });
    this.#closed = true;
    this.#port.close();
    if (failures.length === 0) return;
    throw new MembackingError(`${failures.length} locks could not be released while the client was disposed`, {
      cause: new AggregateError(failures),
    });
  }

  #remember(file: OpenFile, key: number): void {
    this.#keys.set(file, key);
    file.afterRelease(() => {
      this.#lent.delete(file);
      this.post({ kind: "forget", key });
    });
  }
}
