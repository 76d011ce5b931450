import type { Mappable } from "../../ffi/files/mappable.ts";
import { HostAddresses } from "../../ffi/host/host_addresses.ts";
import { hostOf, type VaMapper } from "../../ffi/host/va_mapper.ts";
import type { Json } from "../serving/error_data.ts";
import { ClientServer, type ServeOptions } from "../serving/server.ts";
import { DisposedError, MembackingError } from "../core/errors.ts";
import type { Partition, VaTarget } from "../core/targets.ts";
import type { DirtyTracker } from "../memory/dirty_tracker.ts";
import { forgetMap, GuestMemory } from "../memory/guest_memory.ts";
import { type InspectNode, inspectState } from "./inspect.ts";
import { MemoryLocks } from "../memory/memory_locks.ts";
import { checkMethods } from "../targets/checks.ts";
import { Attachments } from "./attachments.ts";
import { type Explanation, explanationOf, failedExplanation } from "./explanation.ts";
import { RegionInternals } from "./region_internals.ts";
import { RegionService } from "./region_service.ts";
import { MemoryMap } from "../requests/memory_map.ts";
import type { RegionHandle } from "./region_handle.ts";
import type { DmaTargetOptions, PartitionOptions, RegionManagerOptions, RegionOptions } from "./options.ts";
import type { DmaTarget } from "../targets/targets.ts";
import { HandOuts } from "./hand_outs.ts";
import { Tracking } from "./tracking.ts";
import { tearDown } from "../requests/tear_down.ts";
import type { Report } from "../targets/report.ts";
import { type RegionInfo, regionInfos } from "./region_info.ts";
import { RecordedMap, RecordedRequest, type RequestRecord } from "./request_record.ts";

/** The unsafe half of a manager, for the package alone. */
export let internalsOf: (manager: RegionManager) => RegionInternals;

/**
 * Regions over the guest-physical address space, and everything that has to follow them: host memory, partitions
 * (virtual machines) and DMA targets.
 *
 * A request makes the next memory map out of the present one, plans the steps from the one to the other, and carries
 * them out; if a step fails, the steps done are undone and the caller gets a `MappingError` with the `cause`. Requests
 * are served one at a time: a partition, DMA target, logger or quiesce callback that makes one gets a
 * `ReentrancyError`.
 *
 * @example Usage
 * ```ts
 * import { Mappable, MemoryRange, RegionManager, VaMapper } from "membacking";
 * import { RecordingPartition } from "membacking/testing";
 *
 * using va = VaMapper.reserve(0x10_0000);
 * using regions = new RegionManager(va);
 * const vm = new RecordingPartition();
 * using _attached = regions.addPartition(vm);
 *
 * using file = Mappable.memfd("ram", 0x4000);
 * using ram = regions.newRegion({ name: "ram", range: new MemoryRange(0, 0x4000), priority: 0 });
 * ram.addMapping({ rangeInRegion: new MemoryRange(0, 0x4000), mappable: file });
 * ram.map({ writable: true });
 * console.assert(vm.ranges.length === 1);
 * ```
 */
export class RegionManager implements Disposable {
  static {
    internalsOf = (manager) => manager.#internals;
  }

  readonly #memory: GuestMemory;
  readonly #va: VaTarget<Mappable>;
  readonly #retained: Disposable | undefined;
  readonly #map: MemoryMap;
  readonly #locks: MemoryLocks;
  readonly #tracking: Tracking;
  readonly #service: RegionService;
  readonly #attachments: Attachments;
  #clients: ClientServer | undefined;
  readonly #internals: RegionInternals;
  readonly #handOuts: HandOuts;

  /**
   * Manages the addresses that were reserved; one reservation serves one manager.
   *
   * @throws {DisposedError} If the reservation has been disposed.
   * @throws {TypeError} If it serves another manager.
   */
  constructor(reserved: VaMapper | VaTarget<Mappable>, options: RegionManagerOptions = {}) {
    const va = hostOf(reserved);
    const { overlap = "nested", logger, quiesce } = options;
    if (overlap !== "nested" && overlap !== "any") {
      throw new TypeError(`Overlap must be "nested" or "any", got ${JSON.stringify(overlap)}`);
    }
    if (quiesce !== undefined && typeof quiesce !== "function") throw new TypeError("quiesce must be a function");
    if (logger !== undefined) checkMethods(logger, "A logger", ["debug", "info", "warn", "error"]);
    if (served.has(va)) throw new TypeError("One VaMapper serves one RegionManager, reserve another");
    this.#retained = va.retain?.();
    served.add(va);
    this.#va = va;
    const report: Report = (level, msg, ...args) => this.#map.onlookers.logger[level](msg, ...args);
    this.#locks = new MemoryLocks(va, () => this.#map.committed, () => this.#map.check(), report);
    this.#tracking = new Tracking({
      length: va.length,
      isAccessible: va.view !== undefined,
      locks: this.#locks,
      map: () => this.#map,
      clients: () => this.#clients,
      invalidate: () => forgetMap(this.#memory),
    });
    this.#map = new MemoryMap({
      ...{ va, quiesce, logger, locks: this.#locks, written: this.#tracking.written },
      invalidate: () => forgetMap(this.#memory),
    });
    this.#handOuts = new HandOuts({
      locks: this.#locks,
      clients: () => this.#clients,
      forget: () => forgetMap(this.#memory),
    });
    this.#memory = new GuestMemory(this.#locks);
    const map = this.#map;
    const service = this.#service = new RegionService({
      ...{ map, va, overlap, locks: this.#locks },
      watchFile: (mapping) => this.#handOuts.watch(mapping),
    });
    this.#attachments = new Attachments(map, va.length, () => service.nextId());
    this.#internals = new RegionInternals({
      ...{ map, va, service, quiesce, locks: this.#locks, tracking: this.#tracking, handOuts: this.#handOuts },
      clients: () => this.#clients,
    });
  }

  /**
   * Adds a region, unmapped and without mappings.
   *
   * @throws {RegionOverlapError} If it overlaps another region in a way the overlap rule forbids; names both.
   * @throws {RangeError} If the range is empty or beyond the reservation, or the priority is not 0 to 255.
   */
  newRegion(options: RegionOptions): RegionHandle {
    return this.#service.newRegion(options);
  }

  /**
   * Attaches a partition: tells it everything that is visible, and every change from now on, until the handle returned
   * is disposed, which takes everything away from it again.
   *
   * @throws {MappingError} If the partition failed; everything has been undone. If it does not give back what it took,
   * `outOfStep` says so, and nothing follows it any more: dispose it.
   * @throws {LimitError} If it cannot hold that many ranges.
   * @throws {RangeError} If the offset is not page-aligned, or guest memory would not fit below 2^52 with it.
   */
  addPartition(partition: Partition, options: PartitionOptions = {}): Disposable {
    return this.#attachments.addPartition(partition, options);
  }

  /**
   * Attaches a DMA target: tells it of every mapping that is visible, and every change from now on, until the handle
   * returned is disposed, which takes everything away from it again.
   *
   * @throws {MappingError} If the target failed, or needs files and there is private memory; everything has been
   * undone.
   */
  addDmaTarget(target: DmaTarget, options: DmaTargetOptions = {}): Disposable {
    return this.#attachments.addDmaTarget(target, options);
  }

  /**
   * Says what the requests made inside `requests` would do as one, and does nothing: how many steps and system calls, which
   * slots go and come, where a running guest could see it half done, or what it would fail for. Handles made inside are
   * dead afterwards, and files they brought along are closed. Inside a batch it tells of the batch as it would be with them.
   *
   * @example What moving a region costs
   * ```ts
   * import { drawExplanation, Mappable, MemoryRange, RegionManager, VaMapper } from "membacking";
   *
   * using va = VaMapper.reserve(0x10_0000);
   * using regions = new RegionManager(va);
   * using file = Mappable.memfd("ram", 0x4000);
   * const ram = regions.newRegion({ name: "ram", range: new MemoryRange(0, 0x4000), priority: 0 });
   * ram.addMapping({ rangeInRegion: new MemoryRange(0, 0x4000), mappable: file });
   *
   * const explanation = regions.explain(() => ram.map());
   * console.assert(explanation.systemCalls === 1 && ram.mapParams === null);
   * console.log(drawExplanation(explanation));
   * ```
   */
  explain(requests: () => void): Explanation {
    if (typeof requests !== "function") throw new TypeError("A function is needed that makes the requests to explain");
    const explained = this.#map.explain(requests);
    return "plan" in explained ? explanationOf(explained.plan) : failedExplanation(explained.error);
  }

  /**
   * Begins to track which pages are written, by whomever: see `DirtyTracker`. Any number of trackers may live at a time,
   * each with a view of its own; with the first one partitions begin to log, with the last one they stop.
   *
   * @throws {MappingError} If a partition cannot be told; nothing logs then, unless for another tracker.
   */
  trackDirty(): DirtyTracker {
    return this.#tracking.track();
  }

  /**
   * Makes the requests inside `requests` one request: one plan, carried out when it returns, all or nothing. If it
   * throws, or carrying out the plan fails, nothing has changed and handles made inside are dead. A batch within a
   * batch is part of it; if the inner one throws, what it asked for is forgotten and the outer one may go on.
   *
   * Handles show the state to come inside the batch; guest memory shows the present one.
   *
   * @returns What `requests` returned.
   * @throws {TypeError} If `requests` returns a promise: requests after an `await` would not be part of the batch.
   */
  batch<T>(requests: () => T): T {
    return this.#map.batch(requests);
  }

  /**
   * Serves a client in another thread: whoever calls `RegionManagerClient.connect` or
   * `SyncRegionManagerClient.connect` with the other end of `port`. Requests of clients are served one at a time like
   * those of this thread, between its own turns of the event loop.
   *
   * A client's regions are removed when it is disposed, when the result of this is, and within a moment after its
   * thread has ended. The port is the manager's from now on, and keeps the event loop alive until then.
   *
   * What clients say and write is checked: one that breaks the protocol, or stays in an access beyond its deadline, is
   * cut off, and the logger told. What they may do is a matter of trust: whoever holds a port can change memory.
   *
   * @throws {TypeError} If the port is in use by a client or a manager.
   * @throws {DisposedError} If the manager has been disposed.
   */
  serve(port: MessagePort, options: ServeOptions = {}): Disposable {
    this.#map.check();
    this.#clients ??= this.#newServer();
    return this.#clients.serve(port, options);
  }

  /**
   * Serves a client in another process, which `spawn` starts: whoever calls `ProcessClient.connect` there with the
   * descriptor that `spawn` is handed, one end of a socket that a process can inherit while `spawn` runs.
   *
   * A change of the memory map waits for the process to come out of an access for as long as `deadline` says, 1000 ms
   * when left out; a process that does not is cut off. The client's regions and locks are gone when it is disposed, when
   * the result of this is, or soon after the process has ended. The process itself is the caller's, as `child`.
   *
   * @example Usage
   * ```ts ignore
   * using served = regions.serveProcess((fd) =>
   *   new Deno.Command(Deno.execPath(), { args: ["run", "--allow-ffi", "device.ts", String(fd)] }).spawn()
   * );
   * await served.child.status;
   * ```
   *
   * @throws {TypeError} If `spawn` returns a promise.
   * @throws {OsError} If the process has too many open files.
   * @throws {DisposedError} If the manager has been disposed.
   */
  serveProcess<T>(spawn: (fd: number) => T, options: ServeOptions = {}): { readonly child: T } & Disposable {
    this.#map.check();
    if (typeof spawn !== "function") throw new TypeError("A process is started by a function");
    this.#clients ??= this.#newServer();
    return this.#clients.serveProcess(spawn, options);
  }

  /**
   * Serves what clients have asked for by now, without a turn of the event loop: for a thread that does not come back to
   * it for long, such as one that runs a vCPU, to call between two exits. Only a client that is just connecting may have to
   * wait for the next turn of the event loop before it is let in. Of a client that says hundreds of things at once the
   * rest waits for the next call.
   *
   * @example Between two exits
   * ```ts ignore
   * for (let exit = vcpu.run(); exit.kind !== "hlt"; exit = vcpu.run()) {
   *   handle(exit);
   *   regions.poll(); // the vCPU's own thread owns the regions, and Workers wait for it
   * }
   * ```
   *
   * @returns How many requests and messages there were.
   * @throws {TypeError} Inside a batch.
   * @throws {ReentrancyError} Inside a callback of the manager.
   * @throws {DisposedError} If the manager has been disposed.
   */
  poll(): number {
    this.#map.check();
    let isInBatch = true;
    this.#map.whenDecided(() => isInBatch = false);
    // What clients ask for is theirs, and not a part of somebody's batch.
    if (isInBatch) throw new TypeError("Clients cannot be served inside a batch");
    return this.#clients?.poll() ?? 0;
  }

  /**
   * All regions, mapped or not, oldest first: plain and frozen. Inside a batch they are as they will be, like handles.
   */
  regions(): readonly RegionInfo[] {
    if (this.#map.closed) throw new DisposedError("The region manager");
    return regionInfos(this.#map.current);
  }

  /**
   * Calls `listener` once for each request from now on that is done or has failed, those of clients included, until the
   * result is disposed. Its record keeps the memory map as the request left it, which costs what has changed since.
   *
   * A listener is called before the caller goes on, so it should be quick; it cannot make requests, and what it throws is
   * ignored.
   *
   * @example What a request took
   * ```ts
   * import { GuestMemoryManager, MemoryRange } from "membacking";
   *
   * using guest = GuestMemoryManager.create({
   *   maxAddress: 0x100_0000,
   *   ram: [{ ranges: [new MemoryRange(0, 0x80_0000)] }],
   *   x86Legacy: true,
   * });
   * using _watching = guest.regions.watchRequests(({ name, range, systemCalls, microseconds }) => {
   *   console.log(`${name} ${range}: ${systemCalls} system calls, ${microseconds.toFixed(1)} us`);
   * });
   * guest.setRamVisibility(new MemoryRange(0xa0000, 0xc0000), "unmapped");
   * ```
   */
  watchRequests(listener: (record: RequestRecord) => void): Disposable {
    if (typeof listener !== "function") throw new TypeError("A function is needed that is told of requests");
    return this.#map.onlookers.report((report) => {
      try {
        const locks = this.#locks.isEmpty ? NO_LOCKS : this.#locks.entries();
        listener(new RecordedRequest(report, new RecordedMap(report.state, locks, this.#va)));
      } catch {
        // What it does is its own affair, and the request is over.
      }
    });
  }

  /** Guest memory as it is visible now. */
  get memory(): GuestMemory {
    return this.#memory;
  }

  /** Whether it has been disposed. */
  get disposed(): boolean {
    return this.#map.closed;
  }

  /** The memory map as plain data, safe for JSON. */
  inspect(): InspectNode {
    if (this.#map.closed) throw new DisposedError("The region manager");
    this.#clients?.updateLocks();
    return inspectState(this.#map.committed, this.#va, this.#locks.entries());
  }

  /**
   * Takes everything away from partitions and DMA targets, revokes locks, and gives host memory back. What fails does
   * not keep the rest from being done. Does nothing the second time.
   *
   * @throws {MembackingError} If a step failed; its `cause` is an `AggregateError` of all that did.
   */
  [Symbol.dispose](): void {
    if (this.#map.closed) return;
    const failures: unknown[] = [];
    let isPoisoned = false;
    this.#map.close((state) => {
      isPoisoned = state.damage.poisoned.size > 0;
      const revoked = this.#locks.revokeAll();
      const kept = this.#clients === undefined ? revoked.kept : [...revoked.kept, ...this.#clients.close()];
      const context = { va: this.#va, logger: this.#map.onlookers.logger };
      failures.push(...revoked.failures, ...tearDown(state, context, kept));
    });
    this.#tracking.written.close();
    this.#handOuts.close();
    // Input and output into bytes that were locked may still be under way: nothing else may ever live there.
    for (const { start, end } of this.#locks.everLocked) this.#va.keepReserved?.(start, end);
    // A slot or a view that could not be taken away still reaches these addresses: then they stay reserved for good.
    // So do addresses among which something else of the process lives now.
    if (failures.length === 0 && isPoisoned) return;
    if (failures.length === 0) {
      // What a client has locked is its own to release.
      if (this.#clients !== undefined) return this.#clients.keepWhileLocked(this.#retained);
      return this.#retained?.[Symbol.dispose]();
    }
    const steps = failures.length === 1 ? "1 step" : `${failures.length} steps`;
    throw new MembackingError(`${steps} failed while the region manager was disposed, see the cause`, {
      cause: new AggregateError(failures),
    });
  }

  #newServer(): ClientServer {
    const { base, length } = this.#va;
    const clients = new ClientServer({
      manager: {
        newRegion: (options, age) => this.#service.newRegion(options, age),
        nextAge: () => this.#service.nextId(),
        batch: (requests) => this.batch(requests),
        // SAFETY, twice: plain data, safe for JSON by contract once a range is its ends.
        regions: () =>
          this.regions().map(({ range, ...rest }) => ({ ...rest, range: [range.start, range.end] })) as Json,
        inspect: () => this.inspect() as unknown as Json,
      },
      memory: { base: this.#va instanceof HostAddresses ? base : null, length },
      state: () => this.#map.committed,
      locks: this.#locks,
      logger: this.#map.onlookers.logger,
    });
    this.#tracking.tell(clients);
    this.#map.gate = clients;
    return clients;
  }
}

const NO_LOCKS: readonly never[] = [];

/** The managers' reservations: one serves one. */
const served = new WeakSet<VaTarget<Mappable>>();
