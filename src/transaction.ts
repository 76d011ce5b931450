/**
 * Runs the steps of a plan; if one fails, puts everything back. Undo is written here, once, for every request.
 *
 * ```
 *   steps    1  2  3  4x            4 fails
 *   undo              4' 3' 2' 1'   4' because a failed step may have been done all the same
 * ```
 *
 * A target that throws should have done nothing, but it may have done its work first, or have destroyed the old state
 * (a failed MAP_FIXED can). So the failed step is forced back: first cleared, which may fail because nothing is there,
 * then the old state is put in place, which may not. Undoing goes on to the end whatever fails on the way.
 *
 * @module
 */

import type { Mappable } from "../ffi/mappable.ts";
import { ReservationLostError } from "../ffi/va_mapper.ts";
import { MappingError, type OutOfStep } from "./core/errors.ts";
import { MemoryRange } from "./core/memory_range.ts";
import { outOfStep } from "./core/out_of_step.ts";
import { inverse, type Plan, type Step } from "./core/plan.ts";
import type { Span } from "./core/span.ts";
import type { State } from "./core/state.ts";
import type { VaTarget } from "./core/targets.ts";
import { type Piece, piecesIn } from "./core/view.ts";
import type { VaStep } from "./core/va_steps.ts";
import { mappableOf } from "./file_backing.ts";
import type { DmaTarget, Logger, Quiesce } from "./targets.ts";

/** What a transaction acts through, besides the partitions and DMA targets in its steps. */
export interface TransactionContext {
  readonly va: VaTarget<Mappable>;
  readonly quiesce: Quiesce | undefined;
  readonly logger: Logger;
}

/** A request that failed: what to tell the caller, and the state that is true now. */
interface TransactionFailure {
  readonly error: MappingError;
  readonly state: State;
}

/**
 * Carries out `plan`, or nothing of it, and hands the state that is true then to `commit`, with whether it happened.
 *
 * @throws {MappingError} If a step failed.
 * @throws Whatever the quiesce hook throws; nothing has changed then, unless it is disposing the hold that throws.
 */
export function runTransaction(
  plan: Plan,
  old: State,
  context: TransactionContext,
  commit: (state: State, happened: boolean) => void,
): void {
  if (plan.torn.length === 0) return carryOut(plan, old, context, commit);
  using _hold = quiesced(plan.torn, context);
  carryOut(plan, old, context, commit);
}

function carryOut(
  plan: Plan,
  old: State,
  context: TransactionContext,
  commit: (state: State, happened: boolean) => void,
): void {
  const failure = runSteps(plan.steps, old, context);
  if (failure !== null) {
    commit(failure.state, false);
    throw failure.error;
  }
  commit(plan.discards.length === 0 ? plan.state : discard(plan, context), true);
}

/** Gives private memory up. What the kernel does not take back stays until the next request over it. */
function discard({ state, discards }: Plan, context: TransactionContext): State {
  const kept: Step[] = [];
  const poisoned: Span[] = [];
  for (const step of discards) {
    try {
      performVa(step, context.va);
    } catch (error) {
      context.logger.error(`Private memory at ${rangeOf(step)} could not be given up`, error);
      kept.push(step);
      if (error instanceof ReservationLostError) poisoned.push(error.range);
    }
  }
  return kept.length === 0 ? state : outOfStep(state, kept, poisoned);
}

function quiesced(ranges: readonly MemoryRange[], { quiesce }: TransactionContext): Disposable | undefined {
  if (quiesce === undefined) return undefined;
  const hold = quiesce({ ranges });
  if (typeof hold?.[Symbol.dispose] !== "function") {
    throw new TypeError("The quiesce hook must return a Disposable, and synchronously");
  }
  return hold;
}

/**
 * Takes everything away from every target and gives host memory back, whatever fails on the way. Pieces that overlap
 * one of the spans in `kept` stay mapped: somebody still looks at them.
 *
 * @returns What failed.
 */
export function tearDown(state: State, context: TransactionContext, kept: readonly Span[]): unknown[] {
  const failures: unknown[] = [];
  const attempt = (step: Step) => {
    try {
      perform(step, context);
    } catch (error) {
      failures.push(error);
    }
  };
  for (const dma of state.dmaTargets) {
    for (const { start, end, value } of dma.book) {
      attempt({ kind: "dma", dma, start, end, from: value, to: null, uncertain: false });
    }
  }
  for (const partition of state.partitions) {
    for (const { start, end } of partition.pinned) {
      attempt({ kind: "pin", partition, start, end, to: false, uncertain: false });
    }
    for (const { start, end, value } of partition.book) {
      attempt({ kind: "partition", partition, start, end, from: value, to: null, uncertain: false });
    }
  }
  for (const { start, end, value } of piecesIn(state)) {
    if (kept.some((span) => span.start < end && start < span.end)) continue;
    attempt({ kind: "va", action: "remove", start, end, to: null, from: [{ start, end, value }] });
  }
  // What an undo or a discard left behind is in no region's mappings any more.
  for (const { start, end } of state.lost) {
    if (!state.poisoned.overlaps(start, end)) {
      attempt({ kind: "va", action: "remove", start, end, to: null, from: [{ start, end, value: null }] });
    }
  }
  return failures;
}

function runSteps(steps: readonly Step[], old: State, context: TransactionContext): TransactionFailure | null {
  let next = 0;
  try {
    for (; next < steps.length; next++) {
      const step = steps[next]!;
      if (step.kind !== "va" && step.uncertain && !isThere(step)) clear(step, context);
      else perform(step, context);
    }
    return null;
  } catch (cause) {
    return new Undo(old, context).run(steps, next, cause);
  }
}

/** Whether the step's target has it, or does it, afterwards. */
function isThere({ to }: Step): boolean {
  return to !== null && to !== false;
}

/** Takes away what may be there, and says whether there was something. Throwing only says that there was nothing. */
function clear(step: Exclude<Step, VaStep>, context: TransactionContext): boolean {
  const gone =
    (step.kind === "partition" || step.kind === "dma" ? { ...step, to: null } : { ...step, to: false }) as Step;
  try {
    perform(gone, context);
    return true;
  } catch (error) {
    context.logger.debug(`Clearing ${rangeOf(step)} on ${targetName(step)} found nothing to clear`, error);
    return false;
  }
}

/** Whether two steps are about one range of one target. */
function isSameRange(a: Step, b: Step): boolean {
  if (a.kind !== b.kind || a.start !== b.start || a.end !== b.end) return false;
  if (a.kind === "dma" && b.kind === "dma") return a.dma.id === b.dma.id;
  if (a.kind === "va" || b.kind === "va") return true;
  return a.kind !== "dma" && b.kind !== "dma" && a.partition.id === b.partition.id;
}

function perform(step: Step, context: TransactionContext): void {
  switch (step.kind) {
    case "va":
      return performVa(step, context.va);
    case "partition": {
      const { target, offset } = step.partition;
      if (target.disposed ?? false) return;
      const range = new MemoryRange(step.start + offset, step.end + offset);
      expectSync(
        step.to === null ? target.unmapRange(range) : target.mapRange(context.va.base + step.start, range, step.to),
      );
      return;
    }
    case "dma": {
      // SAFETY: the manager puts nothing but DmaTargets into a state.
      const target = step.dma.target as DmaTarget;
      const range = new MemoryRange(step.start, step.end);
      expectSync(step.to === null ? target.unmapDma(range) : target.mapDma(dmaRequest(range, step.to, context.va)));
      return;
    }
    case "pin": {
      const { target, offset } = step.partition;
      if (target.disposed ?? false) return;
      const range = new MemoryRange(step.start + offset, step.end + offset);
      expectSync(step.to ? target.pinRange?.(range) : target.unpinRange?.(range));
      return;
    }
    case "prefetch": {
      const { target, offset } = step.partition;
      if (!step.to || (target.disposed ?? false)) return;
      const range = new MemoryRange(step.start + offset, step.end + offset);
      try {
        expectSync(target.prefetchRange?.(range));
      } catch (error) {
        context.logger.warn(`Prefetching ${range} failed`, error);
      }
      return;
    }
  }
}

function performVa(step: VaStep, va: VaTarget<Mappable>): void {
  const { action, start, end, to } = step;
  if (to === null) va.remove(start, end);
  else if (action === "protect") va.protect(start, end, to.writable);
  else {
    const { mapping } = to;
    const mappable = mappableOf(mapping);
    va.map(start, end, mappable, mappable === null ? 0 : start + mapping.delta, to.writable, mapping.policy);
  }
}

function dmaRequest(range: MemoryRange, piece: Piece, va: VaTarget<Mappable>) {
  const mappable = mappableOf(piece.mapping);
  return {
    range,
    hva: va.base + range.start,
    mappable,
    fileOffset: mappable === null ? 0 : range.start + piece.mapping.delta,
    writable: piece.writable,
    type: piece.region.type,
  };
}

/** A promise would be work that goes on after the step, out of reach of undo. */
function expectSync(result: unknown): void {
  if (result === undefined) return;
  if (result instanceof Promise) result.catch(() => {});
  throw new TypeError("A partition or DMA target must do its work synchronously and return nothing");
}

function targetName(step: Step): string {
  if (step.kind === "va") return "host memory";
  if (step.kind === "dma") return (step.dma.target as DmaTarget).name ?? "DMA target";
  return step.partition.target.name ?? "partition";
}

function describe(step: Step): string {
  switch (step.kind) {
    case "va":
      return step.action === "protect" ? "protect" : step.action;
    case "pin":
    case "prefetch":
      return step.to ? step.kind : `un${step.kind}`;
    default:
      return step.to === null ? "unmap" : "map";
  }
}

function rangeOf({ start, end }: Span): MemoryRange {
  return new MemoryRange(start, end);
}

/** Puts back what the steps before a failure did, and keeps account of what it could not. */
class Undo {
  readonly #old: State;
  readonly #context: TransactionContext;
  #unrestored: Step[] = [];
  readonly #failures: OutOfStep[] = [];
  readonly #poisoned: Span[] = [];

  constructor(old: State, context: TransactionContext) {
    this.#old = old;
    this.#context = context;
  }

  run(steps: readonly Step[], failed: number, cause: unknown): TransactionFailure {
    const step = steps[failed]!;
    this.#notePoison(cause);
    if (step.kind !== "va") clear(step, this.#context);
    for (const back of inverse(step)) {
      // Only what was there before is put back: a range that was not mapped is cleared already.
      if (back.kind === "va" || isThere(back)) this.#restore(back);
    }
    for (let i = failed - 1; i >= 0; i--) {
      for (const back of inverse(steps[i]!)) this.#restore(back);
    }
    for (const span of this.#poisoned) this.#evacuate(span);

    const state = this.#unrestored.length + this.#poisoned.length === 0
      ? this.#old
      : outOfStep(this.#old, this.#unrestored, this.#poisoned);
    const why = cause instanceof Error ? cause.message : String(cause);
    const left = this.#failures.length === 0
      ? "the request was undone"
      : `the request could not be undone on ${
        this.#failures.map(({ target, range }) => `${target} ${range}`).join(", ")
      }`;
    const error = new MappingError(
      `Cannot ${describe(step)} ${rangeOf(step)} on ${targetName(step)}, ${left}: ${why}`,
      rangeOf(step),
      {
        cause,
        outOfStep: this.#failures,
      },
    );
    return { error, state };
  }

  #restore(step: Step): void {
    if (isThere(step) && this.#isPoisoned(step)) {
      this.#unrestored.push(step);
      return;
    }
    try {
      perform(step, this.#context);
    } catch (error) {
      this.#notePoison(error);
      this.#unrestored.push(step);
      this.#failures.push({ target: targetName(step), range: rangeOf(step), cause: error });
      // It may be there all the same, while the books will say that it is not; or what is there is the very range that
      // could not be taken away before.
      if (step.kind !== "va" && isThere(step) && clear(step, this.#context)) {
        this.#unrestored = this.#unrestored.filter((other) => isThere(other) || !isSameRange(other, step));
      }
      return;
    }
  }

  #notePoison(error: unknown): void {
    if (!(error instanceof ReservationLostError)) return;
    const { start, end } = error.range;
    this.#poisoned.push({ start, end });
    this.#failures.push({ target: "host memory", range: error.range, cause: error });
  }

  #isPoisoned({ start, end }: Span): boolean {
    return this.#poisoned.some((span) => span.start < end && start < span.end);
  }

  /** Takes every range over lost host addresses away from its target: it would show whatever is mapped there next. */
  #evacuate({ start, end }: Span): void {
    const take = (step: Step) => {
      try {
        perform(step, this.#context);
        this.#unrestored.push(...inverse(step));
      } catch (error) {
        this.#failures.push({ target: targetName(step), range: rangeOf(step), cause: error });
      }
    };
    for (const partition of this.#old.partitions) {
      for (const entry of partition.book.overlapping(start, end)) {
        take({
          kind: "partition",
          partition,
          start: entry.start,
          end: entry.end,
          from: entry.value,
          to: null,
          uncertain: false,
        });
      }
    }
    for (const dma of this.#old.dmaTargets) {
      for (const entry of dma.book.overlapping(start, end)) {
        take({ kind: "dma", dma, start: entry.start, end: entry.end, from: entry.value, to: null, uncertain: false });
      }
    }
  }
}
