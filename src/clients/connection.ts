import { fileOf, type Mappable } from "../../ffi/files/mappable.ts";
import type { OpenFile } from "../../ffi/files/open_file.ts";
import { type DisposedError, MembackingError } from "../core/errors.ts";
import type { GuestMemory } from "../memory/guest_memory.ts";
import type { Json } from "../serving/error_data.ts";
import type { ClientMessage, FileReference, OwnerMessage, Request } from "../serving/protocol.ts";
import type { ClientAccess } from "./client_access.ts";
import type { ClientMemory } from "./client_memory.ts";
import type { Hold } from "./hold.ts";

/** A file that the owner lends: what the client needs to use it. */
export type LentFile = { readonly key: number; readonly fd: number; readonly label: string };

/** What goes with a message. */
export type Attached = MessagePort | number;

/** How a client and its owner exchange messages, and files. */
export interface OwnerLink {
  /** Is handed the messages that come after the welcome. Must not throw. */
  receive: (message: OwnerMessage) => void;
  /** Is told when the owner has gone without a word. Must not throw. */
  hungUp: () => void;
  /** Sends a message, and what goes with it: ports in this process, descriptors to another. Nothing once it is closed. */
  post(message: ClientMessage, attached?: readonly Attached[]): void;
  /** Sends a request. */
  request(id: number, request: Request): void;
  /** What a request names a file by; sees to it that the owner has the file when it gets the request. */
  reference(key: number, file: OpenFile): FileReference;
  /** A handle of a file that the owner lends. */
  borrow(lent: LentFile): Mappable;
  /** Whether the owner is still there. */
  isOwnerAlive(): boolean;
  close(): void;
}

/** What a client has of guest memory; both are `null` where it cannot be looked at. */
export interface ClientView {
  readonly hold: Hold;
  readonly access: ClientAccess | null;
  readonly memory: ClientMemory | null;
}

/** What all kinds of client are made of: the link to the owner, the memory, and the files that both sides know. */
export class Connection {
  readonly #link: OwnerLink;
  readonly #view: ClientView;
  readonly #keys = new WeakMap<OpenFile, number>();
  readonly #lent = new Set<OpenFile>();
  #files = 0;
  #closed = false;

  constructor(link: OwnerLink, view: ClientView) {
    this.#link = link;
    this.#view = view;
  }

  /** Says who is handed messages from now on, and told when the owner has gone without a word. */
  listen(receive: (message: OwnerMessage) => void, hungUp: () => void): void {
    this.#link.receive = receive;
    this.#link.hungUp = hungUp;
  }

  /** Whether it has been closed, or the owner serves it no longer. */
  get closed(): boolean {
    return this.#closed || this.#view.hold.closed !== null;
  }

  /** Whether the owner is still there. */
  get isOwnerAlive(): boolean {
    return this.#link.isOwnerAlive();
  }

  /**
   * Throws once it is closed.
   *
   * @throws {DisposedError} Which says why.
   */
  check(): void {
    const { why } = this;
    if (why !== null) throw why;
  }

  /** Why it is closed, `null` while it is not. */
  get why(): DisposedError | null {
    return this.#view.hold.closed;
  }

  /** Guest memory. */
  get memory(): GuestMemory {
    const { memory } = this.#view;
    if (memory === null) throw new MembackingError("This region manager has no memory to look at");
    return memory;
  }

  /** Sends a message. */
  post(message: ClientMessage, attached: readonly Attached[] = []): void {
    if (!this.#closed) this.#link.post(message, attached);
  }

  /** Sends a request, to be answered under the number `id`. */
  request(id: number, request: Request): void {
    if (!this.#closed) this.#link.request(id, request);
  }

  /** How the owner finds the file of `mappable`, which has to stay open until the request is answered. */
  reference(mappable: Mappable): FileReference {
    const file = fileOf(mappable);
    let key = this.#keys.get(file);
    if (key === undefined) {
      key = ++this.#files;
      this.#remember(file, key);
    }
    return this.#link.reference(key, file);
  }

  /** A handle of a file that the owner lends, as `memfd` and `open` answer. */
  borrow(answer: Json): Mappable {
    // SAFETY: what the owner's `lend` made.
    const lent = answer as LentFile;
    const mappable = this.#link.borrow(lent);
    this.#lent.add(fileOf(mappable));
    this.#remember(fileOf(mappable), lent.key);
    return mappable;
  }

  /** The owner is gone, or says no more: whoever asks is told why from now on. Locks stay for `close`. */
  lose(what: string, how: string): void {
    this.#view.hold.close(what, how);
  }

  /**
   * Gives everything back: locks, files, memory.
   *
   * @throws {MembackingError} If the bytes of a lock were transferred away. The memory stays locked until the thread
   * ends; everything else is done.
   */
  close(): void {
    if (this.#closed) return;
    const failures = this.#view.access?.revokeAll() ?? [];
    this.#view.hold.close("The region manager client", "has been disposed");
    for (const file of this.#lent) file.revoke();
    this.#lent.clear();
    if (failures.length === 0) this.post({ kind: "bye" });
    this.#closed = true;
    this.#link.close();
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
