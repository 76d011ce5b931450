import type { Mappable, MemfdOptions, OpenOptions } from "../../ffi/files/mappable.ts";
import { DisposedError } from "../core/errors.ts";
import type { GuestMemory } from "../memory/guest_memory.ts";
import type { InspectNode } from "../regions/inspect.ts";
import type { RegionOptions } from "../regions/options.ts";
import { ClientRegionHandle } from "./client_region_handle.ts";
import { Connection } from "./connection.ts";
import { buildError, type Json } from "../serving/error_data.ts";
import type { Answer, ChangeRequest, OwnerMessage, Request } from "../serving/protocol.ts";
import { newRegionRequest } from "./requests.ts";

/** How a client connects. */
export interface ConnectOptions {
  /** Gives up where nobody serves the other end of the port. */
  readonly signal?: AbortSignal;
}

/** Changes that are collected to become one request, and who waits for each. */
interface Draft {
  readonly changes: ChangeRequest[];
  readonly waiting: PromiseWithResolvers<Json>[];
}

/**
 * A region manager as seen from another thread: the same requests, with `await`.
 *
 * The owner serves the requests of all clients one at a time, those of one client in the order they were made. What a
 * request throws here is what it threw there: the class, the message, the fields and the causes.
 *
 * Disposing a client removes its regions, as soon as nobody holds a lock on them. So does the end of its thread, within
 * a moment. A thread that needs an answer before it goes on, such as one that runs a vCPU, uses a
 * `SyncRegionManagerClient`.
 *
 * @example Usage
 * ```ts
 * import { Mappable, MemoryRange, RegionManager, RegionManagerClient, VaMapper } from "membacking";
 *
 * using va = VaMapper.reserve(0x10_0000);
 * using regions = new RegionManager(va);
 * const { port1, port2 } = new MessageChannel();
 * using _served = regions.serve(port1);
 *
 * // In a Worker, which was sent port2:
 * using client = await RegionManagerClient.connect(port2);
 * const region = await client.newRegion({ name: "bar", range: new MemoryRange(0x4000, 0x8000), priority: 1 });
 * using file = await client.memfd("bar", 0x4000);
 * await region.addMapping({ rangeInRegion: new MemoryRange(0, 0x4000), mappable: file });
 * await region.map({ writable: true });
 * client.memory.writeUint32(0x4000, 42);
 * console.assert(regions.memory.readUint32(0x4000) === 42);
 * ```
 */
export class RegionManagerClient implements Disposable {
  readonly #connection: Connection;
  readonly #waiting = new Map<number, PromiseWithResolvers<Json>>();
  #requests = 0;
  #draft: Draft | null = null;

  private constructor(connection: Connection) {
    this.#connection = connection;
  }

  /**
   * Connects to the manager that serves the other end of `port`. The port is the client's from now on.
   *
   * @throws {DisposedError} If the manager is gone.
   * @throws The signal's reason, if it aborts first.
   */
  static async connect(port: MessagePort, options: ConnectOptions = {}): Promise<RegionManagerClient> {
    const connection = await Connection.open(port, { signal: options.signal });
    const client = new RegionManagerClient(connection);
    connection.receive = (message) => client.#receive(message);
    return client;
  }

  /** Whether it has been disposed, or is no longer served. */
  get disposed(): boolean {
    return this.#connection.closed;
  }

  /**
   * Guest memory, at the same host addresses as in the owner's thread. Each access holds changes of the memory map off
   * for as long as it takes, which costs some tens of nanoseconds; a change holds accesses off in turn. Locks count in
   * the owner.
   *
   * The bytes of a lock must not be transferred to another thread.
   *
   * Besides what the owner's own memory throws, accesses throw `DisposedError` once the client is disposed or served no
   * longer.
   *
   * @throws {MembackingError} If the manager has no memory, as with the recording targets for tests.
   */
  get memory(): GuestMemory {
    return this.#connection.memory;
  }

  /**
   * Adds a region, unmapped and without mappings. It is removed with the client.
   *
   * @throws {RegionOverlapError} As `RegionManager.newRegion` does.
   * @throws {RangeError} As `RegionManager.newRegion` does.
   */
  newRegion(options: RegionOptions): Promise<ClientRegionHandle> {
    return this.#settling(this.#newRegion(options));
  }

  /**
   * Makes the requests inside `requests` one: all or nothing, in one plan. They must be made before it returns; their
   * promises settle with the batch, so they must not be awaited inside. A region made in a batch can be used after it.
   *
   * ```ts ignore
   * await client.batch(() => {
   *   void old.unmap();
   *   void next.map();
   * });
   * ```
   *
   * @throws What the first request that failed threw; nothing has changed then.
   */
  async batch(requests: () => void): Promise<void> {
    this.#connection.check();
    if (this.#draft !== null) return requests();
    const draft: Draft = { changes: [], waiting: [] };
    this.#draft = draft;
    try {
      requests();
    } catch (error) {
      for (const { reject } of draft.waiting) reject(error);
      throw error;
    } finally {
      this.#draft = null;
    }
    try {
      // SAFETY: the owner answers with one value for each change.
      const values = await this.#request({ kind: "batch", changes: draft.changes }) as readonly Json[];
      draft.waiting.forEach(({ resolve }, index) => resolve(values[index] ?? null));
    } catch (error) {
      for (const { reject } of draft.waiting) reject(error);
      throw error;
    }
  }

  /**
   * As `Mappable.memfd`, but the descriptor is the owner's, which lends it: a Worker that ends without disposing the
   * handle leaks nothing. The handle is dead once the client is disposed; mappings of the file stay.
   *
   * @throws {OsError} As `Mappable.memfd` does.
   */
  async memfd(name: string, size: number, options: MemfdOptions = {}): Promise<Mappable> {
    return this.#connection.borrow(await this.#request({ kind: "memfd", name, size, options }));
  }

  /**
   * As `Mappable.open`, but the descriptor is the owner's, as for `memfd`.
   *
   * @throws {OsError} As `Mappable.open` does.
   */
  async open(path: string, options: OpenOptions = {}): Promise<Mappable> {
    return this.#connection.borrow(await this.#request({ kind: "open", path, options }));
  }

  /** The owner's whole memory map as plain data. */
  async inspect(): Promise<InspectNode> {
    // SAFETY: an InspectNode of the owner's.
    return await this.#request({ kind: "inspect" }) as unknown as InspectNode;
  }

  /**
   * A port at which the same owner serves another client: transfer it to another Worker, which connects with it. What
   * that client does, and how long it lives, has nothing to do with this one.
   */
  fork(): MessagePort {
    return this.#connection.fork();
  }

  /**
   * Releases the client's locks, files and regions, and closes the port. Requests that are not answered yet are
   * rejected with `DisposedError`; they may be carried out all the same.
   *
   * @throws {MembackingError} If the bytes of a lock were transferred away. The memory stays locked until the thread
   * ends; everything else is done.
   */
  [Symbol.dispose](): void {
    this.#rejectAll();
    this.#connection.close();
  }

  async #newRegion(options: RegionOptions): Promise<ClientRegionHandle> {
    const { name, range, priority } = options;
    const id = await this.#change(newRegionRequest(options));
    // SAFETY: the owner answers with the region's id.
    return new ClientRegionHandle({ id: id as number, name, range, priority }, {
      connection: this.#connection,
      change: (request) => this.#change(request),
      request: (request, signal) => this.#request(request, signal),
      settling: (done) => this.#settling(done),
    });
  }

  #settling<T>(done: Promise<T>): Promise<T> {
    if (this.#draft !== null) done.catch(() => {});
    return done;
  }

  #change(request: ChangeRequest): Promise<Json> {
    if (this.#draft === null) return this.#request(request);
    const waiting = Promise.withResolvers<Json>();
    this.#draft.changes.push(request);
    this.#draft.waiting.push(waiting);
    return waiting.promise;
  }

  async #request(request: Request, signal?: AbortSignal): Promise<Json> {
    this.#connection.check();
    signal?.throwIfAborted();
    const id = ++this.#requests;
    const waiting = Promise.withResolvers<Json>();
    this.#waiting.set(id, waiting);
    const abort = () => this.#connection.post({ kind: "abort", id });
    signal?.addEventListener("abort", abort);
    try {
      this.#connection.post({ kind: "request", id, request });
      return await waiting.promise;
    } catch (error) {
      // The owner's AbortError stands for the reason that only this side knows.
      if (signal?.aborted && error instanceof DOMException && error.name === "AbortError") throw signal.reason;
      throw error;
    } finally {
      this.#waiting.delete(id);
      signal?.removeEventListener("abort", abort);
    }
  }

  #receive(message: OwnerMessage): void {
    if (message.kind === "answer") this.#settle(message.id, message.answer);
    else if (message.kind === "closed") {
      this.#rejectAll();
      try {
        this.#connection.close();
      } catch {
        // Whoever disposes the locks learns of it.
      }
    }
  }

  #settle(id: number, answer: Answer): void {
    const waiting = this.#waiting.get(id);
    if (waiting === undefined) return;
    if ("error" in answer) waiting.reject(buildError(answer.error));
    else waiting.resolve(answer.value);
  }

  #rejectAll(): void {
    for (const { reject } of this.#waiting.values()) reject(new DisposedError("The region manager client"));
  }
}
