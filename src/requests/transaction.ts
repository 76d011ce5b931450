/**
 * A plan that is carried out: hold vCPUs, run the steps, all or none of them, and let go.
 *
 * @module
 */

import { MappingError } from "../core/errors.ts";
import type { OwnRange } from "../core/map/edits.ts";
import type { MemoryRange } from "../core/memory_range.ts";
import type { Plan } from "../core/plan/plan.ts";
import type { Step } from "../core/plan/steps.ts";
import type { State } from "../core/map/state.ts";
import type { Request } from "./request.ts";
import { isThenable } from "../targets/sync.ts";
import { carryOut, clear, type StepContext } from "./carry_out.ts";
import type { Logger, Quiesce } from "../targets/targets.ts";
import { announceDma, announceUndo } from "./announce.ts";
import { type TransactionFailure, undo, undoInterrupted } from "./undo.ts";

/** What a transaction acts through. */
export interface TransactionContext extends StepContext {
  /** Holds vCPUs where the plan is not atomic to them. */
  readonly quiesce: Quiesce | undefined;
}

/**
 * A plan whose effects may have begun. Kept until all of them are there or all undone: whoever finds one left over knows
 * that an exception came from where none was expected, such as a stack overflow, and what may have been done.
 */
export class Transaction {
  readonly plan: Plan;
  /** What it carries out. */
  readonly request: Request;
  /** Whether the request has happened, or has been undone; `null` while neither is so. */
  committed: boolean | null = null;
  /** The step it has got to. */
  #reached = -1;
  #hold: Disposable | undefined;

  /** A transaction that has done nothing yet. */
  constructor(plan: Plan, request: Request) {
    this.plan = plan;
    this.request = request;
  }

  /**
   * Holds vCPUs off where they could see the request half done, until `release`, and does what the request has to do to
   * memory itself before its first step.
   *
   * @throws Whatever the quiesce hook throws, or what it does; nothing has changed then.
   */
  begin({ quiesce }: TransactionContext): void {
    const { deed } = this.request;
    const ranges = deed === null ? this.plan.exposed : deed.hold;
    if (ranges.length > 0 && quiesce !== undefined) {
      const hold = this.#hold = quiesce({ ranges });
      if (!isHold(hold)) {
        this.#hold = undefined;
        throw new TypeError(NO_HOLD);
      }
    }
    if (deed !== null) deed.act();
  }

  /** Whether vCPUs are held. */
  get isHeld(): boolean {
    return this.#hold !== undefined;
  }

  /** Whether all memory has the same bytes as before, however it ends. */
  get keepsBytes(): boolean {
    const { deed } = this.request;
    return deed !== null && deed.keepsBytes;
  }

  /** The steps that may have been done. */
  get begun(): readonly Step[] {
    return this.plan.steps.slice(0, this.#reached + 1);
  }

  /** Carries out all steps, or none: `null` where they are done, else what came of undoing them. */
  run(context: TransactionContext): TransactionFailure | null {
    const { old, state, steps } = this.plan;
    if (old.dmaTargets.length + state.dmaTargets.length > 0) {
      try {
        announceDma(steps, old.dmaTargets.length > 0 ? old : state, context.va);
      } catch (error) {
        if (error instanceof MappingError) return { error, state: old };
        throw error;
      }
    }
    try {
      for (let i = 0; i < steps.length; i++) {
        const step = steps[i]!;
        this.#reached = i;
        if (step.kind !== "host" && step.uncertain) clear(step, context);
        else carryOut(step, context);
      }
      return null;
    } catch (cause) {
      return undo(this.plan, this.#reached, cause, context);
    }
  }

  /** Undoes what an exception has interrupted, every step that may have been done, and returns the state then. */
  recover(context: TransactionContext): State {
    if (this.#reached >= 0) return undoInterrupted(this.plan, this.#reached, context).state;
    announceUndo(this.plan.steps, 0, context.va);
    return this.plan.old;
  }

  /** Lets vCPUs go on. A hold that cannot be released is logged. */
  release({ logger }: TransactionContext): void {
    const hold = this.#hold;
    if (hold === undefined) return;
    letGo(hold, logger);
    this.#hold = undefined;
  }
}

const NO_HOLD = "The quiesce hook must return a Disposable, and synchronously";

/**
 * Holds vCPUs off `ranges` beyond one request, if there is a hook, until the result is disposed. A hold that cannot be
 * released is logged.
 *
 * @throws Whatever the quiesce hook throws.
 */
export function holdOff(quiesce: Quiesce | undefined, ranges: readonly MemoryRange[], logger: Logger): Disposable {
  const hold = ranges.length === 0 ? undefined : quiesce?.({ ranges });
  if (quiesce !== undefined && ranges.length > 0 && !isHold(hold)) throw new TypeError(NO_HOLD);
  return { [Symbol.dispose]: () => void (hold !== undefined && letGo(hold, logger)) };
}

/** Whether a quiesce hook has returned what it should. */
function isHold(hold: Disposable | undefined): boolean {
  if (isThenable(hold)) Promise.resolve(hold).catch(() => {});
  return typeof hold?.[Symbol.dispose] === "function";
}

function letGo(hold: Disposable, logger: Logger): void {
  try {
    const result: unknown = hold[Symbol.dispose]();
    if (isThenable(result)) Promise.resolve(result).catch(() => {});
  } catch (error) {
    // It may not have got to its first line: then it can be tried again.
    if (isStackOverflow(error)) throw error;
    logger.error("The quiesce hook's hold could not be released, vCPUs may stay held", error);
  }
}

function isStackOverflow(error: unknown): boolean {
  return error instanceof RangeError && error.message.startsWith("Maximum call stack");
}

/** Gives up memory that no region has any more. Returns what the host keeps for now. */
export function giveUp(ranges: readonly OwnRange[], { va, logger }: StepContext): readonly OwnRange[] {
  return ranges.filter(({ memory, start, end }) => {
    try {
      va.discard(memory, start, end);
      return false;
    } catch (error) {
      logger.error("Memory that no region has any more could not be given up, the next request tries again", error);
      return true;
    }
  });
}
