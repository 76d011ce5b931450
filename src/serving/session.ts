import type { ThreadIdentity } from "../../ffi/os/thread.ts";
import { Mappable } from "../../ffi/files/mappable.ts";
import { DisposedError, MembackingError, MemoryLockedError } from "../core/errors.ts";
import { MemoryRange } from "../core/memory_range.ts";
import type { Span } from "../core/span.ts";
import type { Logger } from "../targets/targets.ts";
import { type Json, packError } from "./error_data.ts";
import type { Reader } from "./gate.ts";
import type { LockMirror } from "./lock_slots.ts";
import { Mailbox } from "./mailbox.ts";
import type { Answer, ChangeRequest, ClientMessage, Ends, FileReference, OwnerMessage, Request } from "./protocol.ts";
import type { ServedManager, ServedMapping, ServedRegion } from "./served.ts";
import { LINE } from "./shared_words.ts";

/** What a session asks of the manager that it is a session of. */
export interface SessionHost {
  readonly manager: ServedManager;
  readonly logger: Logger;
  /** Lets the client's thread look at guest memory. */
  admit(session: Session, thread: ThreadIdentity): { reader: Reader; mirror: LockMirror; welcome: OwnerMessage };
  /** Serves another client. */
  serve(port: MessagePort): void;
  /** Looks at the locks that clients hold. */
  updateLocks(): void;
  /** The session is over, and nothing of it is left. */
  ended(session: Session): void;
}

/** How long to wait before a region that could not be removed is tried again, in milliseconds; doubled each time. */
const RETRY_AFTER = 100;
const RETRIES = 8;

/**
 * One client, as its owner sees it: the regions it has made, the files it has shown, the locks it holds.
 *
 * `stop` ends the service: regions go. `end` comes when the client cannot look at memory any more, by its own word or
 * because its thread is gone: files and locks go. Until then a client that is no longer served still counts as a
 * reader, since nothing can take memory out of the hands of a thread.
 */
export class Session {
  readonly #host: SessionHost;
  readonly #port: MessagePort;
  readonly #regions = new Map<number, ServedRegion>();
  readonly #files = new Map<number, Mappable>();
  readonly #waiting = new Map<number, AbortController>();
  #mailbox: Mailbox | null = null;
  #reader: Reader | null = null;
  #mirror: LockMirror | null = null;
  #lent = 0;
  #stopped = false;
  #ended = false;

  constructor(host: SessionHost, port: MessagePort) {
    this.#host = host;
    this.#port = port;
    port.onmessage = ({ data }: MessageEvent<ClientMessage>) => this.#receive(data);
    port.onmessageerror = () => host.logger.warn("A message of a client could not be read");
    // Where the platform tells (a standard event that Deno 2.9 fires only beside node:worker_threads).
    port.addEventListener("close", () => this.#hungUp());
  }

  /** The client as the gate sees it; `null` until it has said hello. */
  get reader(): Reader | null {
    return this.#reader;
  }

  /** The client's locks; `null` until it has said hello. */
  get mirror(): LockMirror | null {
    return this.#mirror;
  }

  /** Serves the client no longer, and removes its regions. */
  stop(): void {
    if (this.#stopped) return;
    this.#stopped = true;
    for (const controller of this.#waiting.values()) controller.abort();
    const regions = [...this.#regions.values()].reverse();
    this.#regions.clear();
    for (const region of regions) this.#drop(region, 0);
    if (this.#reader === null) return this.end();
    Atomics.store(this.#reader.line, LINE.closed, 1);
    this.#host.updateLocks(); // A client looks at its own word when the gate has been shut.
    this.#mailbox?.close();
    this.#post({ kind: "closed" });
  }

  /** The client looks at nothing any more. */
  end(): void {
    if (this.#ended) return;
    this.#ended = true;
    // Its locks first, or its regions could not go.
    this.#mirror?.clear();
    this.stop();
    for (const file of this.#files.values()) file[Symbol.dispose]();
    this.#files.clear();
    this.#port.close();
    this.#host.ended(this);
  }

  #receive(message: ClientMessage): void {
    try {
      switch (message.kind) {
        case "hello":
          return this.#hello(message.thread, message.mail);
        case "request":
          return this.#request(message.id, message.request);
        case "abort":
          return this.#waiting.get(message.id)?.abort();
        case "released":
          return this.#host.updateLocks();
        case "forget":
          this.#files.get(message.key)?.[Symbol.dispose]();
          this.#files.delete(message.key);
          return;
        case "serve":
          return this.#host.serve(message.port);
        case "bye":
          return this.end();
      }
    } catch (error) {
      this.#host.logger.error("A message of a client could not be served", error);
    }
  }

  #hello(thread: ThreadIdentity, mail: SharedArrayBuffer | undefined): void {
    if (this.#reader !== null) throw new MembackingError("A client connects once");
    const { reader, mirror, welcome } = this.#host.admit(this, thread);
    this.#reader = reader;
    this.#mirror = mirror;
    if (mail !== undefined) this.#mailbox = new Mailbox(mail);
    this.#post(welcome);
  }

  #hungUp(): void {
    if (this.#reader === null) this.end();
    else this.stop();
  }

  #request(id: number, request: Request): void {
    if (this.#mailbox !== null && !this.#mailbox.begin(id)) return;
    try {
      if (this.#stopped) throw new DisposedError("The region manager client");
      if (request.kind === "teardown") return this.#teardown(id, request.region);
      this.#answer(id, { value: this.#perform(request) });
    } catch (error) {
      this.#answer(id, { error: packError(error) });
    }
  }

  #answer(id: number, answer: Answer): void {
    if (this.#mailbox === null) this.#post({ kind: "answer", id, answer });
    else this.#mailbox.answer(id, answer);
  }

  #post(message: OwnerMessage): void {
    this.#port.postMessage(message);
  }

  #perform(request: Exclude<Request, { kind: "teardown" }>): Json {
    switch (request.kind) {
      case "batch":
        return this.#changes(request.changes, (act) => this.#host.manager.batch(act));
      case "map-params": {
        const params = this.#region(request.region).mapParams;
        return params === null ? null : { ...params };
      }
      case "visible":
        return this.#region(request.region).visible.map(({ start, end }) => [start, end]);
      case "inspect":
        return this.#host.manager.inspect();
      case "memfd":
        return this.#lend(Mappable.memfd(request.name, request.size, request.options));
      case "open":
        return this.#lend(Mappable.open(request.path, request.options));
      default:
        return this.#changes([request], (act) => act())[0] ?? null;
    }
  }

  /** Makes changes, inside `how`, and keeps account of the regions that came and went. */
  #changes(requests: readonly ChangeRequest[], how: (act: () => void) => void): Json[] {
    const created: ServedRegion[] = [];
    const removed: number[] = [];
    const values: Json[] = [];
    how(() => {
      for (const request of requests) {
        if (request.kind === "new-region") {
          const { range, ...rest } = request.options;
          const region = this.#host.manager.newRegion({ ...rest, range: rangeOf(range) });
          created.push(region);
          values.push(region.id);
        } else {
          const region = request.region < 0 ? created[-1 - request.region] : this.#region(request.region);
          if (region === undefined) throw new RangeError(`The batch has made no region ${-1 - request.region}`);
          this.#change(region, request);
          if (request.kind === "remove") removed.push(region.id);
          values.push(null);
        }
      }
    });
    for (const region of created) this.#regions.set(region.id, region);
    for (const id of removed) this.#regions.delete(id);
    return values;
  }

  #change(region: ServedRegion, request: Exclude<ChangeRequest, { kind: "new-region" }>): void {
    switch (request.kind) {
      case "map":
        return region.map(request.params);
      case "unmap":
        return region.unmap();
      case "add-mapping": {
        const { kind: _kind, region: _region, range, file, ...rest } = request;
        const mapping: ServedMapping = { ...rest, rangeInRegion: rangeOf(range), mappable: this.#file(file) };
        return region.addMapping(mapping);
      }
      case "remove-mappings":
        return region.removeMappings(rangeOf(request.range));
      case "remove":
        if (request.eventually === true) return this.#drop(region, 0);
        return region[Symbol.dispose]();
    }
  }

  #teardown(id: number, region: number): void {
    const handle = this.#regions.get(region);
    // Gone is gone, as for a handle of the owner's own.
    if (handle === undefined) return this.#answer(id, { value: null });
    const controller = new AbortController();
    this.#waiting.set(id, controller);
    handle.teardown({ signal: controller.signal }).then(
      () => {
        this.#regions.delete(region);
        return { value: null };
      },
      (error) => ({ error: packError(error) }),
    ).then((answer) => {
      this.#waiting.delete(id);
      this.#answer(id, answer);
    });
  }

  #region(id: number): ServedRegion {
    const region = this.#regions.get(id);
    if (region === undefined) throw new DisposedError(`Region ${id}`);
    return region;
  }

  #file(file: FileReference | "private"): Mappable | "private" {
    if (file === "private") return file;
    const known = this.#files.get(file.key);
    if (known !== undefined) return known;
    if (file.key < 0) throw new DisposedError("The file that was lent");
    const own = Mappable.fromFd(file.fd);
    this.#files.set(file.key, own);
    return own;
  }

  #lend(file: Mappable): Json {
    const key = -(++this.#lent);
    this.#files.set(key, file);
    return { key, fd: file.fd, label: file.file.label };
  }

  /** Removes a region now, or as soon as nobody holds a lock on it; what fails otherwise is tried again. */
  #drop(region: ServedRegion, tries: number): void {
    const again = (error: unknown) => {
      if (error instanceof DisposedError) return;
      this.#host.logger.warn(`Region "${region.name}" of a client could not be removed`, error);
      if (tries < RETRIES) Deno.unrefTimer(setTimeout(() => this.#drop(region, tries + 1), RETRY_AFTER * 2 ** tries));
    };
    try {
      region[Symbol.dispose]();
    } catch (error) {
      if (error instanceof MemoryLockedError) region.teardown().catch(again);
      else again(error);
    }
  }
}

function rangeOf([start, end]: Ends): MemoryRange {
  return new MemoryRange(start, end);
}

/** The spans of locks as plain spans. */
export function spansOf(mirror: LockMirror | null): Span[] {
  return mirror === null ? [] : [...mirror.locks].map(({ start, end }) => ({ start, end }));
}
