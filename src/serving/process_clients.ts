import { FutexWords } from "../../ffi/os/futex.ts";
import { Poll, watchFd } from "../../ffi/os/poll.ts";
import { ProcessHandle } from "../../ffi/os/process.ts";
import { SharedFile } from "../../ffi/files/shared_file.ts";
import { MembackingError } from "../core/errors.ts";
import { normalize, type Span } from "../core/span.ts";
import type { MemoryLocks } from "../memory/memory_locks.ts";
import { WriteMarks } from "../memory/write_marks.ts";
import type { Reader } from "./gate.ts";
import { LockMirror } from "./lock_slots.ts";
import type { FilesListener, MapPublisher } from "./map_publisher.ts";
import { FixedSink } from "./page_sinks.ts";
import { CLIENT_FILE, FILES_PER_MESSAGE, MAP_FILE } from "./process_layout.ts";
import type { Hello, OwnerMessage } from "./protocol.ts";
import type { Admitted, Session } from "./session.ts";
import { LINE } from "./shared_words.ts";
import type { SocketChannel } from "./socket_channel.ts";
import type { ServedMemory } from "./thread_clients.ts";

/** Pieces of a change that are told one by one; more than that, and all of memory may have changed. */
const MOST_SPANS = 256;
/** After how long clients are told what they can let go of, in milliseconds. */
const TELL_AFTER = 20;
/** The largest page size there is: reservations are not aligned to more. */
const LARGEST_PAGE = 2 ** 30;

/** A client in another process, as far as it has to be told things. */
interface Introduced {
  readonly session: Session;
  /** Where the map has changed since the client was told last. */
  changed: Span[];
  /** Whether the client has been told of a change and has not let go of everything yet. */
  isBusy: boolean;
  /** Where it marks what it writes, once it has been asked to: its own, since it could take away the marks of others. */
  marks: WriteMarks | null;
}

/** The memory map as other processes read it. */
interface SharedMap {
  readonly file: SharedFile;
  readonly sink: FixedSink;
}

/** Lets in clients in other processes, and tells them which files there are and what has changed. */
export class ProcessClients implements FilesListener {
  readonly #memory: ServedMemory;
  readonly #locks: MemoryLocks;
  readonly #map: MapPublisher;
  readonly #renewMap: () => void;
  readonly #introduced = new Map<Session, Introduced>();
  readonly #clients = new Set<Session>();
  #shared: SharedMap | null = null;
  #marks: WriteMarks | null = null;
  #isFull = false;
  /** Files that are shown no more, of which nobody has been told yet. */
  readonly #gone = new Set<number>();
  #timer: ReturnType<typeof setTimeout> | undefined;
  #due = 0;

  /** `renewMap` has the map published anew, in no more room than it takes now. */
  constructor(memory: ServedMemory, locks: MemoryLocks, map: MapPublisher, renewMap: () => void) {
    this.#memory = memory;
    this.#locks = locks;
    this.#map = map;
    this.#renewMap = renewMap;
  }

  /**
   * Makes what one client needs.
   *
   * @throws {OsError} If the process has too many open files.
   * @throws {MemoryLockedError} If huge pages are locked that others would have then; see `MemfdOptions.fixedSize`.
   * @throws {MembackingError} If the memory map is too fragmented for what processes share.
   */
  admit({ token = 0 }: Hello, session: Session, channel: SocketChannel, deadline: number): Admitted {
    const { base, length } = this.#memory;
    using stack = new DisposableStack();
    this.#clients.add(session);
    stack.defer(() => this.#left(session));
    const map = this.#mapFile();
    const file = stack.use(SharedFile.make("membacking client", CLIENT_FILE.size, { othersRead: false }));
    const line = new FutexWords(file.bytes, LINE.words);
    const process = stack.adopt(handleOf(channel), (handle) => handle?.[Symbol.dispose]());
    // The end of the process may come before that of the socket, which others can have as well.
    if (process !== null) stack.use(watchFd(process.fd, Poll.IN, () => session.end()));
    const reader: Reader = {
      line,
      deadline,
      isAlive: () => !channel.closed && (process === null || process.isAlive),
      // In the middle of an access it may wait for a file that has not gone out yet.
      help: () => channel.flush(),
      gone: false,
    };
    const table = new Float64Array(file.bytes, CLIENT_FILE.locks);
    const owned = stack.move();
    return {
      reader,
      mirror: new LockMirror(line.words, table, length, this.#locks),
      welcome: {
        kind: "process-welcome",
        token,
        hasMemory: base !== null,
        length,
        alignment: base === null ? 0 : alignmentOf(base),
      },
      fds: [file.fd, map.fd],
      [Symbol.dispose]: () => owned.dispose(),
    };
  }

  /** Tells a client that was let in what there is, and from now on what changes. */
  welcome(session: Session): void {
    this.tellAll(); // A file that has gone and comes back under its old number is known to those of now alone.
    const introduced: Introduced = { session, changed: [], isBusy: false, marks: null };
    this.#introduced.set(session, introduced);
    session.onLetGo = () => {
      introduced.isBusy = false;
      this.#tell(introduced);
    };
    if (this.#memory.base === null) return;
    this.#sendMarks(introduced);
    const files = [...this.#map.files()];
    for (let at = 0; at < files.length; at += FILES_PER_MESSAGE) {
      const some = files.slice(at, at + FILES_PER_MESSAGE);
      session.post({ kind: "files", files: some.map(({ number }) => number) }, some.map(({ fd }) => fd));
    }
  }

  /** Sends clients what they are to mark writes in, before they are asked to. What they mark is gathered in `marks`. */
  markIn(marks: WriteMarks | null): void {
    this.#marks = marks;
    for (const introduced of this.#introduced.values()) {
      if (marks === null) introduced.marks?.clear();
      else this.#sendMarks(introduced);
    }
  }

  /** Takes over what clients have marked, none of which writes meanwhile. */
  gatherMarks(): void {
    for (const introduced of this.#introduced.values()) this.#gatherMarks(introduced);
  }

  #gatherMarks({ marks }: Introduced): void {
    const all = this.#marks;
    if (marks !== null && all !== null) marks.take((start, end) => all.mark(start, Math.min(end, all.length)));
  }

  shown(file: number, fd: number): void {
    this.#postAll({ kind: "files", files: [file] }, [fd]);
  }

  gone(file: number): void {
    this.#gone.add(file);
    this.#tellSoon();
  }

  back(file: number): void {
    this.#gone.delete(file);
  }

  /** Has everybody let go of what is no longer what it was in `spans`, soon: nobody accesses it by now. */
  changed(spans: readonly Span[]): void {
    if (this.#introduced.size === 0) return;
    for (const introduced of this.#introduced.values()) {
      introduced.changed.push(...spans);
      if (introduced.changed.length > MOST_SPANS) introduced.changed = [{ start: 0, end: this.#memory.length }];
    }
    this.#tellSoon();
  }

  /** Tells everybody now. */
  tellAll(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    for (const introduced of this.#introduced.values()) this.#tell(introduced);
    if (this.#gone.size === 0) return;
    const files = [...this.#gone];
    this.#gone.clear();
    for (const file of files) this.#map.forget(file);
    this.#postAll({ kind: "forget", files }, []);
  }

  /** Tells everybody if it is time: for an owner whose event loop stands still. */
  poll(): void {
    if (this.#timer !== undefined && performance.now() >= this.#due) this.tellAll();
  }

  /** A file that goes for a moment is not sent again, and many small changes are told as one. */
  #tellSoon(): void {
    if (this.#timer !== undefined) return;
    this.#due = performance.now() + TELL_AFTER;
    this.#timer = setTimeout(() => this.tellAll(), TELL_AFTER);
    Deno.unrefTimer(this.#timer);
  }

  #sendMarks(introduced: Introduced): void {
    if (this.#marks === null) return;
    const { session } = introduced;
    try {
      introduced.marks ??= WriteMarks.create(this.#memory.length);
    } catch (error) {
      return session.cutOffSoon(error); // Nobody would know what it writes.
    }
    session.post({ kind: "marks" }, [introduced.marks.fd]);
  }

  #tell(introduced: Introduced): void {
    if (introduced.isBusy || introduced.changed.length === 0) return;
    const spans = normalize(introduced.changed).map(({ start, end }) => [start, end] as const);
    introduced.changed = [];
    introduced.isBusy = true;
    introduced.session.post({ kind: "changed", spans });
  }

  #postAll(message: OwnerMessage, fds: readonly number[]): void {
    for (const { session } of this.#introduced.values()) session.post(message, fds);
  }

  /** The memory map's file, which there is as long as there are clients to read it. */
  #mapFile(): SharedFile {
    if (this.#isFull) throw tooManyPieces();
    if (this.#shared !== null) return this.#shared.file;
    // It may have been in very many pieces for a time.
    if (!this.#map.fits(MAP_FILE.words, MAP_FILE.numbers)) this.#renewMap();
    this.#map.handOutAll();
    const file = SharedFile.make("membacking map", MAP_FILE.size, { othersRead: true });
    const words = new Int32Array(file.bytes, 0, MAP_FILE.words);
    const numbers = new Float64Array(file.bytes, MAP_FILE.rows, MAP_FILE.numbers);
    const sink = new FixedSink(words, numbers, () => this.#overflow());
    this.#shared = { file, sink };
    this.#map.addSink(sink);
    this.#map.listen(this);
    return file;
  }

  #left(session: Session): void {
    const introduced = this.#introduced.get(session);
    if (introduced !== undefined) {
      this.#gatherMarks(introduced);
      introduced.marks?.[Symbol.dispose]();
    }
    this.#introduced.delete(session);
    this.#clients.delete(session);
    if (this.#clients.size > 0 || this.#shared === null) return;
    this.tellAll();
    this.#map.listen(null);
    this.#map.removeSink(this.#shared.sink);
    this.#shared.file[Symbol.dispose]();
    this.#shared = null;
    this.#isFull = false;
  }

  #overflow(): void {
    this.#isFull = true;
    for (const session of this.#clients) session.cutOffSoon(tooManyPieces());
  }
}

function tooManyPieces(): MembackingError {
  return new MembackingError("The memory map has too many pieces to be shared with other processes");
}

function handleOf({ sender }: SocketChannel): ProcessHandle | null {
  if (sender === null || sender.pid <= 0) return null;
  try {
    return new ProcessHandle(sender.pid);
  } catch {
    return null; // Gone already, or not to be seen from here: then the end of its socket tells.
  }
}

function alignmentOf(base: number): number {
  let alignment = LARGEST_PAGE;
  while (base % alignment !== 0) alignment /= 2;
  return alignment;
}
