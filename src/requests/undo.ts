/**
 * Puts everything back after a step has failed. Written here, once, for every request.
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

import { hadNoEffect, ReservationLostError } from "../../ffi/host/failures.ts";
import { MappingError, MembackingError, type OutOfStep } from "../core/errors.ts";
import { outOfStep, type Unrestored } from "../core/plan/out_of_step.ts";
import type { Plan } from "../core/plan/plan.ts";
import { gaps, normalize, type Span } from "../core/span.ts";
import type { State } from "../core/map/state.ts";
import { inverse, isTurn, type Step } from "../core/plan/steps.ts";
import { announceUndo } from "./announce.ts";
import { carryOut, clear, describe, isThere, messageOf, rangeOf, type StepContext, targetName } from "./carry_out.ts";

/** A request that failed: what to tell the caller, and the state that is true now. */
export interface TransactionFailure {
  /** What the caller gets. */
  readonly error: MappingError;
  /** The old state, less what could not be restored. */
  readonly state: State;
}

/** Undoes the steps of a plan up to the one that failed with `cause`, and tells what came of it. */
export function undo({ old, steps }: Plan, failed: number, cause: unknown, context: StepContext): TransactionFailure {
  using _room = context.va.makeRoom?.();
  return new Undo(old, context).run(steps, failed, failed, cause);
}

/**
 * Undoes what an exception interrupted where none was expected, up to the step that it had `reached` at most. Which of
 * the steps have been done, and which undone already, is not known: each is forced back.
 */
export function undoInterrupted({ old, steps }: Plan, reached: number, context: StepContext): TransactionFailure {
  using _room = context.va.makeRoom?.();
  const cause = new MembackingError("The request was interrupted");
  return new Undo(old, context).run(steps, Math.min(reached, steps.length - 1), 0, cause);
}

const NOWHERE: readonly Span[] = [];

function overlap(a: Span, b: Span): boolean {
  return a.start < b.end && b.start < a.end;
}

/** Whether two steps are about one target, and their ranges overlap. */
function collide(a: Step, b: Step): boolean {
  if (a.kind !== b.kind || !overlap(a, b)) return false;
  if (a.kind === "dma" && b.kind === "dma") return a.dma.id === b.dma.id;
  if (a.kind === "dma" || a.kind === "host" || b.kind === "dma" || b.kind === "host") return true;
  return a.partition.id === b.partition.id;
}

/** Puts back what the steps before a failure did, and keeps account of what it could not. */
class Undo {
  readonly #old: State;
  readonly #context: StepContext;
  #unrestored: Unrestored[] = [];
  readonly #failures: OutOfStep[] = [];
  readonly #poisoned: Span[] = [];
  readonly #stranded: Span[] = [];

  constructor(old: State, context: StepContext) {
    this.#old = old;
    this.#context = context;
  }

  /** Undoes the steps up to `last`; of those from `uncertain` on it is not known whether they have been done. */
  run(steps: readonly Step[], last: number, uncertain: number, cause: unknown): TransactionFailure {
    const step = steps[last]!;
    announceUndo(steps, last + 1, this.#context.va);
    this.#notePoison(cause);
    for (let i = last; i >= uncertain; i--) {
      // Host memory that is as it was is left alone: what the step lacked, putting it back would lack too.
      if (steps[i]!.kind !== "host" || !hadNoEffect(cause)) this.#forceBack(steps[i]!);
    }
    for (let i = uncertain - 1; i >= 0; i--) {
      for (const back of inverse(steps[i]!, this.#old)) this.#restore(back);
    }
    for (const span of this.#poisoned) this.#evacuate(span);

    const state = this.#unrestored.length + this.#poisoned.length === 0
      ? this.#old
      : outOfStep(this.#old, this.#unrestored, this.#poisoned);
    const why = messageOf(cause);
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

  /** Undoes a step that may have been done or not. */
  #forceBack(step: Step): void {
    // A slot that stays in place is not taken away only to end its log.
    if (step.kind !== "host" && !isTurn(step)) clear(step, this.#context);
    for (const back of inverse(step, this.#old)) {
      // Only what was there before is put back: a range that was not mapped is cleared already.
      if (back.kind === "host" || isThere(back)) this.#restore(back);
    }
  }

  /** Puts something back, but where that would do harm. */
  #restore(step: Step): void {
    const poisoned = isThere(step) ? this.#poisoned.filter((span) => overlap(span, step)) : NOWHERE;
    if (step.kind !== "host") {
      if (poisoned.length > 0) this.#unrestored.push({ step, uncertain: false });
      else this.#putBack(step);
      return;
    }
    for (const { start, end } of poisoned) {
      const part = { ...step, start: Math.max(start, step.start), end: Math.min(end, step.end) };
      this.#unrestored.push({ step: part, uncertain: false });
    }
    // Nothing takes the place of memory that could not be parked: it would be lost. What is around it comes back.
    const kept = normalize([...this.#stranded, ...poisoned]);
    for (const { start, end } of gaps(step.start, step.end, kept)) this.#putBack({ ...step, start, end });
  }

  #putBack(step: Step): void {
    try {
      carryOut(step, this.#context);
      // A target holds no two ranges over one address: what it took excludes what we could not take away before. Pages,
      // though, can be pinned again.
      if (isThere(step) && step.kind !== "pin") this.#ruleOut((other) => collide(other, step));
    } catch (error) {
      this.#notePoison(error);
      if (step.kind === "host" && step.action === "park") this.#stranded.push(step);
      if (!(error instanceof ReservationLostError)) {
        this.#failures.push({ target: targetName(step), range: rangeOf(step), cause: error });
      }
      const cleared = step.kind !== "host" && isThere(step) && clear(step, this.#context);
      if (cleared) {
        this.#ruleOut((other) => collide(other, step) && other.start === step.start && other.end === step.end);
      }
      this.#unrestored.push({ step, uncertain: !cleared });
    }
  }

  /** There is no doubt any more about the steps of which `isGone` says that range is not there. */
  #ruleOut(isGone: (step: Step) => boolean): void {
    this.#unrestored = this.#unrestored.map((entry) =>
      entry.uncertain && isGone(entry.step) ? { ...entry, uncertain: false } : entry
    );
  }

  #notePoison(error: unknown): void {
    if (!(error instanceof ReservationLostError)) return;
    const { start, end } = error.range;
    this.#poisoned.push({ start, end });
    this.#failures.push({ target: "host memory", range: error.range, cause: error });
  }

  /** Takes every range over lost host addresses away from its target: it would show whatever is mapped there next. */
  #evacuate({ start, end }: Span): void {
    const { partitions, dmaTargets } = this.#old;
    for (const partition of partitions) {
      for (const { start: from, end: to, value } of partition.slots.held.overlapping(start, end)) {
        this.#take({ kind: "slot", partition, start: from, end: to, from: value, to: null, uncertain: false });
      }
    }
    for (const dma of dmaTargets) {
      for (const { start: from, end: to, value } of dma.mappings.held.overlapping(start, end)) {
        this.#take({ kind: "dma", dma, start: from, end: to, from: value, to: null, uncertain: false });
      }
    }
  }

  /** Takes one range away, unless it is gone already, and says that its target has lost it. */
  #take(step: Step): void {
    const isGone = this.#unrestored.some((entry) => isThere(entry.step) && collide(entry.step, step));
    let cause: unknown = new Error("The host addresses behind it are lost");
    let uncertain = false;
    try {
      if (!isGone) carryOut(step, this.#context);
    } catch (error) {
      uncertain = true;
      cause = error;
    }
    this.#failures.push({ target: targetName(step), range: rangeOf(step), cause });
    if (!isGone) { for (const back of inverse(step, this.#old)) this.#unrestored.push({ step: back, uncertain }); }
  }
}
