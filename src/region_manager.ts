import type { Mappable } from "../ffi/mappable.ts";
import { DisposedError, hex, MembackingError, ReentrancyError } from "./core/errors.ts";
import { GPA_LIMIT, MemoryRange, PAGE_SIZE } from "./core/memory_range.ts";
import { fragments, type OverlapRule, type Region } from "./core/overlap.ts";
import { plan } from "./core/plan.ts";
import type { Entry } from "./core/range_map.ts";
import type { Span } from "./core/span.ts";
import {
  addDmaTarget,
  addPartition,
  addRegion,
  type Change,
  EMPTY_STATE,
  type MapParams,
  type Mapping,
  mapRegion,
  type PieceCount,
  removeRegion,
  setMapping,
  type State,
  unmapRegion,
} from "./core/state.ts";
import type { Partition, VaTarget } from "./core/targets.ts";
import { type Piece, piecesIn } from "./core/view.ts";
import { closeUnused, settleFiles } from "./file_backing.ts";
import { GuestMemory } from "./guest_memory.ts";
import { type InspectNode, inspectState } from "./inspect.ts";
import { LockKeeper } from "./lock_keeper.ts";
import { mappingOf, rangeIn } from "./mapping_options.ts";
import { type MappingOptions, RegionHandle, type RegionRequests } from "./region_handle.ts";
import type { DmaTarget, Logger, Quiesce } from "./targets.ts";
import { runTransaction, tearDown } from "./transaction.ts";

/** How a `RegionManager` works. */
export interface RegionManagerOptions {
  /** `"nested"` (the default): of two overlapping regions the higher one contains the lower. `"any"`: no such rule. */
  overlap?: OverlapRule;
  /** Is told what the manager does; `console` fits. Silent by default. A logger that throws is ignored. */
  logger?: Logger;
  /** Holds vCPUs while a change that is not atomic to them is made. Without it, changes are made all the same. */
  quiesce?: Quiesce;
}

/** What a region is. */
export interface RegionOptions {
  /** For messages and inspection; need not be unique. */
  name: string;
  /** The GPA range it occupies, not empty and inside the reservation. */
  range: MemoryRange;
  /** 0 to 255; of two mapped regions the higher one is visible. */
  priority: number;
  /** `"ram"` (the default) or `"device"`; DMA targets and shareable regions tell them apart. */
  type?: "ram" | "device";
  /**
   * What a guest access to an unbacked address of the region does. `"exit"` (the default): an MMIO exit, and each
   * mapping has a slot of its own. `"fault"`: KVM_RUN fails with EFAULT, and one slot covers the whole region, so that
   * changing its mappings costs no slot change.
   */
  holes?: "exit" | "fault";
}

/** How a partition is attached. */
export interface PartitionOptions {
  /** Added to every GPA, in bytes: the partition sees region address x at `x + offset`. Page-aligned, 0 by default. */
  offset?: number;
  /** Whether all its memory is pinned, by the partition's `pinRange`. */
  pin?: boolean;
}

/** How a DMA target is attached. */
export interface DmaTargetOptions {
  /** Whether it can only map memory with a file descriptor: a request that would show it private memory fails then. */
  needsFd?: boolean;
}

/** What is to become one request. */
interface Draft {
  state: State;
  readonly changed: Span[];
  /** The mappings that came and went, for counting the files in use. */
  readonly pieces: PieceCount[];
  /** The mappings it brought along, with handles of files of their own. */
  readonly added: Mapping[];
  /** Who wants to know whether it came true. */
  readonly settled: ((committed: boolean) => void)[];
}

/** Is told of each request once the next one may be made; `changed` is where the two may differ. Must not throw. */
type Watcher = (old: State, state: State, changed: readonly Span[]) => void;

const SILENT: Logger = { debug() {}, info() {}, warn() {}, error() {} };

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
  /** Guest memory as it is visible now. */
  readonly memory: GuestMemory;
  readonly #va: VaTarget<Mappable>;
  readonly #overlap: OverlapRule;
  readonly #logger: Logger;
  readonly #quiesce: Quiesce | undefined;
  readonly #retained: Disposable | undefined;
  readonly #locks: LockKeeper;
  readonly #requests: RegionRequests;
  readonly #watchers = new Set<Watcher>();
  #state: State = EMPTY_STATE;
  #draft: Draft | null = null;
  #busy = false;
  #disposed = false;
  #nextId = 1;

  /**
   * Manages the addresses that `va` reserved; one reservation serves one manager.
   *
   * @throws {DisposedError} If `va` has been disposed.
   * @throws {TypeError} If `va` serves another manager.
   */
  constructor(va: VaTarget<Mappable>, options: RegionManagerOptions = {}) {
    const { overlap = "nested", logger, quiesce } = options;
    if (overlap !== "nested" && overlap !== "any") {
      throw new TypeError(`Overlap must be "nested" or "any", got ${JSON.stringify(overlap)}`);
    }
    if (served.has(va)) throw new TypeError("One VaMapper serves one RegionManager, reserve another");
    this.#retained = va.retain?.();
    served.add(va);
    this.#va = va;
    this.#overlap = overlap;
    this.#logger = logger === undefined ? SILENT : this.#guarded(logger);
    this.#quiesce = quiesce;
    this.#locks = new LockKeeper(va, () => this.#state, () => this.#check());
    this.memory = new GuestMemory(this.#locks);
    this.#requests = {
      map: (region, params) => this.#map(region, params),
      unmap: (region) => this.#unmap(region),
      addMapping: (region, mapping) => this.#addMapping(region, mapping),
      removeMappings: (region, range) => this.#removeMappings(region, range),
      remove: (region) => this.#remove(region),
      teardown: (region, signal) => this.#teardown(region, signal),
      paramsOf: (region) => this.#current.regions.get(region.id)?.params ?? null,
      visibleOf: (region) =>
        fragments(this.#current.visible, region).map(({ start, end }) => new MemoryRange(start, end)),
    };
  }

  /**
   * Adds a region, unmapped and without mappings.
   *
   * @throws {RegionOverlapError} If it overlaps another region in a way the overlap rule forbids; names both.
   * @throws {RangeError} If the range is empty or beyond the reservation, or the priority is not 0 to 255.
   */
  newRegion(options: RegionOptions): RegionHandle {
    const { name, range, priority, type = "ram", holes = "exit" } = options;
    if (typeof name !== "string") throw new TypeError("A region needs a name");
    if (!(range instanceof MemoryRange)) throw new TypeError(`Region "${name}" needs a MemoryRange`);
    if (range.isEmpty) throw new RangeError(`Region "${name}" needs a range that is not empty`);
    if (range.end > this.#va.length) {
      throw new RangeError(
        `Region "${name}" (${range}) reaches beyond the reservation of ${hex(this.#va.length)} bytes`,
      );
    }
    if (!Number.isInteger(priority) || priority < 0 || priority > 255) {
      throw new RangeError(`Priority of region "${name}" must be an integer from 0 to 255, got ${priority}`);
    }
    if (type !== "ram" && type !== "device") throw new TypeError(`Region type must be "ram" or "device", got ${type}`);
    if (holes !== "exit" && holes !== "fault") throw new TypeError(`Holes must be "exit" or "fault", got ${holes}`);
    const region: Region = { id: this.#nextId++, name, range, priority, type, holes };
    this.#check();
    this.#request("add", region, (state) => addRegion(state, region, this.#overlap));
    return new RegionHandle(region, this.#requests);
  }

  /**
   * Attaches a partition: tells it everything that is visible, and every change from now on, until the handle returned
   * is disposed, which takes everything away from it again.
   *
   * @throws {MappingError} If the partition failed; everything has been undone.
   * @throws {LimitError} If it cannot hold that many ranges.
   * @throws {RangeError} If the offset is not page-aligned, or guest memory would not fit below 2^52 with it.
   */
  addPartition(partition: Partition, options: PartitionOptions = {}): Disposable {
    const { offset = 0, pin = false } = options;
    if (!Number.isSafeInteger(offset) || offset % PAGE_SIZE !== 0) {
      throw new RangeError(`Partition offset must be a multiple of ${hex(PAGE_SIZE)}, got ${offset}`);
    }
    if (offset < 0 || offset + this.#va.length > GPA_LIMIT) {
      throw new RangeError(
        `Guest memory of ${hex(this.#va.length)} bytes does not fit below ${hex(GPA_LIMIT)} at offset ${hex(offset)}`,
      );
    }
    if (this.#current.partitions.some(({ target }) => target === partition)) {
      throw new TypeError("The partition is attached already");
    }
    const id = this.#nextId++;
    this.#check();
    this.#request("add a partition", null, (state) => ({
      state: addPartition(state, { id, target: partition, offset, pin }),
      changed: [],
    }));
    const isAttached = (state: State) => state.partitions.some((attached) => attached.id === id);
    return this.#attachment("remove a partition", isAttached, (state) => ({
      ...state,
      partitions: state.partitions.filter((attached) => attached.id !== id),
    }));
  }

  /**
   * Attaches a DMA target: tells it of every mapping that is visible, and every change from now on, until the handle
   * returned is disposed, which takes everything away from it again.
   *
   * @throws {MappingError} If the target failed, or needs files and there is private memory; everything has been
   * undone.
   */
  addDmaTarget(target: DmaTarget, options: DmaTargetOptions = {}): Disposable {
    if (this.#current.dmaTargets.some((attached) => attached.target === target)) {
      throw new TypeError("The DMA target is attached already");
    }
    const id = this.#nextId++;
    this.#check();
    this.#request("add a DMA target", null, (state) => ({
      state: addDmaTarget(state, { id, target, needsFd: options.needsFd ?? false }),
      changed: [],
    }));
    const isAttached = (state: State) => state.dmaTargets.some((attached) => attached.id === id);
    return this.#attachment("remove a DMA target", isAttached, (state) => ({
      ...state,
      dmaTargets: state.dmaTargets.filter((attached) => attached.id !== id),
    }));
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
    this.#check();
    const outer = this.#draft;
    const draft = outer ?? newDraft(this.#state);
    const mark = { ...draft, changes: draft.changed.length, counts: draft.pieces.length, waits: draft.settled.length };
    this.#draft = draft;
    let result: T;
    try {
      result = requests();
      if (result instanceof Promise) {
        result.catch(() => {});
        throw new TypeError("A batch must make its requests synchronously");
      }
    } catch (error) {
      draft.state = mark.state;
      draft.changed.length = mark.changes;
      draft.pieces.length = mark.counts;
      settle(draft.settled.splice(mark.waits), false);
      if (outer === null) abandon(draft);
      throw error;
    } finally {
      this.#draft = outer;
    }
    if (outer === null) this.#commit("batch", draft);
    return result;
  }

  /**
   * Calls `settled` once it is known whether the batch under way came true: at once where there is none. Must not throw.
   *
   * @internal For what is built on regions and has state of its own.
   */
  whenSettled(settled: (committed: boolean) => void): void {
    if (this.#draft === null) settled(true);
    else this.#draft.settled.push(settled);
  }

  /**
   * Tells `watcher` of each request from now on, until the result is disposed.
   *
   * @internal
   */
  watch(watcher: Watcher): Disposable {
    this.#watchers.add(watcher);
    return { [Symbol.dispose]: () => void this.#watchers.delete(watcher) };
  }

  /**
   * What backs `[start, end)` now, cut to it, in order. Holes are left out.
   *
   * @internal
   */
  pieces(start: number, end: number): Entry<Piece>[] {
    this.#check();
    return piecesIn(this.#state, start, end);
  }

  /** The memory map as plain data, safe for JSON. */
  inspect(): InspectNode {
    return inspectState(this.#state, this.#va, this.#locks.entries());
  }

  /**
   * Takes everything away from partitions and DMA targets, revokes locks, and gives host memory back. What fails does
   * not keep the rest from being done. Does nothing the second time.
   *
   * @throws {MembackingError} If a step failed; its `cause` is an `AggregateError` of all that did.
   */
  [Symbol.dispose](): void {
    if (this.#disposed) return;
    if (this.#busy || this.#draft !== null) throw new ReentrancyError();
    this.#disposed = true;
    this.#busy = true;
    this.memory.invalidate();
    try {
      const { failures, kept } = this.#locks.revokeAll();
      const old = this.#state;
      const context = { va: this.#va, quiesce: undefined, logger: this.#logger };
      failures.push(...tearDown(old, context, kept));
      for (const { value } of old.regions) {
        settleFiles([...value.mappings].map(({ value: mapping }) => ({ mapping, by: -1 })));
      }
      this.#state = EMPTY_STATE;
      // A slot or a view that could not be taken away still reaches these addresses: then they stay reserved for good.
      if (failures.length === 0) this.#retained?.[Symbol.dispose]();
      else {
        throw new MembackingError(`${failures.length} steps failed while the region manager was disposed`, {
          cause: new AggregateError(failures),
        });
      }
    } finally {
      this.#busy = false;
    }
  }

  /** The state that requests start from: the draft's inside a batch. */
  get #current(): State {
    return this.#draft?.state ?? this.#state;
  }

  #check(): void {
    if (this.#busy) throw new ReentrancyError();
    if (this.#disposed) throw new DisposedError("The region manager");
  }

  #checkLive(region: Region): void {
    this.#check();
    if (this.#current.regions.get(region.id) === undefined) throw new DisposedError(`Region "${region.name}"`);
  }

  #map(region: Region, params: Partial<MapParams>): void {
    this.#checkLive(region);
    const { writable = true, executable = true, prefetch = false } = params;
    this.#request("map", region, (state) => mapRegion(state, region, { writable, executable, prefetch }));
  }

  #unmap(region: Region): void {
    this.#checkLive(region);
    this.#request("unmap", region, (state) => unmapRegion(state, region));
  }

  #addMapping(region: Region, options: MappingOptions): void {
    this.#checkLive(region);
    const { mapping, start, end } = mappingOf(region, options, this.#va);
    this.#request("add mapping to", region, (state) => setMapping(state, region, start, end, mapping), mapping);
  }

  #removeMappings(region: Region, rangeInRegion: MemoryRange): void {
    this.#checkLive(region);
    const { start, end } = rangeIn(region, rangeInRegion);
    this.#request("remove mappings from", region, (state) => setMapping(state, region, start, end, null));
  }

  #remove(region: Region): void {
    if (this.#disposed) return;
    this.#check();
    if (this.#current.regions.get(region.id) === undefined) return;
    this.#request("remove", region, (state) => removeRegion(state, region));
  }

  async #teardown(region: Region, signal: AbortSignal | undefined): Promise<void> {
    if (this.#disposed || this.#current.regions.get(region.id) === undefined) return;
    await this.#locks.drain(region, signal);
    this.#remove(region);
  }

  /** One request: on its own, or as a part of the batch it is made in. */
  #request(what: string, region: Region | null, request: (state: State) => Change, added?: Mapping): void {
    const draft = this.#draft ?? newDraft(this.#state);
    if (added !== undefined) draft.added.push(added);
    let change: Change;
    try {
      change = request(draft.state);
    } catch (error) {
      if (this.#draft === null) abandon(draft);
      throw error;
    }
    draft.state = change.state;
    for (const span of change.changed) draft.changed.push(span);
    if (region !== null && this.#state.stale.size > 0) {
      draft.changed.push(...this.#state.stale.overlapping(region.range.start, region.range.end));
    }
    if (change.pieces !== undefined) draft.pieces.push(...change.pieces);
    if (this.#draft === null) this.#commit(region === null ? what : `${what} region "${region.name}"`, draft);
  }

  #commit(what: string, draft: Draft): void {
    const old = this.#state;
    const next = draft.state;
    let committed = next === old;
    try {
      if (committed) return;
      this.#busy = true;
      // Nobody looks at memory while it changes; callbacks that try are refused like requests.
      this.memory.invalidate();
      const planned = plan(old, next, draft.changed, { spareMappings: this.#va.spareMappings ?? Infinity });
      this.#locks.check(planned.steps);
      const context = { va: this.#va, quiesce: this.#quiesce, logger: this.#logger };
      runTransaction(planned, old, context, (state) => {
        this.#state = state;
        this.#va.noteMappings?.(state.vmas);
        committed = state === planned.state;
        if (committed) settleFiles(draft.pieces);
      });
      this.#logger.debug(what, { steps: planned.steps.length });
    } finally {
      this.#busy = false;
      abandon(draft);
      settle(draft.settled, committed);
      if (this.#state !== old) { for (const watcher of this.#watchers) watcher(old, this.#state, draft.changed); }
    }
  }

  #attachment(what: string, isAttached: (state: State) => boolean, without: (state: State) => State): Disposable {
    return {
      [Symbol.dispose]: () => {
        if (this.#disposed) return;
        this.#check();
        if (!isAttached(this.#current)) return;
        this.#request(what, null, (state) => ({ state: without(state), changed: [] }));
      },
    };
  }

  /** A logger must not change what a request does: what it throws is ignored, and it cannot make requests. */
  #guarded(logger: Logger): Logger {
    const guard = (level: "debug" | "info" | "warn" | "error") => (msg: string, ...args: unknown[]) => {
      const { busy } = { busy: this.#busy };
      this.#busy = true;
      try {
        logger[level](msg, ...args);
      } catch {
        // Nobody is left to tell.
      } finally {
        this.#busy = busy;
      }
    };
    return { debug: guard("debug"), info: guard("info"), warn: guard("warn"), error: guard("error") };
  }
}

/** The managers' reservations: one serves one. */
const served = new WeakSet<VaTarget<Mappable>>();

function newDraft(state: State): Draft {
  return { state, changed: [], pieces: [], added: [], settled: [] };
}

/** Tells those who wait; what failed is taken back from the last to the first. */
function settle(waiting: readonly ((committed: boolean) => void)[], committed: boolean): void {
  for (const settled of committed ? waiting : waiting.toReversed()) settled(committed);
}

/** Closes the files a draft brought along and no region uses: all of them after a failure. */
function abandon(draft: Draft): void {
  for (const mapping of draft.added) closeUnused(mapping);
}
