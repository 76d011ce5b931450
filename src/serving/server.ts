import { fragments } from "../core/map/overlap.ts";
import type { Region } from "../core/map/region.ts";
import type { State } from "../core/map/state.ts";
import { UnixSocket } from "../../ffi/os/socket.ts";
import type { Span } from "../core/span.ts";
import type { MemoryLocks } from "../memory/memory_locks.ts";
import type { WriteMarks } from "../memory/write_marks.ts";
import type { MapGate } from "../requests/map_gate.ts";
import type { Logger } from "../targets/targets.ts";
import { Bell } from "./bell.ts";
import { claimPort, PortChannel } from "./channel.ts";
import { Gate, type Reader } from "./gate.ts";
import { MapPublisher } from "./map_publisher.ts";
import { ProtocolError } from "./protocol_error.ts";
import { ProcessClients } from "./process_clients.ts";
import type { ServedManager } from "./served.ts";
import { type Admitted, Session, type SessionHost, spansOf } from "./session.ts";
import { CLOSED, LINE } from "./shared_words.ts";
import { SocketChannel } from "./socket_channel.ts";
import { spawnWithSocket } from "./spawn.ts";
import { type ServedMemory, ThreadClients } from "./thread_clients.ts";

/** What a server works with. */
export interface ServerOptions {
  readonly manager: ServedManager;
  readonly memory: ServedMemory;
  /** The memory map as it is now. */
  readonly state: () => State;
  readonly locks: MemoryLocks;
  readonly logger: Logger;
}

/** How a client is served. */
export interface ServeOptions {
  /**
   * How long a change of the memory map waits for the client to come out of an access, in milliseconds. A client that
   * does not is cut off. 5000 when left out for a thread, 1000 for a process.
   */
  readonly deadline?: number;
}

/** How often to look whether the threads of clients still live, in milliseconds. */
const ROUND = 100;
/** How many processes other processes may have served at a time. */
const MOST_BROUGHT = 64;
const THREAD_DEADLINE = 5000;
const PROCESS_DEADLINE = 1000;

/** A client, as it is listed. */
export interface ClientSummary {
  /** What it is called. */
  readonly name: string;
  /** Where the regions are that it has made. */
  readonly regions: readonly Span[];
  /** What it has locked, as far as is known. */
  readonly locks: readonly Span[];
}

/** Serves the clients of one region manager, and keeps the memory map that they see in step with the real one. */
export class ClientServer implements MapGate, SessionHost {
  readonly #options: ServerOptions;
  readonly #gate = new Gate();
  readonly #bellWord = new Int32Array(new SharedArrayBuffer(Int32Array.BYTES_PER_ELEMENT));
  readonly #bell = new Bell(this.#bellWord);
  readonly #map: MapPublisher;
  readonly #threads: ThreadClients;
  readonly #processes: ProcessClients;
  /** The channels of processes that others have had served. */
  #brought: readonly SocketChannel[] = [];
  readonly #sessionSet = new Set<Session>();
  /** The same as a list, to be gone through while others come and go; `null` after one did. */
  #sessionList: readonly Session[] | null = null;
  /** What clients are called where they are listed. */
  readonly #numbers = new WeakMap<Session, number>();
  #count = 0;
  #rounds: ReturnType<typeof setInterval> | undefined;
  #closed = false;
  /** How many want clients to be held off until they are done, whatever requests there are meanwhile. */
  #holds = 0;
  /** Whether the map was not written down since there was nobody to read it. */
  #isBehind = true;
  /** Where clients mark what they write, `null` while nobody tracks it. */
  #marks: WriteMarks | null = null;
  /** What is to be disposed once no client holds a lock any more. */
  #kept: Disposable | undefined;

  constructor(options: ServerOptions) {
    this.#options = options;
    const { locks, memory } = options;
    this.#threads = new ThreadClients(memory, locks, this.#bellWord.buffer);
    this.#map = new MapPublisher(memory.length, options.state, (region) => locks.isClosing(region));
    this.#map.addSink(this.#threads.sink);
    const everywhere = [{ start: 0, end: memory.length }];
    const renewMap = () => this.holdOff(() => this.#map.clear(), everywhere);
    this.#processes = new ProcessClients(memory, locks, this.#map, renewMap);
    this.#gate.onOverdue = (reader) => this.#overdue(reader);
    locks.onClosing = (region) => this.#closingChanged(region);
    locks.onAwaiting = () => {
      if (this.#closed) return;
      this.#tellDraining();
      // Whoever released one before it saw that has not said so.
      if (locks.isDraining) this.updateLocks();
    };
    void this.#bell.listen(() => this.#serveMail());
  }

  get #sessions(): readonly Session[] {
    return this.#sessionList ??= [...this.#sessionSet];
  }

  #add(session: Session): void {
    this.#sessionSet.add(session);
    this.#sessionList = null;
  }

  /** What reports go to. */
  get logger(): Logger {
    return this.#options.logger;
  }

  /** What clients ask for, it is asked. */
  get manager(): ServedManager {
    return this.#options.manager;
  }

  /** Serves whoever says hello at the other end of `port`, until the result is disposed. */
  serve(port: MessagePort, options: ServeOptions = {}): Disposable {
    const deadline = checkDeadline(options.deadline ?? THREAD_DEADLINE);
    claimPort(port, "A client is served");
    const session = new Session(this, {
      channel: new PortChannel(port),
      isSameProcess: true,
      admit: (hello) => this.#threads.admit(hello, deadline),
    });
    this.#add(session);
    if (this.#closed) session.stop(CLOSED.manager);
    return { [Symbol.dispose]: () => session.stop() };
  }

  /**
   * Serves a client in a process that `spawn` starts, until the result is disposed.
   *
   * @throws {TypeError} If `spawn` returns a promise.
   */
  serveProcess<T>(spawn: (fd: number) => T, options: ServeOptions = {}): { readonly child: T } & Disposable {
    const deadline = checkDeadline(options.deadline ?? PROCESS_DEADLINE);
    const { child, socket } = spawnWithSocket(spawn);
    return { child, ...this.#serveChannel(new SocketChannel(socket), deadline) };
  }

  serveSocket(fd: number): void {
    const brought = this.#brought = this.#brought.filter(({ closed }) => !closed);
    if (brought.length >= MOST_BROUGHT) {
      this.logger.warn(`A client is not served, since clients have brought ${MOST_BROUGHT} others already`);
      return;
    }
    const socket = UnixSocket.inherit(fd);
    try {
      socket.checkType("seqpacket");
      const channel = new SocketChannel(socket);
      this.#brought = [...brought, channel];
      this.#serveChannel(channel, PROCESS_DEADLINE);
    } catch (error) {
      socket[Symbol.dispose]();
      throw error;
    }
  }

  #serveChannel(channel: SocketChannel, deadline: number): Disposable {
    let latest: Session;
    const next = () => {
      const session: Session = new Session(this, {
        channel,
        isSameProcess: false,
        admit: (hello) => this.#processes.admit(hello, session, channel, deadline),
        again: () => this.#closed ? channel.close() : next(),
      });
      latest = session;
      this.#add(session);
    };
    next();
    return { [Symbol.dispose]: () => latest.end() };
  }

  /** Serves what clients have asked for by now. Returns how many requests and messages there were. */
  poll(): number {
    let count = 0;
    for (const session of this.#sessions) count += session.poll();
    this.#processes.poll();
    return count;
  }

  /** Holds all clients off guest memory, and finds out what they have locked. */
  shut(): void {
    this.#gate.shut();
    const sessions = this.#sessions;
    for (let i = 0; i < sessions.length; i++) sessions[i]!.updateLocks(this.#closed);
  }

  /** Shows clients the memory map as it is now, which may differ from the last one in `changed`, and lets them go on. */
  open(changed: readonly Span[]): void {
    if (!this.#gate.isShut || this.#closed) return;
    this.#publish(changed);
    if (this.#holds === 0) this.#gate.open();
  }

  /** Holds all clients off while `act` runs, and shows them `spans` anew afterwards. */
  holdOff(act: () => void, spans: readonly Span[]): void {
    if (this.#closed) return act();
    const isOutermost = !this.#gate.isShut;
    this.shut();
    try {
      act();
      this.#publish(spans);
    } finally {
      if (isOutermost) this.#gate.open();
    }
  }

  /** Has clients mark what they write from now on, or no more with `null`. */
  markIn(marks: WriteMarks | null): void {
    this.#marks = marks;
    this.#processes.markIn(marks);
    this.alone(() => {
      for (const { reader } of this.#sessions) if (reader !== null) this.#tellMarks(reader);
    });
  }

  /** Calls `look` while clients are held off, requests in it included, and what they have locked is known. */
  alone<T>(look: () => T): T {
    const wasShut = this.#gate.isShut;
    this.shut();
    this.#holds++;
    try {
      this.#processes.gatherMarks();
      return look();
    } finally {
      this.#holds--;
      if (!wasShut && !this.#closed) this.#gate.open();
    }
  }

  /** Finds out what clients have locked. */
  updateLocks(): void {
    const wasShut = this.#gate.isShut;
    this.shut();
    if (!wasShut && !this.#closed) this.#gate.open();
    if (this.#closed) this.#letGo();
  }

  isLocked({ start, end }: Span): boolean {
    return this.#options.locks.conflict(start, end) !== undefined;
  }

  /** The clients that have been let in, in the order in which they came, and what they hold. */
  describe(): ClientSummary[] {
    return this.#sessions.filter(({ reader }) => reader !== null).map((session) => {
      let number = this.#numbers.get(session);
      if (number === undefined) this.#numbers.set(session, number = ++this.#count);
      const name = `client ${number}${session.isSameProcess ? "" : " (process)"}`;
      return { name, regions: session.regions, locks: spansOf(session.mirror) };
    });
  }

  /**
   * Ends the service for good: no client looks at guest memory any more, but for what it holds locked.
   *
   * @returns What is locked; it has to stay mapped.
   */
  close(): Span[] {
    this.shut();
    this.#closed = true;
    this.#bell.close();
    for (const { reader } of this.#sessions) {
      if (reader !== null) Atomics.store(reader.line.words, LINE.closed, CLOSED.manager);
    }
    const locked = this.#sessions.flatMap(({ mirror }) => spansOf(mirror));
    for (const session of this.#sessions) session.stop(CLOSED.manager);
    for (const { reader } of this.#sessions) reader?.line.notify(LINE.sequence);
    return locked;
  }

  /** Disposes `resource` once no client holds a lock any more. */
  keepWhileLocked(resource: Disposable | undefined): void {
    this.#kept = resource;
    this.#letGo();
  }

  admitted({ reader }: Admitted): void {
    if (this.#isBehind) {
      this.#isBehind = false;
      this.#map.publish([{ start: 0, end: this.#options.memory.length }]);
    }
    Atomics.store(reader.line.words, LINE.draining, this.#options.locks.isDraining ? 1 : 0);
    this.#tellMarks(reader);
    this.#gate.add(reader);
    this.#rounds ??= this.#startRounds();
  }

  welcomed(session: Session): void {
    if (!session.isSameProcess) this.#processes.welcome(session);
  }

  ended(session: Session): void {
    this.#sessionSet.delete(session);
    this.#sessionList = null;
    if (session.reader !== null) this.#gate.delete(session.reader);
    if (this.#gate.isEmpty && this.#rounds !== undefined) {
      clearInterval(this.#rounds);
      this.#rounds = undefined;
    }
    this.#letGo();
  }

  #tellMarks({ line: { words } }: Reader): void {
    const address = this.#marks?.address ?? 0;
    words[LINE.marksLow] = address | 0;
    words[LINE.marksHigh] = address / 2 ** 32;
    Atomics.store(words, LINE.marking, this.#marks === null ? 0 : 1);
  }

  #serveMail(): void {
    for (const session of this.#sessions) session.serveMail();
  }

  #overdue(reader: Reader): void {
    this.#options.locks.addStray(() => reader.isAlive() && Atomics.load(reader.line.words, LINE.reading) !== 0);
    for (const session of this.#sessions) {
      if (session.reader !== reader) continue;
      session.cutOffSoon(new ProtocolError(`It did not come out of an access within ${reader.deadline} ms`));
    }
  }

  #startRounds(): ReturnType<typeof setInterval> {
    const rounds = setInterval(() => {
      for (const session of this.#sessions) {
        const { reader } = session;
        if (reader !== null && !reader.isAlive()) {
          reader.gone = true;
          session.end();
        }
      }
      if (this.#closed) this.updateLocks();
    }, ROUND);
    Deno.unrefTimer(rounds);
    return rounds;
  }

  #letGo(): void {
    if (!this.#closed || this.#kept === undefined) return;
    for (const { mirror } of this.#sessions) if (mirror !== null && mirror.count > 0) return;
    const kept = this.#kept;
    this.#kept = undefined;
    kept[Symbol.dispose]();
  }

  /** A region begins or ceases to be torn down: locks on what it shows are refused, or possible again. */
  #closingChanged(region: Region): void {
    const { state } = this.#options;
    if (this.#closed) return;
    this.#tellDraining();
    const isOutermost = !this.#gate.isShut;
    this.shut();
    this.#publish(fragments(state().visible, region));
    if (isOutermost) this.#gate.open();
  }

  /** Has clients say so when they release a lock, while somebody waits for that. */
  #tellDraining(): void {
    const draining = this.#options.locks.isDraining ? 1 : 0;
    for (const { reader } of this.#sessions) {
      if (reader !== null) Atomics.store(reader.line.words, LINE.draining, draining);
    }
  }

  #publish(spans: readonly Span[]): void {
    if (this.#gate.isEmpty) this.#isBehind = true;
    if (this.#isBehind) return;
    this.#map.publish(spans);
    this.#processes.changed(spans);
  }
}

function checkDeadline(deadline: number): number {
  if (typeof deadline === "number" && deadline > 0) return deadline;
  throw new RangeError(`Deadline must be above 0, got ${deadline}`);
}
