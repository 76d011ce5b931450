import type { Mappable } from "../../ffi/files/mappable.ts";
import { HostAddresses } from "../../ffi/host/host_addresses.ts";
import { renewMappings } from "../core/map/edits.ts";
import type { Mapping, Piece } from "../core/map/region.ts";
import type { State } from "../core/map/state.ts";
import { piecesIn } from "../core/map/view.ts";
import { MemoryRange } from "../core/memory_range.ts";
import type { Entry } from "../core/range_map.ts";
import type { Span } from "../core/span.ts";
import type { VaTarget } from "../core/targets.ts";
import type { MemoryLocks } from "../memory/memory_locks.ts";
import { discardRam } from "../requests/give_back.ts";
import type { MemoryMap } from "../requests/memory_map.ts";
import type { Watcher } from "../requests/onlookers.ts";
import type { Deed } from "../requests/request.ts";
import { holdOff } from "../requests/transaction.ts";
import type { ClientServer, ClientSummary } from "../serving/server.ts";
import type { HandOuts } from "./hand_outs.ts";
import { mappingOf } from "./mapping_options.ts";
import type { RegionManagerOptions } from "./options.ts";
import { type MappingOptions, type RegionHandle, regionOf } from "./region_handle.ts";
import type { RegionService } from "./region_service.ts";
import type { Tracking } from "./tracking.ts";

/** What a manager is made of, as far as those need it that are built on it. */
export interface ManagerParts {
  readonly map: MemoryMap;
  readonly va: VaTarget<Mappable>;
  readonly service: RegionService;
  readonly quiesce: RegionManagerOptions["quiesce"];
  readonly locks: MemoryLocks;
  readonly tracking: Tracking;
  readonly handOuts: HandOuts;
  readonly clients: () => ClientServer | undefined;
}

/** What the package's own layers, which are built on regions and have state of their own, see of a manager. */
export class RegionInternals {
  readonly #parts: ManagerParts;
  /** What its handles ask for, and what goes beyond that. */
  readonly service: RegionService;
  /** The host address of GPA 0. */
  readonly base: number;
  /** Where guest memory ends. */
  readonly length: number;
  /** Whether there is host memory behind it. */
  readonly isReal: boolean;

  constructor(parts: ManagerParts) {
    this.#parts = parts;
    this.service = parts.service;
    this.base = parts.va.base;
    this.length = parts.va.length;
    this.isReal = parts.va instanceof HostAddresses;
  }

  /** The memory map as it is now: the empty one once the manager has been disposed. */
  state(): State {
    return this.#parts.map.committed;
  }

  /** Throws unless the manager is there and no request is being carried out. */
  check(): void {
    this.#parts.map.check();
  }

  /**
   * Throws unless a request may be made now that cannot be part of a batch.
   *
   * @throws {TypeError} Inside a batch.
   */
  checkAlone(name: string): void {
    this.#parts.map.checkAlone(name);
  }

  /** Calls `outcome` once it is known whether the batch under way came true: at once where there is none. */
  whenDecided(outcome: (committed: boolean) => void): void {
    this.#parts.map.whenDecided(outcome);
  }

  /** Tells `watcher` of each request from now on, until the result is disposed. */
  watch(watcher: Watcher): Disposable {
    return this.#parts.map.onlookers.watch(watcher);
  }

  /** What backs `[start, end)` now, cut to it, in order. Holes are left out, and what an undo could not put back. */
  pieces(start: number, end: number): readonly Entry<Piece>[] {
    this.check();
    return piecesIn(this.state(), start, end);
  }

  /** What a region has, visible or not, in order. */
  mappings(handle: RegionHandle): readonly Entry<Mapping>[] {
    this.check();
    return [...this.state().regions.get(regionOf(handle))?.mappings ?? []];
  }

  /** A mapping for `[start, end)`, checked as those of users. */
  newMapping(start: number, end: number, options: Omit<MappingOptions, "rangeInRegion">): Mapping {
    return mappingOf({ ...options, rangeInRegion: new MemoryRange(start, end) }, start, end, this.#parts.va);
  }

  /** Backs parts of regions by other memory, and does something to memory itself. `added` are mappings made for it. */
  renew(
    name: string,
    renewals: readonly (Span & { readonly region: RegionHandle; readonly mapping: Mapping })[],
    added: readonly Mapping[],
    deed: Deed,
  ): void {
    const { map, handOuts } = this.#parts;
    const parts = renewals.map(({ region, ...part }) => ({ ...part, region: regionOf(region) }));
    for (const mapping of added) handOuts.watch(mapping);
    map.requestWithDeed(name, deed, (state) => renewMappings(state, parts), added);
  }

  /** Gives RAM back to the host, now or once the batch under way has come true. */
  discard(range: MemoryRange): void {
    const { map, locks, va } = this.#parts;
    discardRam(map, locks, va, range);
  }

  /** Where the memory of `mapping` that is in no file and backs a part of `[start, end)` is while it does not show. */
  parked({ own, delta }: Mapping, start: number, end: number): readonly (Span & { readonly address: number })[] {
    const held = own === null ? undefined : this.state().parked.get(own);
    if (own === null || held === undefined) return [];
    return held.overlapping(start + delta, end + delta).map((entry) => {
      const first = Math.max(entry.start, start + delta);
      const address = this.#parts.va.parkedAt?.(own, first);
      if (address === undefined) throw new Error("What is parked has a place");
      return { start: first - delta, end: Math.min(entry.end, end + delta) - delta, address };
    });
  }

  /** The locks on guest memory, and the clients with what they hold. */
  holders(): { readonly locks: readonly Entry<number>[]; readonly clients: readonly ClientSummary[] } {
    const { map, locks } = this.#parts;
    if (map.closed) return { locks: [], clients: [] };
    const clients = this.#parts.clients();
    clients?.updateLocks();
    return { locks: locks.entries(), clients: clients?.describe() ?? [] };
  }

  /** A lock on a part of `[start, end)`, of other threads and processes alone where `foreign`. */
  lockedIn(start: number, end: number, foreign: boolean): Span | undefined {
    this.#parts.clients()?.updateLocks();
    return this.#parts.locks.conflict(start, end, foreign);
  }

  /** What is locked, by clients too. */
  locks(): readonly Span[] {
    this.#parts.clients()?.updateLocks();
    return this.#parts.locks.spans;
  }

  /** Calls `act` while no client accesses guest memory, but through locks that it holds. */
  alone<T>(act: () => T): T {
    const clients = this.#parts.clients();
    return clients === undefined ? act() : clients.alone(act);
  }

  /** Waits until some lock is released. */
  nextRelease(signal: AbortSignal | undefined): Promise<void> {
    return this.#parts.locks.nextRelease(signal);
  }

  /** Refuses new locks on the regions, waits until the old ones are gone, and calls `then`. */
  drain(regions: readonly RegionHandle[], signal: AbortSignal | undefined, then: () => void): Promise<void> {
    return this.#parts.locks.drain(regions.map(regionOf), signal, then);
  }

  /** Holds vCPUs off `ranges`, where there is a hook, until the result is disposed. */
  quiesce(ranges: readonly MemoryRange[]): Disposable {
    const { quiesce, map } = this.#parts;
    return holdOff(quiesce, ranges, map.onlookers.logger);
  }

  /** Counts a range as written, for trackers: what changed its contents is none of the writers they know. */
  markWritten({ start, end }: MemoryRange): void {
    this.#parts.tracking.written.mark(start, end);
  }

  /** Whether contents are changing that are counted only afterwards. Returns the answer before; see `WrittenPages.doubt`. */
  doubtWritten(isInDoubt: boolean): boolean {
    return this.#parts.tracking.written.doubt(isInDoubt);
  }
}
