import type { Mappable } from "../../ffi/files/mappable.ts";
import { DisposedError, MembackingError, ReentrancyError } from "../core/errors.ts";
import type { Change, OwnRange } from "../core/map/edits.ts";
import type { Mapping, Region } from "../core/map/region.ts";
import { type Damage, State, UNDAMAGED } from "../core/map/state.ts";
import { type Plan, Planner } from "../core/plan/plan.ts";
import { afterDiscard, type Discard, planDiscard } from "../core/plan/discard.ts";
import type { Span } from "../core/span.ts";
import type { VaTarget } from "../core/targets.ts";
import { closeFile, releaseFiles } from "../memory/file_backing.ts";
import type { WrittenPages } from "../memory/written_pages.ts";
import type { MemoryLocks } from "../memory/memory_locks.ts";
import { Draft, type Outcome } from "./draft.ts";
import { isThenable } from "../targets/sync.ts";
import { TargetFacts } from "./facts.ts";
import { forgetRegions } from "./tear_down.ts";
import type { MemoryMapOptions } from "./map_options.ts";
import { type Deed, type Request, withDamage } from "./request.ts";
import type { MapGate } from "./map_gate.ts";
import { Onlookers } from "./onlookers.ts";
import { giveUp, Transaction, type TransactionContext } from "./transaction.ts";

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
  readonly #invalidate: () => void;
  readonly #locks: MemoryLocks;
  readonly #written: WrittenPages;
  readonly #planner = new Planner();
  /** Those who are told what requests have done. */
  readonly onlookers: Onlookers;
  /** Set once there are clients in other threads. */
  gate: MapGate | null = null;
  #state: State = State.empty();
  #draft: Draft | null = null;
  /** The batch of which those who wait have not been told what became of it. */
  #undecided: Draft | null = null;
  #busy = false;
  #closed = false;
  /** The request whose effects may have begun: stored before the first of them, until it is committed or undone. */
  #unfinished: Transaction | null = null;
  /** For those who look at the state whenever they are told, one after another. */
  readonly #present = () => this.#state;
  readonly #facts = new TargetFacts();
  /** Memory that no region has any more and that the host did not take back yet. */
  #kept: readonly OwnRange[] = [];

  constructor(options: MemoryMapOptions) {
    const { va, quiesce, logger, written } = options;
    this.#va = va;
    this.#written = written;
    this.#invalidate = options.invalidate;
    this.#locks = options.locks;
    this.onlookers = new Onlookers(logger, (call) => this.whileBusy(call));
    this.#context = { va, quiesce, logger: this.onlookers.logger, written };
  }

  /** The state that is carried out. */
  get committed(): State {
    if (this.#unfinished !== null && !this.#busy) this.#recover(this.#unfinished);
    return this.#state;
  }

  /** The state that requests start from: the one to come inside a batch. */
  get current(): State {
    if (this.#unfinished !== null && !this.#busy) this.#recover(this.#unfinished);
    return this.#draft === null ? this.#state : this.#draft.state;
  }

  /** Whether it has been closed. */
  get closed(): boolean {
    return this.#closed;
  }

  /**
   * Throws unless a request may be made now, or memory be looked at.
   *
   * @throws {ReentrancyError} If a request is being carried out.
   * @throws {DisposedError} If the map has been closed.
   */
  check(): void {
    if (this.#busy) throw new ReentrancyError();
    if (this.#closed) throw new DisposedError("The region manager");
    if (this.#unfinished !== null) this.#recover(this.#unfinished);
    if (this.#undecided !== null && this.#draft === null) this.#decide(this.#undecided);
  }

  /**
   * Throws unless a request may be made now that cannot be part of a batch.
   *
   * @throws {TypeError} Inside a batch.
   */
  checkAlone(name: string): void {
    this.check();
    if (this.#draft !== null) throw new TypeError(`A request to ${name} cannot be part of a batch`);
  }

  /**
   * Makes one request out of what it changes about `current`: on its own, or as a part of the batch it is made in.
   * `region` is the region it is about, and `added` a mapping whose file is the map's to close.
   */
  request(name: string, region: Region | null, change: Change, added: Mapping | null = null): void {
    const { damage } = this.#state;
    if (region !== null && damage !== UNDAMAGED) change = withOutOfStep(change, region, damage);
    if (this.#draft !== null) this.#draft.add(name, region, change, added);
    else this.#commit({ name, region, change, added, draft: null, deed: null });
  }

  /**
   * Makes a request that does something to memory itself as well. `added` are the mappings it brings along, whose files
   * are the map's to close.
   *
   * @throws {TypeError} Inside a batch, of which it cannot be a part.
   */
  requestWithDeed(name: string, deed: Deed, makeChange: (state: State) => Change, added: readonly Mapping[]): void {
    const draft = new Draft(this.#state);
    try {
      this.checkAlone(name);
      draft.add(name, null, makeChange(this.#state), null);
    } catch (error) {
      for (const mapping of added) closeFile(mapping);
      throw error;
    }
    draft.added.push(...added);
    this.#commit({ name, region: null, change: draft, added: null, draft, deed });
  }

  /** Makes the requests inside `requests` one; a batch in a batch is part of it, and forgotten alone if it throws. */
  batch<T>(requests: () => T): T {
    this.check();
    const outer = this.#draft;
    const draft = outer ?? new Draft(this.#state);
    const mark = draft.mark();
    this.#draft = this.#undecided = draft;
    let result: T;
    try {
      result = requests();
      if (result instanceof Promise) {
        result.catch(() => {});
        throw new TypeError("A batch must make its requests synchronously");
      }
    } catch (error) {
      if (outer === null) this.#decide(draft);
      else draft.goBackTo(mark);
      throw error;
    } finally {
      this.#draft = outer;
    }
    if (outer === null) this.#commit({ name: "batch", region: null, change: draft, added: null, draft, deed: null });
    return result;
  }

  /**
   * Plans what `requests` ask for and forgets it again. Inside a batch that is the batch as it would be with them.
   *
   * @returns The plan, or what it would have failed for.
   */
  explain(requests: () => unknown): { readonly plan: Plan } | { readonly error: unknown } {
    this.check();
    const outer = this.#draft;
    const draft = outer ?? new Draft(this.#state);
    const mark = draft.mark();
    this.#draft = this.#undecided = draft;
    try {
      if (isThenable(requests())) throw new TypeError("Requests to be explained must be made synchronously");
      return { plan: this.#planAside(draft) };
    } catch (error) {
      return { error };
    } finally {
      this.#draft = outer;
      if (outer === null) this.#decide(draft);
      else draft.goBackTo(mark);
    }
  }

  /** Plans a change that is not to be carried out. */
  #planAside(change: Change): Plan {
    this.#busy = true;
    try {
      const planned = this.#planner.plan(this.#state, change, this.#facts.of(change.state, this.#va));
      if (this.gate !== null) this.gate.shut();
      this.#locks.check(planned);
      return planned;
    } finally {
      if (this.gate !== null) this.gate.open([]);
      this.#busy = false;
    }
  }

  /** Calls `outcome` once it is known whether the batch under way came true: at once where there is none. */
  whenDecided(outcome: Outcome): void {
    if (this.#draft === null) outcome(true);
    else this.#draft.waiting.push(outcome);
  }

  /** Whether requests are gathered for a batch now. */
  get isInBatch(): boolean {
    return this.#draft !== null;
  }

  /**
   * Gives the pages of RAM back by `giveBack`, outside of any batch. It cannot be undone, so it happens first; then a
   * request puts in order what depends on it.
   */
  discard(span: Span, giveBack: (discard: Discard) => void): void {
    this.check();
    const old = this.#state;
    const began = this.onlookers.wantReports ? performance.now() : 0;
    const discard = planDiscard(old, span.start, span.end);
    try {
      this.#busy = true;
      this.#invalidate();
      this.gate?.shut();
      this.#locks.checkSpan(span);
      // Before: it may fail on its way, and nobody can take what is marked until it is over.
      this.#written.mark(span.start, span.end);
      giveBack(discard);
      this.#busy = false;
      const after = afterDiscard(old, span, discard);
      if (after === null) {
        if (began === 0) return;
        const microseconds = (performance.now() - began) * 1000;
        const report = { name: "discard", region: null, parts: [], changed: [span], plan: null, error: null };
        return this.onlookers.tell({ ...report, microseconds, state: old });
      }
      this.#state = after.state;
      this.#forget(old);
      const { change } = after;
      this.#commit({ name: "discard", region: null, change, added: null, draft: null, deed: null });
    } finally {
      this.#busy = false;
      this.gate?.open([span]);
    }
  }

  /** Tells of a request that could not even be thought of. */
  refused(name: string, region: Region, error: unknown): void {
    if (!this.onlookers.wantReports) return;
    const nothing = { parts: [], changed: [], plan: null, microseconds: 0 };
    this.onlookers.tell({ name, region, error, state: this.#state, ...nothing });
  }

  /** Ends all requests for good: `tearDown` is handed the last state, and callbacks in it cannot make any. */
  close(tearDown: (state: State) => void): void {
    if (this.#busy || this.#draft !== null) throw new ReentrancyError();
    if (this.#unfinished !== null) this.#recover(this.#unfinished);
    if (this.#undecided !== null) this.#decide(this.#undecided);
    this.#closed = true;
    this.#busy = true;
    this.#invalidate();
    try {
      tearDown(this.#state);
      giveUp(this.#kept, this.#context);
    } finally {
      forgetRegions(this.#state);
      this.#state = State.empty();
      this.#busy = false;
    }
  }

  #commit(request: Request): void {
    const { change, deed } = request;
    const old = this.#state;
    const began = this.onlookers.wantReports ? performance.now() : 0;
    if (change.state === old && change.changed.length + change.removed.length === 0 && deed === null) {
      if (request.draft !== null) request.draft.isDone = true;
      return this.#finish(old, request, true, null, null, began);
    }
    let planned: Plan | null = null;
    let failure: unknown = null;
    let committed = false;
    try {
      this.#busy = true;
      // Nobody looks at memory while it changes; callbacks that try are refused like requests.
      this.#invalidate();
      if (this.#written.isOn) this.#written.beforeRequest(old);
      planned = this.#planner.plan(old, change, this.#facts.of(change.state, this.#va));
      if (this.gate !== null) this.gate.shut();
      if (deed === null || !deed.keepsBytes) this.#locks.check(planned);
      this.#carryOut(new Transaction(planned, request));
      committed = true;
      releaseFiles(change.gone, change.split);
    } catch (error) {
      failure = error;
      throw error;
    } finally {
      this.#busy = false;
      // What was interrupted is left to `check`, which knows more than this.
      if (this.#unfinished === null) this.#finish(old, request, committed, planned, failure, began);
    }
  }

  /** Carries out a plan, all of it or nothing, and makes its state the present one. */
  #carryOut(transaction: Transaction): void {
    this.#unfinished = transaction;
    const context = this.#context;
    try {
      transaction.begin(context);
    } catch (error) {
      transaction.release(context);
      this.#unfinished = null;
      throw error;
    }
    const old = this.#state;
    const { plan, request: { draft } } = transaction;
    const failure = transaction.run(context);
    // Without a call in between, so that no exception can come between the one and the other.
    this.#state = failure === null ? plan.state : failure.state;
    transaction.committed = failure === null;
    if (draft !== null) draft.isDone = failure === null;
    this.#forget(old);
    if (this.#written.isOn) this.#written.afterSteps(transaction);
    // The request is done or undone by now, and the caller is told that; what goes wrong here cannot change it.
    transaction.release(context);
    this.#unfinished = null;
    if (failure !== null) throw failure.error;
    if (this.#kept.length + plan.discards.length > 0) this.#kept = giveUp([...this.#kept, ...plan.discards], context);
  }

  /** Puts in order what an exception has left behind that came from where none was expected. */
  #recover(transaction: Transaction): void {
    const { plan, request } = transaction;
    this.#busy = true;
    try {
      this.#invalidate();
      if (transaction.committed === null) {
        const old = this.#state;
        this.#state = transaction.recover(this.#context);
        transaction.committed = false;
        this.#forget(old);
      }
      this.#written.afterSteps(transaction);
      transaction.release(this.#context);
      this.#unfinished = null;
    } finally {
      this.#busy = false;
    }
    const done = transaction.committed ? "carried out" : "undone";
    this.onlookers.logger.error(
      `A request was interrupted by an exception from where none was expected, and has been ${done}`,
    );
    if (transaction.committed) releaseFiles(request.change.gone, request.change.split);
    const error = new MembackingError(`The request was interrupted, and has been ${done}`);
    this.#finish(plan.old, request, transaction.committed, plan, error, performance.now());
  }

  /** Tells everybody what became of a request that `began` then, if anybody wants to know when. */
  #finish(
    old: State,
    request: Request,
    committed: boolean,
    plan: Plan | null,
    error: unknown,
    began: number,
  ): void {
    const { onlookers } = this;
    // While clients are held off still: an access by one of this thread is refused then, like everything else.
    if (began !== 0 && onlookers.wantReports) this.#report(request, plan, error, began);
    const { change, added, draft } = request;
    const different = withDamage(old, this.#state, change.changed);
    if (this.gate !== null) this.gate.open(different);
    if (added !== null && !committed) closeFile(added);
    if (draft !== null) this.#decide(draft);
    if (onlookers.areWatching && this.#state !== old) onlookers.changed(old, this.#present, different);
  }

  #report(
    { name, region, change: { changed }, draft }: Request,
    plan: Plan | null,
    error: unknown,
    began: number,
  ): void {
    const microseconds = (performance.now() - began) * 1000;
    const parts = draft === null ? NO_PARTS : draft.parts;
    this.onlookers.tell({ name, region, parts, changed, plan, microseconds, error, state: this.#state });
  }

  /** Tells those who wait what became of a batch, who may make requests of their own by then. */
  #decide(draft: Draft): void {
    this.#undecided = null;
    try {
      draft.decide();
    } catch (error) {
      this.#undecided = draft;
      throw error;
    }
  }

  /** Nobody asks a state any more that has been replaced. */
  #forget({ regions, hostMappings }: State): void {
    const state = this.#state;
    if (state.regions !== regions && !this.onlookers.keepsStates) regions.retire();
    if (state.hostMappings !== hostMappings) this.#va.noteMappings?.(state.hostMappings);
  }

  /** Calls `call`, in which nobody can make requests. */
  whileBusy<T>(call: () => T): T {
    const wasBusy = this.#busy;
    this.#busy = true;
    try {
      return call();
    } finally {
      this.#busy = wasBusy;
    }
  }
}

/** The change of a request about `region`, which looks again at what is out of step there. */
function withOutOfStep(change: Change, { range: { start, end } }: Region, { outOfStep }: Damage): Change {
  return { ...change, changed: [...change.changed, ...outOfStep.overlapping(start, end)] };
}

const NO_PARTS: readonly never[] = [];
