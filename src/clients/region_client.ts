import type { Mappable, OpenOptions } from "../../ffi/files/mappable.ts";
import type { MemfdOptions } from "../../ffi/files/memfd.ts";
import { checkSignal, onAbort } from "../core/abort.ts";
import { DisposedError, MembackingError } from "../core/errors.ts";
import type { GuestMemory } from "../memory/guest_memory.ts";
import type { InspectNode } from "../regions/inspect.ts";
import type { RegionInfo } from "../regions/region_info.ts";
import type { RegionOptions } from "../regions/options.ts";
import { buildError, type Json } from "../serving/error_data.ts";
import type { Answer, ChangeRequest, OwnerMessage, Request } from "../serving/protocol.ts";
import type { DeviceMemoryOptions } from "../guest/device_options.ts";
import { ClientDeviceMemory } from "./client_device_memory.ts";
import { ClientRegionHandle, type ClientRequests } from "./client_region_handle.ts";
import type { Connection } from "./connection.ts";
import { OWNER_ENDED } from "./hold.ts";
import { newRegionRequest, regionsFrom } from "./requests.ts";

/** How often a client that waits for an answer looks whether its owner still lives, in milliseconds. */
const ROUND = 250;

/** What everything is assignable to if `T` is no promise, and nothing if it is. */
export type SynchronousOnly<T> = [T] extends [never] ? unknown : [T] extends [PromiseLike<unknown>] ? never : unknown;

/** Changes that are collected to become one request, and who waits for each. */
interface Draft {
  readonly changes: ChangeRequest[];
  readonly waiting: PromiseWithResolvers<Json>[];
}

/**
 * A region manager as seen from elsewhere, by requests with `await`: what `RegionManagerClient`, for other threads, and
 * `ProcessClient`, for other processes, have in common.
 *
 * The owner serves the requests of all clients one at a time, those of one client in the order they were made. What a
 * request throws here is what it threw there: the class, the message, the fields and the causes. Once the client is
 * disposed, is served no longer or has lost its owner, everything throws `DisposedError`, which says which of these.
 */
export abstract class RegionClient implements Disposable {
  readonly #connection: Connection;
  readonly #waiting = new Map<number, PromiseWithResolvers<Json>>();
  readonly #requests: ClientRequests;
  #count = 0;
  #draft: Draft | null = null;
  #rounds: ReturnType<typeof setInterval> | undefined;

  /** Made by `connect`. */
  protected constructor(connection: Connection) {
    this.#connection = connection;
    this.#requests = {
      connection,
      change: (request) => this.#change(request),
      request: (request, signal) => this.#request(request, signal),
      settling: (done) => this.#settling(done),
    };
    connection.listen((message) => this.#receive(message), () => this.#lost(OWNER_ENDED));
  }

  /** Whether it has been disposed, or is no longer served. */
  get disposed(): boolean {
    return this.#connection.closed;
  }

  /**
   * Guest memory. Each access holds changes of the memory map off for as long as it takes, which costs some tens of
   * nanoseconds; a change holds accesses off in turn. Locks count in the owner.
   *
   * The bytes of a lock must not be transferred to another thread.
   *
   * `find` and `pieces` find what the owner's find, without the files.
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
   * @returns What `requests` returned.
   * @throws What the first request that failed threw; nothing has changed then.
   * @throws {TypeError} If `requests` returns a promise: requests after an `await` would not be part of the batch.
   * @throws {LimitError} If this is another process, and the batch is of more than some ten thousand requests.
   */
  async batch<T>(requests: (() => T) & SynchronousOnly<T>): Promise<T> {
    this.#connection.check();
    if (this.#draft !== null) return requests();
    const draft: Draft = { changes: [], waiting: [] };
    this.#draft = draft;
    let result: T;
    try {
      result = requests();
      if (result instanceof Promise) {
        result.catch(() => {});
        throw new TypeError("A batch must make its requests synchronously");
      }
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
      return result;
    } catch (error) {
      for (const { reject } of draft.waiting) reject(error);
      throw error;
    }
  }

  /**
   * Makes memory for a device, such as a PCI BAR, as `GuestMemoryManager.newDeviceMemory` does, with `await`. The guest
   * loses it when the client is disposed.
   *
   * @throws {RangeError} If the length is 0 or not page-aligned.
   */
  newDeviceMemory(name: string, length: number, options: DeviceMemoryOptions = {}): ClientDeviceMemory {
    this.#connection.check();
    return new ClientDeviceMemory(this.#requests, name, length, options);
  }

  /**
   * As `Mappable.memfd`, but the owner makes it. The handle is dead once the client is disposed; mappings of the file
   * stay. Another process cannot vouch for a file: its `fixedSize` is ignored, since the owner would pay for it.
   *
   * @throws {OsError} As `Mappable.memfd` does.
   * @throws {LimitError} If this is another process, which has 1024 files at a time at most.
   */
  async memfd(name: string, size: number, options: MemfdOptions = {}): Promise<Mappable> {
    return this.#connection.borrow(await this.#request({ kind: "memfd", name, size, options }));
  }

  /**
   * As `Mappable.open`, but the owner opens it, as for `memfd`.
   *
   * @throws {OsError} As `Mappable.open` does.
   * @throws {LimitError} As `memfd` does.
   */
  async open(path: string, options: OpenOptions = {}): Promise<Mappable> {
    return this.#connection.borrow(await this.#request({ kind: "open", path, options }));
  }

  /** All regions of the owner, whoever made them, as `RegionManager.regions` lists them. */
  async regions(): Promise<readonly RegionInfo[]> {
    return regionsFrom(await this.#request({ kind: "regions" }));
  }

  /** The owner's whole memory map as plain data. */
  async inspect(): Promise<InspectNode> {
    // SAFETY: an InspectNode of the owner's.
    return await this.#request({ kind: "inspect" }) as unknown as InspectNode;
  }

  /**
   * Releases the client's locks, files and regions, and closes the connection. Requests that are not answered yet are
   * rejected with `DisposedError`; they may be carried out all the same.
   *
   * @throws {MembackingError} If the bytes of a lock were transferred away. The memory stays locked until the thread
   * ends; everything else is done.
   */
  [Symbol.dispose](): void {
    try {
      this.#connection.close();
    } finally {
      this.#rejectAll();
    }
  }

  async #newRegion(options: RegionOptions): Promise<ClientRegionHandle> {
    const { name, range, priority } = options;
    const id = await this.#change(newRegionRequest(options));
    // SAFETY: the owner answers with the region's id.
    return new ClientRegionHandle({ id: id as number, name, range, priority }, this.#requests);
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
    checkSignal(signal);
    const id = ++this.#count;
    using _abort = onAbort(signal, () => this.#connection.post({ kind: "abort", id }));
    const waiting = Promise.withResolvers<Json>();
    this.#waiting.set(id, waiting);
    this.#rounds ??= this.#startRounds();
    try {
      this.#connection.request(id, request);
      return await waiting.promise;
    } catch (error) {
      // The owner's AbortError stands for the reason that only this side knows.
      if (signal?.aborted && error instanceof DOMException && error.name === "AbortError") throw signal.reason;
      throw error;
    } finally {
      this.#waiting.delete(id);
      if (this.#waiting.size === 0) this.#stopRounds();
    }
  }

  #receive(message: OwnerMessage): void {
    if (message.kind === "answer") this.#answered(message.id, message.answer);
    else if (message.kind === "closed") this.#lost(["The region manager client", "is no longer served by its owner"]);
  }

  #answered(id: number, answer: Answer): void {
    const waiting = this.#waiting.get(id);
    if (waiting === undefined) return;
    if ("error" in answer) waiting.reject(buildError(answer.error));
    else if ("value" in answer) waiting.resolve(answer.value);
    else waiting.reject(new MembackingError("The owner of the region manager gave no answer that can be read"));
  }

  /** The owner serves this client no longer, or is gone. */
  #lost(why: readonly [what: string, how: string]): void {
    this.#connection.lose(...why);
    this.#rejectAll();
    try {
      this.#connection.close();
    } catch {
      // Whoever disposes the locks learns of it.
    }
  }

  /** The link tells if the owner goes; this is for the case that it cannot. */
  #startRounds(): ReturnType<typeof setInterval> {
    const rounds = setInterval(() => {
      if (!this.#connection.isOwnerAlive) this.#lost(OWNER_ENDED);
    }, ROUND);
    Deno.unrefTimer(rounds);
    return rounds;
  }

  #stopRounds(): void {
    clearInterval(this.#rounds);
    this.#rounds = undefined;
  }

  #rejectAll(): void {
    const why = this.#connection.why ?? new DisposedError("The region manager client");
    for (const { reject } of this.#waiting.values()) reject(why);
  }
}
