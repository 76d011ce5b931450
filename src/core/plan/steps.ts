/**
 * What a plan is made of: effects on targets, each with its inverse.
 *
 * @module
 */

import type { DmaState, PartitionState } from "../map/state.ts";
import type { State } from "../map/state.ts";
import type { Mapping, Piece } from "../map/region.ts";
import { Sight } from "../map/sight.ts";
import type { Access } from "../targets.ts";

/** One effect on one target. */
export type Step = HostStep | SlotStep | DmaStep | AttendStep;

/** One change of host memory: one system call. What was there before is what the old state says. */
export interface HostStep {
  /** Tells it from steps on other targets. */
  readonly kind: "host";
  /**
   * Replaces what is there, changes its protection, gives the range back to the reservation; or takes memory that is in
   * no file to addresses where it does not show, and brings it back.
   */
  readonly action: "map" | "protect" | "remove" | "park" | "restore";
  /** The first GPA. */
  readonly start: number;
  /** One past the last GPA. */
  readonly end: number;
  /** What is there afterwards, `null` for nothing; what is parked. */
  readonly mapping: Mapping | null;
  /** Whether it may be written then. */
  readonly writable: boolean;
}

/**
 * A partition is told of a range (`from` is null) or loses one (`to` is null); or one begins or ends to be logged, where
 * both are there.
 */
export interface SlotStep {
  /** Tells it from steps on other targets. */
  readonly kind: "slot";
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
  /** Whether it is copy-on-write memory, which is read to bring it in. */
  readonly copyOnWrite: boolean;
  /** Whether it was so before. */
  readonly from: true | null;
  /** Whether it is so afterwards. */
  readonly to: true | null;
  /** Set where an undo that failed left it open if it is so: it is ended, which may fail. */
  readonly uncertain: boolean;
}

/** Whether the step leaves a slot in place and begins or ends its log. */
export function isTurn(step: Step): boolean {
  return step.kind === "slot" && step.from !== null && step.to !== null;
}

/** What undoes `step`, in the order to do it. `old` is the state before the request. */
export function inverse(step: Step, old: State): readonly Step[] {
  if (step.kind === "host") return earlierHostMemory(step, old);
  if (step.uncertain) return NOTHING;
  return [{ ...step, from: step.to, to: step.from } as Step];
}

const NOTHING: readonly Step[] = [];

/** The steps that bring back each mapping and hole that `old` has in the range of `step`. */
function earlierHostMemory(step: HostStep, old: State): HostStep[] {
  const { start, end } = step;
  const steps: { -readonly [K in keyof HostStep]: HostStep[K] }[] = [];
  // What has come back goes first, so that nothing takes its place.
  if (step.action === "restore") steps.push({ ...step, action: "park" });
  const sight = new Sight(old);
  for (let at = start; at < end;) {
    sight.move(at);
    const stop = sight.end < end ? sight.end : end;
    const mapping = sight.lost ? null : sight.mapping;
    const last = steps.at(-1);
    if (mapping === null && last !== undefined && last.mapping === null) last.end = stop;
    // Mapping a file again over itself is harmless and mends what a failed call may have destroyed; memory that is in
    // no file must stay the memory it is.
    else {
      const action = mapping === null ? "remove" : mapping.own !== null ? "restore" : "map";
      steps.push({ kind: "host", action, start: at, end: stop, mapping, writable: mapping !== null && sight.writable });
    }
    at = stop;
  }
  return steps;
}
