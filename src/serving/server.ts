import { currentThread, isAlive, type ThreadIdentity } from "../../ffi/os/thread.ts";
import type { Entry } from "../core/range_map.ts";
import { normalize, type Span } from "../core/span.ts";
import type { State } from "../core/map/state.ts";
import type { Piece, Region } from "../core/map/region.ts";
import { fragments } from "../core/map/overlap.ts";
import { piecesIn } from "../core/map/view.ts";
import { mappableOf } from "../memory/file_backing.ts";
import type { LockKeeper } from "../memory/lock_keeper.ts";
import type { MapGate } from "../requests/memory_map.ts";
import type { Logger } from "../targets/targets.ts";
import { Gate, type Reader } from "./gate.ts";
import { LockMirror, newLockTable } from "./lock_slots.ts";
import { CODE } from "./page_codes.ts";
import { PageWriter, type Paint } from "./page_writer.ts";
import type { OwnerMessage } from "./protocol.ts";
import type { ServedManager } from "./served.ts";
import { Session, type SessionHost, spansOf } from "./session.ts";
import { GATE, LINE } from "./shared_words.ts";

/** What a server works with. */
export interface ServerOptions {
  readonly manager: ServedManager;
  /** Where guest memory is; `base` is `null` where it cannot be looked at. */
  readonly memory: { readonly base: number | null; readonly length: number };
  /** The memory map as it is now. */
  readonly state: () => State;
  readonly locks: LockKeeper;
  readonly logger: Logger;
}

/** How often to look whether the threads of clients still live, in milliseconds. */
const ROUND = 100;

/** Serves the clients of one region manager, and keeps the memory map that they see in step with the real one. */
export class ClientServer implements MapGate, SessionHost {
  readonly #options: ServerOptions;
  readonly #gate = new Gate();
  readonly #pages: PageWriter;
  readonly #sessions = new Set<Session>();
  readonly #thread = currentThread();
  #rounds: ReturnType<typeof setInterval> | undefined;
  #closed = false;
  /** What is to be disposed once no client holds a lock any more. */
  #kept: Disposable | undefined;

  constructor(options: ServerOptions) {
    this.#options = options;
    this.#pages = new PageWriter(options.memory.length);
    this.#publish([{ start: 0, end: options.memory.length }]);
    options.locks.onClosing = (region) => this.#closingChanged(region);
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
  serve(port: MessagePort): Disposable {
    const session = new Session(this, port);
    this.#sessions.add(session);
    if (this.#closed) session.stop();
    return { [Symbol.dispose]: () => session.stop() };
  }

  /** Holds all clients off guest memory, and finds out what they have locked. */
  shut(): void {
    this.#gate.shut();
    for (const { reader, mirror } of this.#sessions) {
      if (reader?.gone) mirror?.clear();
      else mirror?.update(this.#closed);
    }
  }

  /** Shows clients the memory map as it is now, which may differ from the last one in `changed`, and lets them go on. */
  open(changed: readonly Span[]): void {
    if (!this.#gate.isShut || this.#closed) return;
    this.#publish(changed);
    this.#gate.open();
  }

  /** Finds out what clients have locked. */
  updateLocks(): void {
    const wasShut = this.#gate.isShut;
    this.shut();
    if (!wasShut) this.#gate.open();
    if (this.#closed) this.#letGo();
  }

  /**
   * Ends the service for good: no client looks at guest memory any more, but for what it holds locked.
   *
   * @returns What is locked; it has to stay mapped.
   */
  close(): Span[] {
    this.shut();
    this.#closed = true;
    this.#gate.close();
    const locked = [...this.#sessions].flatMap(({ mirror }) => spansOf(mirror));
    for (const session of [...this.#sessions]) session.stop();
    return locked;
  }

  /** Disposes `resource` once no client holds a lock any more. */
  keepWhileLocked(resource: Disposable | undefined): void {
    this.#kept = resource;
    this.#letGo();
  }

  admit(
    session: Session,
    thread: ThreadIdentity,
  ): { reader: Reader; mirror: LockMirror; welcome: OwnerMessage } {
    const { memory, locks } = this.#options;
    const line = new Int32Array(new SharedArrayBuffer(LINE.words * Int32Array.BYTES_PER_ELEMENT));
    const table = newLockTable();
    const reader: Reader = { line, thread, gone: false };
    this.#gate.readers.add(reader);
    this.#rounds ??= this.#startRounds();
    this.#sessions.add(session);
    return {
      reader,
      mirror: new LockMirror(line, table, locks),
      welcome: {
        kind: "welcome",
        owner: this.#thread,
        base: memory.base,
        length: memory.length,
        gate: this.#gate.words.buffer,
        line: line.buffer,
        locks: table,
        nodes: this.#pages.nodes,
        rows: this.#pages.rows,
      },
    };
  }

  ended(session: Session): void {
    this.#sessions.delete(session);
    if (session.reader !== null) this.#gate.readers.delete(session.reader);
    if (this.#gate.readers.size === 0 && this.#rounds !== undefined) {
      clearInterval(this.#rounds);
      this.#rounds = undefined;
    }
    this.#letGo();
  }

  #startRounds(): ReturnType<typeof setInterval> {
    const rounds = setInterval(() => {
      for (const session of [...this.#sessions]) {
        const { reader } = session;
        if (reader !== null && !isAlive(reader.thread)) {
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
    const { locks, state } = this.#options;
    if (this.#closed) return;
    Atomics.store(this.#gate.words, GATE.draining, locks.isDraining ? 1 : 0);
    const isOutermost = !this.#gate.isShut;
    this.shut();
    this.#publish(fragments(state().visible, region));
    if (isOutermost) this.#gate.open();
  }

  #publish(spans: readonly Span[]): void {
    const state = this.#options.state();
    for (const { start, end } of normalize(spans)) {
      let at = start;
      for (const piece of piecesIn(state, start, end)) {
        if (at < piece.start) this.#pages.paint(at, piece.start, null);
        this.#pages.paint(piece.start, piece.end, this.#paintOf(piece));
        at = piece.end;
      }
      if (at < end) this.#pages.paint(at, end, null);
    }
  }

  #paintOf({ value: { mapping, region, writable } }: Entry<Piece>): Paint {
    const mappable = mappableOf(mapping);
    const access = (writable ? CODE.writable : 0) | (mappable?.truncatable ? CODE.truncatable : 0) |
      (this.#options.locks.isClosing(region) ? CODE.closing : 0);
    if (mappable === null) return { key: null, fd: -1, delta: 0, access };
    return { key: mapping, fd: mappable.fd, delta: mapping.delta, access };
  }
}
