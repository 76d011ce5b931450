import type { Mappable } from "../../ffi/files/mappable.ts";
import { DisposedError } from "../core/errors.ts";
import type { Span } from "../core/span.ts";
import type { Logger } from "../targets/targets.ts";
import type { ClientChannel } from "./channel.ts";
import { ClientFiles } from "./client_files.ts";
import { ClientRegions } from "./client_regions.ts";
import { type ErrorData, packError } from "./error_data.ts";
import type { Reader } from "./gate.ts";
import type { LockMirror } from "./lock_slots.ts";
import { readMessage } from "./messages.ts";
import { RequestWays } from "./request_ways.ts";
import { ProtocolError } from "./protocol_error.ts";
import type { Answer, ClientMessage, Hello, OwnerMessage, Request } from "./protocol.ts";
import type { ServedManager } from "./served.ts";
import { CLOSED, LINE } from "./shared_words.ts";

/** A client that has been let in: what the owner knows of it, and what it is told. */
export interface Admitted extends Disposable {
  readonly reader: Reader;
  readonly mirror: LockMirror;
  readonly welcome: OwnerMessage;
  /** Descriptors that go with the welcome. */
  readonly fds: readonly number[];
}

/** What a session asks of the server that it is a session of. */
export interface SessionHost {
  readonly manager: ServedManager;
  readonly logger: Logger;
  /** Serves another client. */
  serve(port: MessagePort): void;
  /** Serves another client in another process, at a descriptor that is the caller's to close. */
  serveSocket(fd: number): void;
  /** Looks at the locks that clients hold. */
  updateLocks(): void;
  /** Whether somebody holds a lock on a part of it, as far as is known. */
  isLocked(span: Span): boolean;
  /** The client has been let in: it may look at guest memory. */
  admitted(admitted: Admitted): void;
  /** It has been told so. */
  welcomed(session: Session): void;
  /** The session is over, and nothing of it is left. */
  ended(session: Session): void;
}

/** How a session's client is connected. */
export interface SessionOptions {
  readonly channel: ClientChannel;
  /** Whether the client lives in this process: its locks are this process's memory. */
  readonly isSameProcess: boolean;
  /** Lets a client in that has said hello. */
  admit(hello: Hello): Admitted;
  /** Is told when the client has said that it is done; the channel may serve another one. Without it, it is closed. */
  again?(): void;
}

const HELLO_FIRST = "A client says hello first";

/** Why a client is served no longer, as `CLOSED` says. */
type Why = Exclude<(typeof CLOSED)[keyof typeof CLOSED], 0>;

/**
 * One client, as its owner sees it: the regions it has made, the files it has shown, the locks it holds.
 *
 * `stop` ends the service: regions go. `end` comes when the client cannot look at this process's memory any more, by its
 * own word or because its thread is gone, or its process is another: files and locks go. Until then a client that is no
 * longer served still counts as a reader, since nothing can take memory out of the hands of a thread.
 */
export class Session {
  readonly #host: SessionHost;
  readonly #options: SessionOptions;
  readonly #channel: ClientChannel;
  readonly #files: ClientFiles;
  readonly #regions: ClientRegions;
  readonly #ways: RequestWays;
  /** The teardowns that wait for locks, by the numbers of their requests. */
  readonly #waiting = new Map<number, { readonly region: number; readonly controller: AbortController }>();
  #admitted: Admitted | null = null;
  #saidBye = false;
  #stopped = false;
  #ended = false;

  constructor(host: SessionHost, options: SessionOptions) {
    this.#host = host;
    this.#options = options;
    this.#channel = options.channel;
    this.#files = new ClientFiles(options.isSameProcess);
    this.#regions = new ClientRegions(host.manager, this.#files, host.logger);
    this.#channel.receive = (data, fds) => this.#receive(data, fds);
    this.#ways = new RequestWays(this.#channel, (id, request) => this.#request(id, request));
    this.#channel.receiveNumbers = (id, code, numbers) =>
      this.#orCutOff(() => {
        if (this.#admitted === null) throw new ProtocolError(HELLO_FIRST);
        this.#ways.receiveNumbers(id, code, numbers);
      });
    this.#channel.hungUp = (cause) => {
      if (cause !== undefined) host.logger.warn("A client was hung up on", cause);
      this.#hungUp();
    };
  }

  /** Whether the client lives in this process. */
  get isSameProcess(): boolean {
    return this.#options.isSameProcess;
  }

  /** The client as the gate sees it; `null` until it has been let in. */
  get reader(): Reader | null {
    return this.#admitted?.reader ?? null;
  }

  /** The client's locks; `null` until it has been let in. */
  get mirror(): LockMirror | null {
    return this.#admitted?.mirror ?? null;
  }

  /** Where the regions are that the client has made. */
  get regions(): Span[] {
    return this.#regions.spans;
  }

  /** Sends the client a message. */
  post(message: OwnerMessage, fds: readonly number[] = []): void {
    this.#channel.post(message, fds);
  }

  /** Serves what the client has rung for. Returns how many requests and messages there were. */
  serveMail(): number {
    if (this.#ended) return 0;
    try {
      return this.#ways.drain() + (this.#channel.take?.() ?? 0);
    } catch (error) {
      this.cutOff(error);
      return 0;
    }
  }

  /** Serves whatever has arrived. Returns how many requests and messages there were. */
  poll(): number {
    const count = this.#channel.poll() + this.serveMail();
    // What need not wait for locks is over, and would be answered by the event loop.
    for (const [id, { region }] of [...this.#waiting]) this.#orCutOff(() => this.#tearDownNow(id, region));
    return count;
  }

  /** Finds out what the client has locked; it is cut off if that makes no sense. */
  updateLocks(isClosed: boolean): void {
    const admitted = this.#admitted;
    // What it had locked when it ended has been released, and must not be found again.
    if (admitted === null || this.#ended) return;
    const { reader, mirror } = admitted;
    if (reader.gone && !reader.isAlive()) return mirror.clear();
    // Nobody holds one off that is gone and lives, so it may write while this reads.
    if (!mirror.update(isClosed || reader.gone)) this.cutOffSoon(new ProtocolError("The locks of a client are none"));
  }

  /** Serves the client no longer, and removes its regions. */
  stop(why: Why = CLOSED.client): void {
    if (this.#stopped) return;
    this.#stopped = true;
    for (const { controller } of this.#waiting.values()) controller.abort();
    this.#regions.removeAll();
    if (this.#admitted === null) return this.end();
    Atomics.store(this.#admitted.reader.line.words, LINE.closed, why);
    this.#host.updateLocks(); // A client looks at its own words when the gate has been shut.
    this.#ways.close();
    if (!this.#saidBye) this.post({ kind: "closed" });
    if (!this.#options.isSameProcess && !this.#ended) this.end();
  }

  /** Serves a client no longer that broke the protocol or missed its deadline. */
  cutOff(error: unknown): void {
    if (this.#stopped) return;
    this.#host.logger.warn("A client was cut off", error);
    if (this.#admitted !== null) this.#admitted.reader.gone = true;
    this.stop(CLOSED.cutOff);
  }

  /** The same, once the request that is under way is over. */
  cutOffSoon(error: unknown): void {
    if (this.#stopped) return;
    const line = this.#admitted?.reader.line.words;
    if (line !== undefined) Atomics.store(line, LINE.closed, CLOSED.cutOff);
    setTimeout(() => this.cutOff(error), 0);
  }

  /** The client looks at nothing any more. */
  end(): void {
    if (this.#finish()) this.#channel.close();
  }

  #finish(): boolean {
    if (this.#ended) return false;
    this.#ended = true;
    // Its locks first, or its regions could not go.
    this.#admitted?.mirror.clear();
    this.stop();
    this.#files[Symbol.dispose]();
    this.#host.ended(this);
    this.#admitted?.[Symbol.dispose]();
    return true;
  }

  /** Does what a client has asked for. Whatever is wrong with that is the client's trouble. */
  #orCutOff(act: () => void): void {
    if (this.#ended) return;
    try {
      act();
    } catch (error) {
      this.cutOff(error);
    }
  }

  #receive(data: unknown, fds: readonly number[]): void {
    this.#orCutOff(() => this.#serve(readMessage(data), fds));
  }

  #serve(message: ClientMessage, fds: readonly number[]): void {
    if (this.#admitted === null && message.kind !== "hello" && message.kind !== "bye") {
      throw new ProtocolError(HELLO_FIRST);
    }
    if (message.kind === "request") return this.#ways.accept(message.id, message.order ?? 0, message.request);
    if (message.kind === "skip") return this.#ways.skip(message.order);
    this.#ways.drain(); // What was asked for before this was said.
    if (this.#ended) return;
    switch (message.kind) {
      case "hello":
        return this.#hello(message);
      case "abort":
        return this.#waiting.get(message.id)?.controller.abort();
      case "released":
        return this.#host.updateLocks();
      case "file":
        return this.#files.add(message.key, fds[0]);
      case "forget":
        return this.#files.forget(message.key);
      case "serve":
        return this.#serveAnother(message.port, fds[0]);
      case "let-go":
        return this.onLetGo();
      case "bye":
        return this.#bye();
    }
  }

  /** Is called when a client in another process has let go of what had changed. */
  onLetGo: () => void = () => {};

  #hello(hello: Hello): void {
    if (this.#admitted !== null) throw new ProtocolError("A client connects once");
    this.#ways.open(hello);
    this.#admitted = this.#options.admit(hello);
    if (hello.messages !== undefined) this.#channel.bring?.(hello.messages, this.#admitted.reader.line.words);
    this.#host.admitted(this.#admitted);
    this.post(this.#admitted.welcome, this.#admitted.fds);
    this.#host.welcomed(this);
  }

  #serveAnother(port: MessagePort | null, fd: number | undefined): void {
    if (port !== null) return this.#host.serve(port);
    if (fd === undefined) throw new ProtocolError("There is no socket to be served at");
    this.#host.serveSocket(fd);
  }

  #bye(): void {
    // Who has not said hello has nobody to make room for.
    if (this.#options.again === undefined || this.#admitted === null) return this.end();
    // The next client says hello through the same channel.
    this.#saidBye = true;
    this.#finish();
    this.#options.again();
  }

  /** Nothing arrives any more. A thread that ends loses its port a moment before it is gone. */
  #hungUp(looks: number = 10): void {
    this.serveMail(); // It may have said bye.
    if (this.#ended) return;
    const reader = this.#admitted?.reader;
    if (reader === undefined || !this.#options.isSameProcess || !reader.isAlive()) return this.end();
    if (looks === 0) return this.stop();
    Deno.unrefTimer(setTimeout(() => this.#hungUp(looks - 1), 10));
  }

  #request(id: number, request: Request): void {
    if (this.#ended) return;
    try {
      if (this.#stopped) throw new DisposedError("The region manager client");
      if (request.kind === "teardown") return this.#teardown(id, request.region);
      const { value, file } = this.#regions.serve(request);
      this.#answer(id, request.kind, { value }, file);
    } catch (error) {
      this.#answer(id, request.kind, { error: packError(error) });
    }
  }

  #teardown(id: number, region: number): void {
    const controller = new AbortController();
    this.#waiting.set(id, { region, controller });
    this.#regions.teardown(region, controller.signal)
      .then(() => ({ value: null }), (error): { error: ErrorData } => ({ error: packError(error) }))
      .then((answer) => this.#orCutOff(() => this.#tornDown(id, answer)));
  }

  /** Tears a region down if nobody holds a lock on it any more, and says so. */
  #tearDownNow(id: number, region: number): void {
    if (this.#regions.shown(region).some((span) => this.#host.isLocked(span))) return;
    try {
      this.#regions.remove(region);
      this.#tornDown(id, { value: null });
    } catch (error) {
      this.#tornDown(id, { error: packError(error) });
    }
  }

  #tornDown(id: number, answer: Answer): void {
    if (this.#waiting.delete(id)) this.#answer(id, "teardown", answer);
  }

  #answer(id: number, request: Request["kind"], answer: Answer, file?: Mappable): void {
    if (this.#ended) return;
    this.#ways.answer(id, request, answer, this.#options.isSameProcess ? undefined : file?.fd);
  }
}

/** The spans of locks as plain spans. */
export function spansOf(mirror: LockMirror | null): Span[] {
  return mirror === null ? [] : [...mirror.locks].map(({ start, end }) => ({ start, end }));
}
