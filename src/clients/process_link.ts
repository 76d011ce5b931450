import { currentThread } from "../../ffi/os/thread.ts";
import { FutexWords } from "../../ffi/os/futex.ts";
import { libc } from "../../ffi/os/libc.ts";
import { ProcessHandle } from "../../ffi/os/process.ts";
import { UnixSocket } from "../../ffi/os/socket.ts";
import { Mappable } from "../../ffi/files/mappable.ts";
import type { OpenFile } from "../../ffi/files/open_file.ts";
import { SharedFile } from "../../ffi/files/shared_file.ts";
import { onAbort } from "../core/abort.ts";
import { DisposedError, MembackingError } from "../core/errors.ts";
import { WriteMarks } from "../memory/write_marks.ts";
import { LONGEST_ANSWER, LONGEST_REQUEST, MessageSocket } from "../serving/message_socket.ts";
import { decodeAnswer, encodeRequest } from "../serving/mail_codes.ts";
import { CLIENT_FILE, MAP_FILE } from "../serving/process_layout.ts";
import type { ClientMessage, FileReference, OwnerMessage, ProcessWelcome, Request } from "../serving/protocol.ts";
import { LINE } from "../serving/shared_words.ts";
import type { Attached, LentFile, OwnerLink } from "./connection.ts";
import { OWNER_ENDED } from "./hold.ts";
import { readOwnerMessage } from "./owner_messages.ts";
import { plain } from "./plain.ts";

/** How long to wait for a file that the owner has announced, in milliseconds. */
const PATIENCE = 5000;

/** What the owner of another process shares: its words, the locks, and the memory map. */
export interface SharedMemory extends Disposable {
  readonly welcome: ProcessWelcome;
  readonly line: FutexWords;
  readonly locks: Float64Array;
  readonly nodes: ArrayBuffer;
  readonly rows: ArrayBuffer;
}

const connected = new Set<number>();

/** The link to an owner in another process. */
export class ProcessLink implements OwnerLink, Disposable {
  receive: (message: OwnerMessage) => void = () => {};
  hungUp: () => void = () => {};
  /** Says why the owner serves this client no longer, if it does not. */
  why: () => DisposedError | null = () => null;
  /** Is told where the memory map has changed. */
  changed: (spans: readonly (readonly [start: number, end: number])[]) => void = () => {};
  readonly #fd: number;
  readonly #socket: MessageSocket;
  readonly #files = new Map<number, Mappable>();
  readonly #lent = new Map<number, Mappable>();
  readonly #sent = new Set<number>();
  readonly #token = Math.floor(Math.random() * 2 ** 48);
  readonly #welcomed = Promise.withResolvers<SharedMemory>();
  #marksFile: Mappable | null = null;
  #marks: WriteMarks | null = null;
  #owner: ProcessHandle | null = null;
  #shared: SharedMemory | null = null;

  /**
   * Over the descriptor of a socket, which is duplicated.
   *
   * @throws {OsError} If it is not open.
   * @throws {TypeError} If a client of this process is connected by it already.
   */
  constructor(fd: number) {
    if (connected.has(fd)) throw new TypeError(`A client is connected by descriptor ${fd} already, dispose it first`);
    const socket = UnixSocket.inherit(fd);
    try {
      socket.passCredentials();
      const inherited = UnixSocket.own(fd);
      inherited.inheritable = false; // A process that this one starts has nothing to do with it.
      this.#socket = new MessageSocket(socket, { received: LONGEST_ANSWER, sent: LONGEST_REQUEST }, {
        message: (data, fds, credentials) => this.#message(readOwnerMessage(data), fds, credentials?.pid),
        numbers: (id, code, numbers) => {
          const value = decodeAnswer(code, numbers);
          if (value !== undefined && this.#shared !== null) this.receive({ kind: "answer", id, answer: { value } });
        },
        closed: () => {
          this.#welcomed.reject(
            new DisposedError("The owner of the region manager", "has ended, or serves nobody here"),
          );
          queueMicrotask(() => this.hungUp());
        },
      });
    } catch (error) {
      socket[Symbol.dispose]();
      throw error;
    }
    this.#fd = fd;
    connected.add(fd);
    this.#welcomed.promise.catch(() => {});
  }

  /** Says hello, and waits to be welcomed. */
  async greet(signal: AbortSignal | undefined): Promise<SharedMemory> {
    const { promise, reject } = this.#welcomed;
    using _abort = onAbort(signal, () => reject(signal?.reason));
    try {
      this.post({ kind: "hello", thread: currentThread(), token: this.#token });
      return await promise;
    } catch (error) {
      this.post({ kind: "bye" }); // So that the next one can say hello.
      throw error;
    }
  }

  post(message: ClientMessage, attached: readonly Attached[] = []): void {
    if (message.kind === "forget") this.#sent.delete(message.key);
    this.#socket.post(message, attached.filter((each) => typeof each === "number"), plain);
  }

  request(id: number, request: Request): void {
    const went = this.#socket.postNumbers(id, (numbers) => encodeRequest(request, numbers));
    if (!went) this.post({ kind: "request", id, request });
  }

  reference(key: number, { fd }: OpenFile): FileReference {
    if (key > 0 && !this.#sent.has(key)) {
      this.#sent.add(key);
      this.post({ kind: "file", key }, [fd]);
    }
    return { key, fd: -1 };
  }

  borrow({ key }: LentFile): Mappable {
    const lent = this.#lent.get(key);
    if (lent === undefined) throw new MembackingError("The file that the owner lends has not arrived");
    this.#lent.delete(key);
    return lent;
  }

  isOwnerAlive(): boolean {
    return !this.#socket.closed && (this.#owner?.isAlive ?? true);
  }

  /** Whether the owner is this very process. */
  get isSameProcess(): boolean {
    return this.#owner?.pid === libc().sys.getpid();
  }

  /** One of the owner's files by its number; waits for one that is on its way. */
  file(number: number): Mappable {
    return this.#await(() => this.#files.get(number) ?? null);
  }

  /** What writes are marked in, for guest memory of `length` bytes; waits for it where it is on its way. */
  marks(length: number): WriteMarks {
    return this.#marks ??= WriteMarks.inFile(this.#await(() => this.#marksFile).fd, length);
  }

  #await<T>(arrived: () => T | null): T {
    const until = performance.now() + PATIENCE;
    while (true) {
      const found = arrived();
      if (found !== null) return found;
      const left = until - performance.now();
      if (this.#socket.closed) throw this.why() ?? new DisposedError(...OWNER_ENDED);
      if (left <= 0) {
        throw new MembackingError("The owner of the region manager has not sent a file that this memory needs");
      }
      this.#socket.waitFor(Math.min(left, 100));
      this.#socket.pump();
    }
  }

  close(): void {
    this[Symbol.dispose]();
  }

  /** Is told when it is closed. */
  onClose: () => void = () => {};

  [Symbol.dispose](): void {
    this.#socket.close();
    this.onClose();
    connected.delete(this.#fd);
    for (const file of [...this.#files.values(), ...this.#lent.values()]) file[Symbol.dispose]();
    this.#marksFile?.[Symbol.dispose]();
    this.#marks?.[Symbol.dispose]();
    this.#files.clear();
    this.#lent.clear();
    this.#owner?.[Symbol.dispose]();
    this.#owner = null;
    this.#shared?.[Symbol.dispose]();
    this.#shared = null;
  }

  /** May be called in the middle of an access, which waits for a file: what is more than a note is done later. */
  #message(message: OwnerMessage | undefined, fds: readonly number[], pid: number | undefined): void {
    if (message?.kind === "process-welcome") return this.#welcome(message, fds, pid);
    if (message?.kind === "closed") {
      this.#welcomed.reject(new DisposedError("The region manager"));
      return queueMicrotask(() => this.receive(message));
    }
    // What an earlier client of this descriptor did not read any more comes first, and is none of this one's.
    if (message === undefined || this.#shared === null) return;
    switch (message.kind) {
      case "files":
        return message.files.forEach((number, i) => this.#addFile(number, fds[i]));
      case "marks":
        // The manager has the same marks for as long as it lives.
        if (fds[0] !== undefined && this.#marksFile === null) this.#marksFile = Mappable.fromFd(fds[0]);
        return;
      case "forget":
        for (const number of message.files) {
          this.#files.get(number)?.[Symbol.dispose]();
          this.#files.delete(number);
        }
        return;
      case "changed":
        return queueMicrotask(() => this.#shared === null || this.changed(message.spans));
      case "answer":
        if (fds[0] !== undefined && "value" in message.answer) this.#keepLent(message.answer.value, fds[0]);
        return this.receive(message);
    }
  }

  #welcome(welcome: ProcessWelcome, fds: readonly number[], pid: number | undefined): void {
    const [own, map] = fds;
    if (own === undefined || map === undefined || this.#shared !== null || welcome.token !== this.#token) return;
    using stack = new DisposableStack();
    try {
      const file = stack.use(SharedFile.map(own, CLIENT_FILE.size, { write: true }));
      const pages = stack.use(SharedFile.map(map, MAP_FILE.size, { write: false }));
      if (pid !== undefined && pid > 0) this.#owner = new ProcessHandle(pid);
      const kept = stack.move();
      this.#shared = {
        welcome,
        line: new FutexWords(file.bytes, LINE.words),
        locks: new Float64Array(file.bytes, CLIENT_FILE.locks),
        nodes: pages.bytes,
        rows: pages.bytes,
        [Symbol.dispose]: () => kept.dispose(),
      };
      this.#welcomed.resolve(this.#shared);
    } catch (error) {
      this.#welcomed.reject(error);
    }
  }

  #addFile(number: number, fd: number | undefined): void {
    if (fd === undefined || this.#files.has(number)) return;
    try {
      this.#files.set(number, Mappable.fromFd(fd));
    } catch {
      // It cannot be used here: whoever accesses it is told that it has not arrived.
    }
  }

  #keepLent(answer: unknown, fd: number): void {
    try {
      this.#lent.set((answer as LentFile).key, Mappable.fromFd(fd));
    } catch {
      // As above.
    }
  }
}
