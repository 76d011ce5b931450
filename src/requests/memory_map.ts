import type { Mappable } from "../../ffi/files/mappable.ts";
import { DisposedError, ReentrancyError } from "../core/errors.ts";
import { type Region, regionsIn, type View } from "../core/map/overlap.ts";
import { type Plan, plan } from "../core/plan/plan.ts";
import type { Span } from "../core/span.ts";
import { type Swap, swapMapping, swapRegion, swapSteps } from "../core/plan/swap.ts";
import { type Change, type Damage, emptyState, type MapParams, type Mapping, type State } from "../core/map/state.ts";
import type { VaTarget } from "../core/targets.ts";
import { closeFile, mappableOf, settleFile, settleFiles } from "../memory/file_backing.ts";
import type { LockKeeper } from "../memory/lock_keeper.ts";
import type { Logger, Quiesce } from "../targets/targets.ts";
import { isThenable, perform } from "./perform.ts";
import { quiesced, release, runSteps, settledState, type TransactionContext } from "./transaction.ts";
import { type TransactionFailure, undo } from "./undo.ts";

/** What is to become one request. */
interface Draft {
  state: State;
  readonly changed: Span[];
  /** What became of the mappings that were there. */
  readonly touched: { readonly gone: Mapping[]; readonly split: Mapping[] };
  /** The mappings it brought along, with handles of files of their own. */
  readonly added: Mapping[];
  /** Who wants to know whether it came true. */
  readonly settled: ((committed: boolean) => void)[];
}

/** Is told of each request once the next one may be made; `changed` is where the two may differ. Must not throw. */
export type Watcher = (old: View, state: State, changed: readonly Span[]) => void;

/** Keeps others off guest memory while it changes. */
export interface MapGate {
  /** Returns once nobody else accesses guest memory; nobody will until `open`. Must not throw. */
  shut(): void;
  /** Lets them go on. What differs from `old`, if anything does, differs in `changed`. Must not throw. */
  open(old: Damage, changed: readonly Span[]): void;
}

/** What the map acts through. */
export interface MemoryMapOptions {
  readonly va: VaTarget<Mappable>;
  readonly quiesce: Quiesce | undefined;
  readonly logger: Logger | undefined;
  /** Called before each request: what was known of the memory map is no longer so. */
  readonly invalidate: () => void;
}

const SILENT: Logger = { debug() {}, info() {}, warn() {}, error() {} };

/**
 * The memory map as it is now, and the one way to change it.
 *
 * ```
 *   state -> change -> plan -> lock check -> steps, or undo -> commit
 *          \____ a batch repeats this part, then goes on once
 * ```
 *
 * Requests are served one at a time: whoever calls back while one is carried out gets a `ReentrancyError`.
 */
export class MemoryMap {
  readonly #va: VaTarget<Mappable>;
  readonly #context: TransactionContext;
  readonly #logger: Logger;
  readonly #invalidate: () => void;
  readonly #watchers = new Set<Watcher>();
  /** Set once there are clients in other threads. */
  gate: MapGate | null = null;
  #state: State = emptyState();
  #draft: Draft | null = null;
  readonly #spareMappings = () => this.#va.spareMappings ?? Infinity;
  #busy = false;
  #closed = false;

  constructor(options: MemoryMapOptions) {
    this.#va = options.va;
    this.#invalidate = options.invalidate;
    this.#logger = options.logger === undefined ? SILENT : this.#guarded(options.logger);
    this.#context = { va: options.va, quiesce: options.quiesce, logger: this.#logger };
  }

  /** The state that is carried out. */
  get committed(): State {
    return this.#state;
  }

  /** The state that requests start from: the one to come inside a batch. */
  get current(): State {
    return this.#draft === null ? this.#state : this.#draft.state;
  }

  /** Whether it has been closed. */
  get closed(): boolean {
    return this.#closed;
  }

  /** The logger, guarded: what it throws is ignored, and it cannot make requests. */
  get logger(): Logger {
    return this.#logger;
  }

  /**
   * Throws unless a request may be made now.
   *
   * @throws {ReentrancyError} If one is being carried out.
   * @throws {DisposedError} If the map has been closed.
   */
  check(): void {
    if (this.#busy) throw new ReentrancyError();
    if (this.#closed) throw new DisposedError("The region manager");
  }

  /**
   * Makes one request out of what it changes about `current`: on its own, or as a part of the batch it is made in.
   * `region` is the region it is about, and `added` a mapping whose file is the map's to close.
   */
  request(what: string, region: Region | null, locks: LockKeeper, change: Change, added?: Mapping): void {
    const draft = this.#draft;
    const changed = region === null || this.#state.stale.isEmpty
      ? change.changed
      : [...change.changed, ...this.#state.stale.overlapping(region.range.start, region.range.end)];
    if (draft === null) {
      return this.#commit(what, region, locks, changed === change.changed ? change : { ...change, changed }, added);
    }
    if (added !== undefined) draft.added.push(added);
    draft.state = change.state;
    for (const span of changed) draft.changed.push(span);
    for (const mapping of change.touched?.gone ?? []) draft.touched.gone.push(mapping);
    for (const mapping of change.touched?.split ?? []) draft.touched.split.push(mapping);
  }

  /**
   * Backs `[start, end)` of `region` by `mapping`, or by nothing for `null`, where that is a swap. The mapping's file is
   * the map's to close if it fails.
   *
   * @returns Whether it was one; if not, nothing has been done.
   */
  swapMapping(region: Region, start: number, end: number, mapping: Mapping | null, locks: LockKeeper): boolean {
    if (!this.#isQuiet(locks)) return false;
    let failed = true;
    this.#busy = true;
    try {
      const swap = swapMapping(this.#state, region, start, end, mapping, this.#spareMappings);
      if (swap !== null) this.#swap(swap, start, end);
      failed = false;
      return swap !== null;
    } finally {
      this.#busy = false;
      if (failed && mapping !== null) closeFile(mapping);
    }
  }

  /** Maps `region`, or unmaps it where `params` are `null`, where that is a swap; as `swapMapping`. */
  swapRegion(region: Region, params: MapParams | null, locks: LockKeeper): boolean {
    if (!this.#isQuiet(locks)) return false;
    this.#busy = true;
    try {
      const swap = swapRegion(this.#state, region, params, this.#spareMappings);
      if (swap !== null) this.#swap(swap, region.range.start, region.range.end);
      return swap !== null;
    } finally {
      this.#busy = false;
    }
  }

  /** Whether a request may be a swap: it stands for itself, and nobody looks on. */
  #isQuiet(locks: LockKeeper): boolean {
    return this.#draft === null && this.gate === null && this.#watchers.size === 0 && this.#logger === SILENT &&
      locks.isEmpty;
  }

  #swap(swap: Swap, start: number, end: number): void {
    const old = this.#state;
    const { state, mapping, writable, step, gone } = swap;
    this.#invalidate();
    let failure: TransactionFailure | null = null;
    let done = 0;
    try {
      if (step !== null && step.to === null) {
        perform(step, this.#context);
        done++;
      }
      if (mapping === null) this.#va.remove(start, end);
      else this.#va.map(start, end, mappableOf(mapping), start + mapping.delta, writable, mapping.policy);
      done++;
      if (step !== null && step.to !== null) perform(step, this.#context);
    } catch (cause) {
      failure = undo(swapSteps(old, swap, start, end), done, cause, old, this.#context);
    }
    this.#commitState(failure === null ? state : failure.state);
    if (failure !== null) throw failure.error;
    if (gone !== null) settleFile(gone);
  }

  /** Makes the requests inside `requests` one; a batch in a batch is part of it, and forgotten alone if it throws. */
  batch<T>(requests: () => T, locks: LockKeeper): T {
    this.check();
    const outer = this.#draft;
    const draft = outer ?? newDraft(this.#state);
    const mark = {
      state: draft.state,
      changed: draft.changed.length,
      gone: draft.touched.gone.length,
      split: draft.touched.split.length,
      added: draft.added.length,
      settled: draft.settled.length,
    };
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
      draft.changed.length = mark.changed;
      draft.touched.gone.length = mark.gone;
      draft.touched.split.length = mark.split;
      for (const mapping of draft.added.splice(mark.added)) closeFile(mapping);
      settle(draft.settled.splice(mark.settled), false);
      throw error;
    } finally {
      this.#draft = outer;
    }
    if (outer === null) this.#commit("batch", null, locks, draft, undefined, draft);
    return result;
  }

  /** Calls `settled` once it is known whether the batch under way came true: at once where there is none. */
  whenSettled(settled: (committed: boolean) => void): void {
    if (this.#draft === null) settled(true);
    else this.#draft.settled.push(settled);
  }

  /** Tells `watcher` of each request from now on, until the result is disposed. */
  watch(watcher: Watcher): Disposable {
    this.#watchers.add(watcher);
    return { [Symbol.dispose]: () => void this.#watchers.delete(watcher) };
  }

  /** Ends all requests for good: `tearDown` is handed the last state, and callbacks in it cannot make any. */
  close(tearDown: (state: State) => void): void {
    if (this.#busy || this.#draft !== null) throw new ReentrancyError();
    this.#closed = true;
    this.#busy = true;
    this.#invalidate();
    try {
      tearDown(this.#state);
    } finally {
      let { regions } = this.#state;
      for (const region of regionsIn(this.#state.layers)) {
        const mappings = regions.get(region)?.mappings ?? [];
        settleFiles({ gone: [...mappings].map(({ value }) => value), split: [] });
        regions = regions.with(region, undefined);
      }
      this.#state = emptyState();
      this.#busy = false;
    }
  }

  #commit(
    what: string,
    region: Region | null,
    locks: LockKeeper,
    change: Change,
    added?: Mapping,
    draft?: Draft,
  ): void {
    const old = this.#state;
    let committed = change.state === old && change.changed.length === 0;
    try {
      if (committed) return;
      this.#busy = true;
      // Nobody looks at memory while it changes; callbacks that try are refused like requests.
      this.#invalidate();
      const planned = plan(old, change.state, change.changed, this.#spareMappings);
      if (this.gate !== null) this.gate.shut();
      locks.check(planned);
      if (planned.torn.length === 0) this.#carryOut(planned, change);
      else this.#carryOutHeld(planned, change);
      committed = true;
      if (this.#logger !== SILENT) {
        this.#logger.debug(region === null ? what : `${what}: region "${region.name}" ${region.range}`, {
          steps: planned.steps.length,
        });
      }
    } finally {
      if (this.gate !== null) this.gate.open(old, change.changed);
      this.#busy = false;
      if (added !== undefined && !committed) closeFile(added);
      if (draft !== undefined) {
        if (!committed) { for (const mapping of draft.added) closeFile(mapping); }
        settle(draft.settled, committed);
      }
      if (this.#watchers.size > 0 && this.#state !== old) this.#tell(old, change.changed);
    }
  }

  #carryOut(planned: Plan, change: Change): void {
    const old = this.#state;
    const failure = runSteps(planned.steps, old, this.#context);
    const state = failure !== null ? failure.state : settledState(planned, this.#context);
    this.#commitState(state);
    if (failure !== null) throw failure.error;
    if (change.touched !== undefined) settleFiles(change.touched);
  }

  #commitState(state: State): void {
    const old = this.#state;
    this.#state = state;
    if (state.regions !== old.regions) old.regions.retire();
    if (state.vmas !== old.vmas) this.#va.noteMappings?.(state.vmas);
  }

  #carryOutHeld(planned: Plan, change: Change): void {
    const hold = quiesced(planned.torn, this.#context);
    try {
      this.#carryOut(planned, change);
    } finally {
      // The request is done or undone by now, and the caller is told that; what goes wrong here cannot change it.
      release(hold, this.#context);
    }
  }

  #tell(old: View, changed: readonly Span[]): void {
    for (const watcher of this.#watchers) watcher(old, this.#state, changed);
  }

  /** A logger must not change what a request does: what it throws is ignored, and it cannot make requests. */
  #guarded(logger: Logger): Logger {
    const guard = (level: "debug" | "info" | "warn" | "error") => (msg: string, ...args: unknown[]) => {
      const wasBusy = this.#busy;
      this.#busy = true;
      try {
        const result: unknown = logger[level](msg, ...args);
        if (isThenable(result)) Promise.resolve(result).catch(() => {});
      } catch {
        // Nobody is left to tell.
      } finally {
        this.#busy = wasBusy;
      }
    };
    return { debug: guard("debug"), info: guard("info"), warn: guard("warn"), error: guard("error") };
  }
}

function newDraft(state: State): Draft {
  return { state, changed: [], touched: { gone: [], split: [] }, added: [], settled: [] };
}

/** Tells those who wait; what failed is taken back from the last to the first. */
function settle(waiting: readonly ((committed: boolean) => void)[], committed: boolean): void {
  for (const settled of committed ? waiting : waiting.toReversed()) settled(committed);
}
