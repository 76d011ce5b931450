import { MembackingError } from "../core/errors.ts";
import type { RecordedCall, TargetCall } from "./call.ts";
import { type CallEffects, Faults } from "./faults.ts";

/** What every recording target can be given. */
export interface RecordingOptions {
  /** The name in the log and in errors. Each target has its own default. */
  name?: string;
  /** The plan of failures to follow. Several targets may share one. Defaults to a plan of the target's own. */
  faults?: Faults;
  /** The array to log calls to. Several targets may share one. Defaults to an array of the target's own. */
  calls?: RecordedCall[];
}

/** A recording target was asked for something its state does not allow: the caller has lost track of it. */
export class TargetStateError extends MembackingError {
  /** The class name. */
  override name = "TargetStateError";
}

/** The log and the fault plan of one recording target. */
export class Recorder {
  readonly calls: RecordedCall[];
  readonly faults: Faults;

  constructor(options: RecordingOptions) {
    this.calls = options.calls ?? [];
    this.faults = options.faults ?? new Faults();
  }

  /** Runs one call under the fault plan and logs it with its outcome. */
  run(call: TargetCall, effects: CallEffects): undefined {
    try {
      this.faults.run(call, effects);
    } catch (error) {
      this.calls.push({ ...call, error });
      throw error;
    }
    this.calls.push(call);
  }
}
