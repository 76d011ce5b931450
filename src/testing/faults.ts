import type { TargetCall } from "./call.ts";

/**
 * What a failing call leaves behind:
 *
 * - `"nothing-done"`: the state from before the call, as a well-behaved target leaves it;
 * - `"done-then-failed"`: the state the call asked for;
 * - `"old-state-destroyed"`: neither. What was there before is gone, and what was asked for is not there. A kernel does
 *   this when it removes the old mapping before it finds out that it cannot make the new one.
 */
export type FailureMode = "nothing-done" | "done-then-failed" | "old-state-destroyed";

/** Every {@linkcode FailureMode}, for tests that go through them all. */
export const FAILURE_MODES: readonly FailureMode[] = ["nothing-done", "done-then-failed", "old-state-destroyed"];

/** What an injected failure throws. */
export class InjectedFault extends Error {
  /** The class name. */
  override name = "InjectedFault";
  /** The call that failed. */
  readonly call: TargetCall;
  /** What it left behind. */
  readonly mode: FailureMode;

  /** Builds the error for `call`. */
  constructor(call: TargetCall, mode: FailureMode) {
    super(`Injected fault: ${call.target} failed in ${call.method}(${call.range}), ${mode}`);
    this.call = call;
    this.mode = mode;
  }
}

/** How {@linkcode Faults.failAfter} makes calls fail. */
export interface FaultOptions {
  /** What the failing call leaves behind. Defaults to `"nothing-done"`. */
  mode?: FailureMode;
  /** How many calls in a row fail; `Infinity` for a target that never recovers. Defaults to 1. */
  times?: number;
  /** Which calls are counted, and can fail. Defaults to all of them. */
  on?: (call: TargetCall) => boolean;
}

/** How a target carries out a call in each of the ways it can end. */
export interface CallEffects {
  /** Does what the call asks for. May throw. */
  act(): void;
  /** Loses the state that the call was to change. Left out where there is none to lose. */
  destroy?(): void;
}

interface PlannedFault {
  passes: number;
  times: number;
  readonly mode: FailureMode;
  readonly on: (call: TargetCall) => boolean;
}

/**
 * A plan of failures that several targets share: the calls they receive are counted together, in the order they come
 * in, and the planned ones fail.
 *
 * A region manager undoes a request when a step of it fails, and the calls that undo it are counted like any others. A
 * second fault planned for one of them is a failure during undo.
 *
 * @example Fail every step of a request in turn
 * ```ts
 * import { MemoryRange } from "membacking";
 * import { Faults, RecordingPartition } from "membacking/testing";
 *
 * const faults = new Faults();
 * const partition = new RecordingPartition({ faults });
 * const access = { writable: true, executable: true };
 *
 * faults.failAfter(1, { mode: "done-then-failed" });
 * partition.mapRange(0x7f00_0000_0000, new MemoryRange(0x0, 0x1000), access); // passes
 * try {
 *   partition.mapRange(0x7f00_0000_1000, new MemoryRange(0x1000, 0x2000), access); // done, then throws
 * } catch (error) {
 *   console.assert(error === faults.fired[0]);
 * }
 * console.assert(partition.ranges.length === 2);
 * ```
 */
export class Faults {
  #planned: PlannedFault[] = [];
  #fired: InjectedFault[] = [];
  #seen = 0;

  /**
   * Lets `passes` of the coming calls pass and makes the next one fail. May be called again to plan further failures;
   * each counts for itself, from here on.
   *
   * @returns The plan itself.
   * @throws {RangeError} If `passes` is not a non-negative integer or `times` is below 1.
   */
  failAfter(passes: number, options: FaultOptions = {}): this {
    const { mode = "nothing-done", times = 1, on = () => true } = options;
    if (!Number.isSafeInteger(passes) || passes < 0) {
      throw new RangeError(`passes must be a non-negative integer, got ${passes}`);
    }
    if (!(times >= 1)) throw new RangeError(`times must be at least 1, got ${times}`);
    this.#planned.push({ passes, times, mode, on });
    return this;
  }

  /** How many calls the targets have received since the start or the last `reset`. */
  get seen(): number {
    return this.#seen;
  }

  /** The failures injected since the start or the last `reset`, oldest first. */
  get fired(): readonly InjectedFault[] {
    return this.#fired;
  }

  /** Forgets all planned failures and starts counting anew. */
  reset(): void {
    this.#planned = [];
    this.#fired = [];
    this.#seen = 0;
  }

  /**
   * Carries out one call of a target as the plan has it. The recording targets call this; so may a target of your own.
   *
   * @throws {InjectedFault} If the call was planned to fail. Otherwise whatever `effects.act` throws.
   */
  run(call: TargetCall, effects: CallEffects): void {
    this.#seen++;
    const mode = this.#next(call);
    if (mode === undefined) return effects.act();
    if (mode === "done-then-failed") effects.act();
    if (mode === "old-state-destroyed") effects.destroy?.();
    const fault = new InjectedFault(call, mode);
    this.#fired.push(fault);
    throw fault;
  }

  /** Counts the call for every planned failure and says whether, and how, it is to fail. */
  #next(call: TargetCall): FailureMode | undefined {
    let mode: FailureMode | undefined;
    for (const fault of this.#planned) {
      if (fault.times === 0 || !fault.on(call)) continue;
      if (fault.passes > 0) {
        fault.passes--;
        continue;
      }
      fault.times--;
      mode ??= fault.mode;
    }
    return mode;
  }
}

/**
 * A plan with a single failure: shorthand for `new Faults().failAfter(passes, options)`.
 *
 * @throws {RangeError} As {@linkcode Faults.failAfter} does.
 */
export function failAfter(passes: number, options?: FaultOptions): Faults {
  return new Faults().failAfter(passes, options);
}
