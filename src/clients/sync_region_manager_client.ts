import { currentThread } from "../../ffi/os/thread.ts";
import type { Mappable, OpenOptions } from "../../ffi/files/mappable.ts";
import type { MemfdOptions } from "../../ffi/files/memfd.ts";
import type { Region } from "../core/map/region.ts";
import { DeviceMemory, type DeviceMemoryHost } from "../guest/device_memory.ts";
import type { DeviceMemoryOptions } from "../guest/device_options.ts";
import type { GuestMemory } from "../memory/guest_memory.ts";
import type { InspectNode } from "../regions/inspect.ts";
import { RegionHandle, type RegionRequests } from "../regions/region_handle.ts";
import type { RegionInfo } from "../regions/region_info.ts";
import type { RegionOptions } from "../regions/options.ts";
import type { Connection } from "./connection.ts";
import type { Json } from "../serving/error_data.ts";
import type { ChangeRequest, Request } from "../serving/protocol.ts";
import {
  addMappingRequest,
  endsOf,
  heldFile,
  newRegionRequest,
  paramsFrom,
  rangesFrom,
  regionsFrom,
} from "./requests.ts";
import { connectPort, forkPort, type PortConnection } from "./port_link.ts";
import type { SynchronousOnly } from "./region_client.ts";
import { SyncCaller } from "./sync_caller.ts";

/** How a synchronous client connects and waits. */
export interface SyncConnectOptions {
  /**
   * How long to wait for an answer before `RequestTimeoutError`, in milliseconds; 5000 when left out. A request that has
   * begun by then gets as long again.
   */
  readonly timeout?: number;
}

/** What users call the requests. */
const METHODS: Readonly<Record<Request["kind"], string>> = {
  "new-region": "newRegion",
  "map": "map",
  "unmap": "unmap",
  "add-mapping": "addMapping",
  "remove-mappings": "removeMappings",
  "remove": "dispose",
  "batch": "batch",
  "teardown": "teardown",
  "map-params": "mapParams",
  "visible": "visible",
  "next-age": "newDeviceMemory",
  "regions": "regions",
  "inspect": "inspect",
  "memfd": "memfd",
  "open": "open",
};

/** Changes that are collected to become one request. */
interface Draft {
  readonly changes: ChangeRequest[];
  /** The regions made in it, which get their ids with the answer. */
  readonly created: { -readonly [K in keyof Region]: Region[K] }[];
  readonly held: Mappable[];
  /** Who wants to know whether it came true. */
  readonly settled: ((committed: boolean) => void)[];
}

/**
 * A region manager as seen from another thread that cannot return to its event loop in the middle of what it does, as
 * a vCPU's in the middle of an exit: the same requests as the owner's own, each blocking until the owner has answered.
 *
 * The owner answers between the turns of its own event loop, so its thread must not be blocked for long, and cannot be
 * the same. A vCPU whose thread waits for an answer is out of the guest, so a `quiesce` hook does not wait for it.
 *
 * Everything else is as for `RegionManagerClient`.
 *
 * @example Usage
 * ```ts ignore
 * import { MemoryRange, SyncRegionManagerClient } from "membacking";
 *
 * // In the Worker of a vCPU, which was sent `port`.
 * using client = await SyncRegionManagerClient.connect(port, { timeout: 1000 });
 * using bar = client.newRegion({ name: "bar", range: new MemoryRange(0xe000_0000, 0xe000_4000), priority: 1 });
 * bar.addMapping({ rangeInRegion: new MemoryRange(0, 0x4000), mappable: client.memfd("bar", 0x4000) });
 * bar.map();
 * ```
 */
export class SyncRegionManagerClient implements Disposable {
  readonly #connection: Connection;
  readonly #owner: PortConnection;
  readonly #caller: SyncCaller;
  readonly #timeout: number;
  readonly #requests: RegionRequests;
  #draft: Draft | null = null;

  private constructor(owner: PortConnection, caller: SyncCaller, timeout: number) {
    const { connection } = owner;
    this.#owner = owner;
    this.#connection = connection;
    this.#caller = caller;
    this.#timeout = timeout;
    this.#requests = {
      map: ({ id }, params) => void this.#change({ kind: "map", region: id, params }),
      unmap: ({ id }) => void this.#change({ kind: "unmap", region: id }),
      addMapping: ({ id }, mapping) => {
        // Nobody else of this thread runs before it is answered, unless it waits for the end of a batch.
        const held = this.#draft === null ? undefined : heldFile(mapping);
        if (held !== undefined) this.#draft?.held.push(held);
        this.#change(addMappingRequest(id, mapping, connection));
      },
      removeMappings: ({ id }, range) =>
        void this.#change({ kind: "remove-mappings", region: id, range: endsOf(range) }),
      remove: ({ id }) => {
        if (!connection.closed) this.#change({ kind: "remove", region: id });
      },
      teardown: ({ id }) => {
        if (connection.closed) return Promise.resolve();
        return Promise.try(() => void this.#call({ kind: "teardown", region: id }));
      },
      paramsOf: ({ id }) => paramsFrom(this.#call({ kind: "map-params", region: id })),
      visibleOf: ({ id }) => rangesFrom(this.#call({ kind: "visible", region: id })),
    };
  }

  /**
   * Connects to the manager that serves the other end of `port`. The port is the client's from now on.
   *
   * @throws {DisposedError} If the manager is gone.
   * @throws {TypeError} If the manager lives on this very thread.
   * @throws {DOMException} "TimeoutError" if nobody welcomes the client in time.
   */
  static async connect(port: MessagePort, options: SyncConnectOptions = {}): Promise<SyncRegionManagerClient> {
    const { timeout = 5000 } = options;
    if (typeof timeout !== "number" || !(timeout > 0)) throw new RangeError(`Time-out must be above 0, got ${timeout}`);
    const caller = new SyncCaller();
    // Messages are not looked at: that it is served no longer, it sees in shared memory.
    const owner = await connectPort(port, {
      mail: caller.mail,
      signal: AbortSignal.timeout(Math.min(timeout, 2 ** 31 - 1)),
    });
    if (owner.owner.tid === currentThread().tid) {
      owner.connection.close();
      throw new TypeError("A thread cannot wait for itself, use RegionManagerClient on the thread of the manager");
    }
    return new SyncRegionManagerClient(owner, caller, timeout);
  }

  /** Whether it has been disposed, or is no longer served. */
  get disposed(): boolean {
    return this.#connection.closed;
  }

  /** As `RegionManagerClient.memory`. */
  get memory(): GuestMemory {
    return this.#connection.memory;
  }

  /**
   * Adds a region, unmapped and without mappings. It is removed with the client. The handle is that of the owner's own
   * regions; all it does waits for the owner, `mapParams` and `visible` included, and its `teardown` blocks for as long
   * as the time-out at most.
   *
   * @throws {RegionOverlapError} As `RegionManager.newRegion` does.
   * @throws {RangeError} As `RegionManager.newRegion` does.
   * @throws {RequestTimeoutError} If the owner does not answer in time, as for every request.
   */
  newRegion(options: RegionOptions): RegionHandle {
    return this.#newRegion(options);
  }

  #newRegion(options: RegionOptions, age?: number): RegionHandle {
    const { name, range, priority, type = "ram", holes = "exit" } = options;
    const request = newRegionRequest(options, age);
    // What the owner goes by is its own account of ages.
    const region = { id: 0, age: 0, name, range, priority, type, holes, latest: undefined };
    const draft = this.#draft;
    if (draft !== null) region.id = -draft.created.push(region);
    const id = this.#change(request);
    // SAFETY: the owner answers with the region's id.
    if (draft === null) region.id = id as number;
    return new RegionHandle(region, this.#requests);
  }

  /**
   * Makes the requests inside `requests` one: all or nothing, in one plan, as `RegionManager.batch` does. Inside, handles
   * show the present state, and those of regions made there can be used but not asked.
   *
   * @returns What `requests` returned.
   * @throws What the first request that failed threw; nothing has changed then.
   * @throws {TypeError} If `requests` returns a promise: requests after an `await` would not be part of the batch.
   */
  batch<T>(requests: (() => T) & SynchronousOnly<T>): T {
    return this.#batch(requests);
  }

  /**
   * Makes memory for a device, such as a PCI BAR that a vCPU's exits move, as `GuestMemoryManager.newDeviceMemory` does.
   * The guest loses it when the client is disposed.
   *
   * @throws {RangeError} If the length is 0 or not page-aligned.
   */
  newDeviceMemory(name: string, length: number, options: DeviceMemoryOptions = {}): DeviceMemory {
    const host: DeviceMemoryHost = {
      copies: null,
      isDisposed: () => this.disposed,
      // SAFETY: the owner answers with a number.
      nextAge: () => this.#call({ kind: "next-age" }, "newDeviceMemory") as number,
      newRegion: (options, age) => this.#newRegion(options, age),
      batch: (requests, name) => this.#batch(requests, name),
      whenDecided: (outcome) => {
        if (this.#draft === null) outcome(true);
        else this.#draft.settled.push(outcome);
      },
    };
    return new DeviceMemory(host, name, length, options, () => {});
  }

  /** As `RegionManagerClient.memfd`. */
  memfd(name: string, size: number, options: MemfdOptions = {}): Mappable {
    return this.#connection.borrow(this.#call({ kind: "memfd", name, size, options }));
  }

  /** As `RegionManagerClient.open`. */
  open(path: string, options: OpenOptions = {}): Mappable {
    return this.#connection.borrow(this.#call({ kind: "open", path, options }));
  }

  /** As `RegionManagerClient.regions`. */
  regions(): readonly RegionInfo[] {
    return regionsFrom(this.#call({ kind: "regions" }));
  }

  /** The owner's whole memory map as plain data. */
  inspect(): InspectNode {
    // SAFETY: an InspectNode of the owner's.
    return this.#call({ kind: "inspect" }) as unknown as InspectNode;
  }

  /** As `RegionManagerClient.fork`. */
  fork(): MessagePort {
    return forkPort(this.#connection);
  }

  /**
   * Releases the client's locks, files and regions, and closes the port, without waiting.
   *
   * @throws {MembackingError} If the bytes of a lock were transferred away. The memory stays locked until the thread
   * ends; everything else is done.
   */
  [Symbol.dispose](): void {
    this.#connection.close();
  }

  #batch<T>(requests: () => T, name?: string): T {
    this.#connection.check();
    if (this.#draft !== null) return requests();
    const draft: Draft = { changes: [], created: [], held: [], settled: [] };
    this.#draft = draft;
    let committed = false;
    try {
      let result: T;
      try {
        result = requests();
      } finally {
        this.#draft = null;
      }
      if (result instanceof Promise) {
        result.catch(() => {});
        throw new TypeError("A batch must make its requests synchronously");
      }
      // SAFETY: the owner answers with one value for each change, a region's id for a new region.
      const { changes } = draft;
      const values = changes.length > 0 ? this.#call({ kind: "batch", changes }, name) as readonly Json[] : [];
      const ids = values.filter((_, index) => changes[index]?.kind === "new-region");
      draft.created.forEach((region, index) => region.id = ids[index] as number);
      committed = true;
      return result;
    } finally {
      for (const settled of committed ? draft.settled : draft.settled.toReversed()) settled(committed);
      for (const held of draft.held) held[Symbol.dispose]();
    }
  }

  #change(request: ChangeRequest): Json {
    if (this.#draft === null) return this.#call(request);
    this.#draft.changes.push(request);
    return null;
  }

  #call(request: Request, name: string = METHODS[request.kind]): Json {
    return this.#caller.call(this.#owner, request, { timeout: this.#timeout, name });
  }
}
