/**
 * The parts of a transaction: hold vCPUs, run the steps of a plan, all or none of them, and let go.
 *
 * @module
 */

import { ReservationLostError } from "../../ffi/host/va_mapper.ts";
import type { MemoryRange } from "../core/memory_range.ts";
import { outOfStep, type Unrestored } from "../core/plan/out_of_step.ts";
import type { Plan } from "../core/plan/plan.ts";
import type { Span } from "../core/span.ts";
import type { State } from "../core/map/state.ts";
import type { Step } from "../core/plan/steps.ts";
import { piecesIn, unpoisoned } from "../core/map/view.ts";
import { clear, isThenable, perform, performVa, rangeOf, type StepContext } from "./perform.ts";
import type { Quiesce } from "../targets/targets.ts";
import { type TransactionFailure, undo } from "./undo.ts";

/** What a transaction acts through. */
export interface TransactionContext extends StepContext {
  /** Holds vCPUs where the plan is not atomic to them. */
  readonly quiesce: Quiesce | undefined;
}

/** Carries out all of `steps`, or none: `null` where they are done, else what came of undoing them. */
export function runSteps(steps: readonly Step[], old: State, context: TransactionContext): TransactionFailure | null {
  let next = 0;
  try {
    for (; next < steps.length; next++) {
      const step = steps[next]!;
      if (step.kind !== "va" && step.uncertain) clear(step, context);
      else perform(step, context);
    }
    return null;
  } catch (cause) {
    return undo(steps, next, cause, old, context);
  }
}

/**
 * The state after all steps of a plan: gives up the private memory that is to go. What the kernel does not take back
 * stays until the next request over it.
 */
export function settledState({ state, discards }: Plan, context: TransactionContext): State {
  if (discards.length === 0) return state;
  const kept: Unrestored[] = [];
  const poisoned: Span[] = [];
  for (const step of discards) {
    try {
      performVa(step, context.va);
    } catch (error) {
      context.logger.error(`Private memory at ${rangeOf(step)} could not be given up`, error);
      kept.push({ step, doubtful: true });
      if (error instanceof ReservationLostError) poisoned.push(error.range);
    }
  }
  return kept.length === 0 ? state : outOfStep(state, kept, poisoned);
}

/**
 * Holds vCPUs off `ranges` until `release`.
 *
 * @throws Whatever the quiesce hook throws.
 */
export function quiesced(ranges: readonly MemoryRange[], { quiesce }: TransactionContext): Disposable | undefined {
  if (quiesce === undefined) return undefined;
  const hold = quiesce({ ranges });
  if (isThenable(hold)) Promise.resolve(hold).catch(() => {});
  if (typeof hold?.[Symbol.dispose] !== "function") {
    throw new TypeError("The quiesce hook must return a Disposable, and synchronously");
  }
  return hold;
}

/** Lets vCPUs go on. A hold that cannot be released is logged. */
export function release(hold: Disposable | undefined, { logger }: TransactionContext): void {
  try {
    const result: unknown = hold?.[Symbol.dispose]();
    if (isThenable(result)) Promise.resolve(result).catch(() => {});
  } catch (error) {
    logger.error("The quiesce hook's hold could not be released, vCPUs may stay held", error);
  }
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
    for (const { start, end } of dma.doubts) {
      clear({ kind: "dma", dma, start, end, from: null, to: null, uncertain: true }, context);
    }
    for (const { start, end, value } of dma.book) {
      attempt({ kind: "dma", dma, start, end, from: value, to: null, uncertain: false });
    }
  }
  for (const partition of state.partitions) {
    for (const { start, end } of partition.pinDoubts) {
      clear({ kind: "pin", partition, start, end, to: false, uncertain: true }, context);
    }
    for (const { start, end } of partition.doubts) {
      clear({ kind: "partition", partition, start, end, from: null, to: null, uncertain: true }, context);
    }
    for (const { start, end } of partition.pinned) {
      attempt({ kind: "pin", partition, start, end, to: false, uncertain: false });
    }
    for (const { start, end, value } of partition.book) {
      attempt({ kind: "partition", partition, start, end, from: value, to: null, uncertain: false });
    }
  }
  // Addresses that are about to be unmapped as a whole need not be emptied first.
  if (context.va.disposed ?? false) return failures;
  for (const { start, end, value } of unpoisoned(piecesIn(state), state)) {
    if (kept.some((span) => span.start < end && start < span.end)) continue;
    attempt({ kind: "va", action: "remove", start, end, to: null, from: [{ start, end, value }] });
  }
  // What an undo or a discard left behind is in no region's mappings any more.
  for (const { start, end } of unpoisoned([...state.lost], state)) {
    attempt({ kind: "va", action: "remove", start, end, to: null, from: [] });
  }
  return failures;
}
