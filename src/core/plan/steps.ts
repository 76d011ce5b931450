/**
 * What a plan is made of: effects on targets, each with its inverse.
 *
 * @module
 */

import type { DmaState, PartitionState } from "../map/state.ts";
import type { Access } from "../targets.ts";
import { inverseVaSteps, type VaStep } from "./va_steps.ts";
import type { Piece } from "../map/view.ts";

/** One effect on one target. Going back is the same step with `from` and `to` exchanged. */
export type Step =
  | VaStep
  | PartitionStep
  | DmaStep
  | AttendStep;

/** A partition is told of a range (`from` is null) or loses one (`to` is null). */
export interface PartitionStep {
  /** Tells it from steps on other targets. */
  readonly kind: "partition";
  /** The partition. */
  readonly partition: PartitionState;
  /** The range in region GPAs; the partition's offset comes on top. */
  readonly start: number;
  /** One past the last GPA. */
  readonly end: number;
  /** The access before. */
  readonly from: Access | null;
  /** The access afterwards. */
  readonly to: Access | null;
  /** Set where an undo that failed left it open if the range is there: it is taken away, which may fail. */
  readonly uncertain: boolean;
}

/** A DMA target is told of a mapping (`from` is null) or loses one (`to` is null). */
export interface DmaStep {
  /** Tells it from steps on other targets. */
  readonly kind: "dma";
  /** The DMA target. */
  readonly dma: DmaState;
  /** The first GPA. */
  readonly start: number;
  /** One past the last GPA. */
  readonly end: number;
  /** What it had mapped. */
  readonly from: Piece | null;
  /** What it has mapped afterwards. */
  readonly to: Piece | null;
  /** Set where an undo that failed left it open if the range is there: it is taken away, which may fail. */
  readonly uncertain: boolean;
}

/** What follows memory wherever it is replaced: pinned pages, and pages brought in early. */
export interface AttendStep {
  /** `"pin"` may fail the request, `"prefetch"` may not. */
  readonly kind: "pin" | "prefetch";
  /** The partition that does it. */
  readonly partition: PartitionState;
  /** The range in region GPAs. */
  readonly start: number;
  /** One past the last GPA. */
  readonly end: number;
  /** Whether it is so afterwards; it was the opposite before. */
  readonly to: boolean;
  /** Set where an undo that failed left it open if it is so: it is ended, which may fail. */
  readonly uncertain: boolean;
}

/** What undoes `step`, in the order to do it. */
export function inverse(step: Step): readonly Step[] {
  if (step.kind !== "va" && step.uncertain) return [];
  switch (step.kind) {
    case "va":
      return inverseVaSteps(step);
    case "partition":
    case "dma":
      return [{ ...step, from: step.to, to: step.from } as Step];
    case "pin":
    case "prefetch":
      return [{ ...step, to: !step.to }];
  }
}
