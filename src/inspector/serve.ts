import type { GuestMemoryManager } from "../guest/guest_memory_manager.ts";
import type { RegionManager } from "../regions/region_manager.ts";
import { Admission } from "./admission.ts";
import { Answers, NoAnswer } from "./answers.ts";
import { History } from "./history.ts";
import { PAGE_FILES } from "./page_files.ts";
import { sourceOf } from "./source.ts";
import { Watch } from "./watch.ts";

/** How an inspector is served. */
export interface InspectorOptions {
  /** The port; one that is free when left out or 0. */
  readonly port?: number;
  /**
   * The address to listen on; `"127.0.0.1"` when left out, so that this host alone can connect. Whoever connects needs
   * the token all the same, but there is no encryption: better leave it and use a tunnel (`ssh -L`).
   */
  readonly hostname?: string;
  /**
   * How many bytes of heap the past may take, 32 MiB when left out. Once it is full, the oldest requests are forgotten.
   */
  readonly history?: number;
  /**
   * From when on the past is kept: `"open"` (the default) while a page is open, so that nothing is done for nobody;
   * `"start"` all the time, so that who comes later can look back.
   */
  readonly since?: "open" | "start";
  /** What the page is headed with, to tell several apart. */
  readonly title?: string;
}

const DEFAULT_HISTORY = 0x200_0000;

const HEADERS: Readonly<Record<string, string>> = {
  "cache-control": "no-store",
  "content-security-policy":
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; " +
    "form-action 'none'; frame-ancestors 'none'",
  "cross-origin-opener-policy": "same-origin",
  "cross-origin-resource-policy": "same-origin",
  "referrer-policy": "no-referrer",
  "x-content-type-options": "nosniff",
};

/** An inspector that is being served, until it is disposed; the event loop stays alive until then. */
export interface Inspector extends Disposable {
  /** Where the page is. Whoever knows this address can look: its path is the secret. */
  readonly url: string;
  /** Is there as soon as somebody has opened the page. */
  readonly opened: Promise<void>;
  /** Serves the page no more, and forgets the past. Does nothing the second time. */
  [Symbol.dispose](): void;
}

class InspectorServer implements Inspector {
  readonly url: string;
  readonly opened: Promise<void>;
  readonly #admission: Admission;
  readonly #answers: Answers;
  readonly #watch: Watch;
  readonly #streams = new Set<ReadableStreamDefaultController<Uint8Array>>();
  readonly #stop = new AbortController();
  readonly #title: string;
  readonly #onOpened: () => void;

  constructor(guest: GuestMemoryManager | RegionManager, options: InspectorOptions) {
    const { port = 0, hostname = "127.0.0.1", history: limit = DEFAULT_HISTORY, since = "open", title = "" } = options;
    if (!Number.isSafeInteger(limit) || limit < 0) {
      throw new RangeError(`The history must be a number of bytes, got ${limit}`);
    }
    if (since !== "open" && since !== "start") throw new TypeError(`since must be "open" or "start", got ${since}`);
    if (typeof title !== "string") throw new TypeError("The title must be a string");
    const source = sourceOf(guest);
    const history = new History(limit);
    const opened = Promise.withResolvers<void>();
    this.opened = opened.promise;
    this.#onOpened = opened.resolve;
    this.#title = title;
    this.#admission = new Admission(hostname);
    const server = Deno.serve(
      { port, hostname, signal: this.#stop.signal, onListen: () => {} },
      (request) => this.#serve(request),
    );
    this.#watch = new Watch(source, history, since === "start");
    this.#answers = new Answers(source, history, this.#watch);
    const name = hostname.includes(":") ? `[${hostname}]` : hostname;
    this.url = `http://${name}:${server.addr.port}/${this.#admission.token}/`;
  }

  [Symbol.dispose](): void {
    this.#answers[Symbol.dispose]();
    this.#watch[Symbol.dispose]();
    for (const stream of this.#streams) close(stream);
    this.#streams.clear();
    this.#stop.abort();
  }

  #serve(request: Request): Response {
    const path = this.#admission.check(request);
    if (typeof path !== "string") return reply(path.status, "text/plain; charset=utf-8", path.reason);
    const file = PAGE_FILES.get(path);
    if (file !== undefined) return reply(200, file.type, file.text);
    if (path === "events") return this.#events();
    if (path === "title") return json(200, { title: this.#title });
    try {
      const query = new URL(request.url).searchParams;
      if (this.#answers.names.has(path)) return json(200, this.#answers.answer(path, query));
      const saved = this.#answers.file(path, query);
      if (saved === null) return reply(404, "text/plain; charset=utf-8", "There is no such thing");
      return reply(200, saved.type, saved.text, { "content-disposition": `attachment; filename="${path}"` });
    } catch (error) {
      if (error instanceof NoAnswer) return json(400, { error: error.message });
      return json(500, { error: error instanceof Error ? error.message : String(error) });
    }
  }

  /** Server-sent events without content: what there is to know is asked for. */
  #events(): Response {
    let own: ReadableStreamDefaultController<Uint8Array> | undefined;
    let listening: Disposable | undefined;
    const end = () => {
      listening?.[Symbol.dispose]();
      if (own !== undefined) this.#streams.delete(own);
    };
    const body = new ReadableStream<Uint8Array>({
      start: (controller) => {
        own = controller;
        this.#streams.add(controller);
        controller.enqueue(NEWS);
        listening = this.#watch.listen(() => {
          // Who does not read needs no more of the same.
          if ((controller.desiredSize ?? 0) > 0) controller.enqueue(NEWS);
        });
        this.#onOpened();
      },
      cancel: end,
    }, { highWaterMark: 4 });
    return new Response(body, { headers: { ...HEADERS, "content-type": "text/event-stream" } });
  }
}

const NEWS = new TextEncoder().encode("data:\n\n");

function close(stream: ReadableStreamDefaultController<Uint8Array>): void {
  try {
    stream.close();
  } catch (error) {
    // It was cancelled already, which is what is wanted.
    if (!(error instanceof TypeError)) throw error;
  }
}

function reply(status: number, type: string, body: string, more: Record<string, string> = {}): Response {
  return new Response(body, { status, headers: { ...HEADERS, ...more, "content-type": type } });
}

function json(status: number, value: unknown): Response {
  return reply(status, "application/json; charset=utf-8", JSON.stringify(value));
}

/**
 * Serves a page that shows the memory map live, and its past: strips of the address space by priority, what the guest
 * sees, the slots of each partition, DMA mappings, locks, devices and clients; what is at an address and who hides it;
 * the last requests, each of which can be gone back to and compared with another one.
 *
 * Needs `--allow-net`, for the address that it listens on. The page asks nobody else for anything, is read-only, and is
 * only to be had with the token in `url`. Nothing is done while no page is open, unless `since` says so. The page is
 * served by the thread that makes the requests, in its turns of the event loop: while that is busy, or in a guest, the
 * page waits.
 *
 * @example Watch a guest
 * ```ts
 * import { GuestMemoryManager, MemoryRange } from "membacking";
 * import { serveInspector } from "membacking/inspector";
 *
 * using guest = GuestMemoryManager.create({
 *   maxAddress: 0x100_0000,
 *   ram: [{ ranges: [new MemoryRange(0, 0x80_0000)] }],
 *   x86Legacy: true,
 * });
 * using inspector = serveInspector(guest);
 * console.log(`Open ${inspector.url}`);
 *
 * const page = await fetch(inspector.url);
 * console.assert((await page.text()).includes("</html>"));
 * ```
 *
 * @throws {TypeError} If `guest` is neither a `GuestMemoryManager` nor a `RegionManager`.
 * @throws {RangeError} If `history` is not a number of bytes.
 * @throws {Deno.errors.NotCapable} Without `--allow-net`.
 * @throws {Deno.errors.AddrInUse} If the port is taken.
 */
export function serveInspector(guest: GuestMemoryManager | RegionManager, options: InspectorOptions = {}): Inspector {
  return new InspectorServer(guest, options);
}
