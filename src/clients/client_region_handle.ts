import type { MemoryRange } from "../core/memory_range.ts";
import type { MapParams } from "../core/map/region.ts";
import type { MappingOptions } from "../regions/region_handle.ts";
import type { Connection } from "./connection.ts";
import type { Json } from "../serving/error_data.ts";
import type { ChangeRequest, Request } from "../serving/protocol.ts";
import { addMappingRequest, endsOf, heldFile, paramsFrom, rangesFrom } from "./requests.ts";

/** What a client knows of a region of its own. */
export interface ClientRegion {
  readonly id: number;
  readonly name: string;
  readonly range: MemoryRange;
  readonly priority: number;
}

/** How a handle makes requests. */
export interface ClientRequests {
  readonly connection: Connection;
  /** Makes a change, or adds it to the batch under way. */
  change(request: ChangeRequest): Promise<Json>;
  request(request: Request, signal?: AbortSignal): Promise<Json>;
  /** Says that whoever called may ignore how `done` ends, if a batch is under way: the batch reports it. */
  settling<T>(done: Promise<T>): Promise<T>;
}

/**
 * A region that a `RegionManagerClient` or a `ProcessClient` has made: a `RegionHandle` with `await`.
 *
 * Everything else is as for `RegionHandle`, the errors included. `using` removes the region as soon as nobody holds a
 * lock on it, without waiting for that; `await using` waits.
 *
 * @example Usage
 * ```ts
 * import { MemoryRange, RegionManager, RegionManagerClient, VaMapper } from "membacking";
 *
 * using va = VaMapper.reserve(0x10_0000);
 * using regions = new RegionManager(va);
 * const { port1, port2 } = new MessageChannel();
 * using _served = regions.serve(port1);
 * using client = await RegionManagerClient.connect(port2);
 *
 * await using region = await client.newRegion({ name: "ram", range: new MemoryRange(0, 0x4000), priority: 0 });
 * await region.map();
 * console.assert(String((await region.visible)[0]) === "0x0-0x4000");
 * ```
 */
export class ClientRegionHandle implements Disposable, AsyncDisposable {
  readonly #region: ClientRegion;
  readonly #requests: ClientRequests;

  /** Made by `RegionManagerClient.newRegion`. */
  constructor(region: ClientRegion, requests: ClientRequests) {
    this.#region = region;
    this.#requests = requests;
  }

  /** Unique in the manager; older regions have smaller ids. */
  get id(): number {
    return this.#region.id;
  }

  /** The name given to `newRegion`. */
  get name(): string {
    return this.#region.name;
  }

  /** The GPA range it occupies, in bytes. */
  get range(): MemoryRange {
    return this.#region.range;
  }

  /** Its priority, 0 to 255; the higher one wins an address. */
  get priority(): number {
    return this.#region.priority;
  }

  /** How it is mapped, `null` while it is not. */
  get mapParams(): Promise<MapParams | null> {
    return this.#requests.request({ kind: "map-params", region: this.id }).then(paramsFrom);
  }

  /** The GPA ranges it is shown at, holes between its mappings included. Empty when it is hidden or unmapped. */
  get visible(): Promise<readonly MemoryRange[]> {
    return this.#requests.request({ kind: "visible", region: this.id }).then(rangesFrom);
  }

  /** As `RegionHandle.map`. */
  map(params: Partial<MapParams> = {}): Promise<void> {
    return this.#change({ kind: "map", region: this.id, params });
  }

  /** As `RegionHandle.unmap`. */
  unmap(): Promise<void> {
    return this.#change({ kind: "unmap", region: this.id });
  }

  /** As `RegionHandle.addMapping`. The mappable may be disposed at once: the request has a clone of its own. */
  addMapping(mapping: MappingOptions): Promise<void> {
    return this.#requests.settling(this.#addMapping(mapping));
  }

  /** As `RegionHandle.removeMappings`. */
  removeMappings(rangeInRegion: MemoryRange): Promise<void> {
    const request = async () => {
      const range = endsOf(rangeInRegion);
      await this.#requests.change({ kind: "remove-mappings", region: this.id, range });
    };
    return this.#requests.settling(request());
  }

  /**
   * Removes the region now.
   *
   * @throws {MemoryLockedError} If its memory is locked; the region stays.
   * @throws {MappingError} If a target failed; the region stays.
   */
  remove(): Promise<void> {
    return this.#change({ kind: "remove", region: this.id });
  }

  /**
   * Removes the region once nobody holds a lock on its memory, in whatever thread. New locks are refused from now on.
   * Aborting leaves the region as it was.
   *
   * @throws The signal's reason, if it aborts first.
   */
  async teardown(options: { signal?: AbortSignal } = {}): Promise<void> {
    await this.#requests.request({ kind: "teardown", region: this.id }, options.signal);
  }

  /** Has the region removed as soon as nobody holds a lock on it. Does not wait, and never fails. */
  [Symbol.dispose](): void {
    this.#requests.request({ kind: "remove", region: this.id, eventually: true }).catch(() => {});
  }

  /** As `teardown`. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#requests.connection.closed) await this.teardown();
  }

  #change(request: ChangeRequest): Promise<void> {
    return this.#requests.settling(this.#requests.change(request).then(() => {}));
  }

  async #addMapping(mapping: MappingOptions): Promise<void> {
    const held = heldFile(mapping);
    try {
      await this.#requests.change(addMappingRequest(this.id, mapping, this.#requests.connection));
    } finally {
      held?.[Symbol.dispose]();
    }
  }
}
