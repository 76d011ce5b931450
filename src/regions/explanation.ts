import type { MemoryRange } from "../core/memory_range.ts";
import type { Plan } from "../core/plan/plan.ts";
import { describe, rangeOf, targetName } from "../requests/carry_out.ts";
import { effortOf } from "../requests/request_report.ts";

/** What requests would do: plain and frozen. */
export interface Explanation {
  /** How many effects on host memory, partitions and DMA targets they would have. */
  readonly steps: number;
  /** How many of these are system calls. */
  readonly systemCalls: number;
  /** How many of these are slots that go or come. */
  readonly slotChanges: number;
  /** Where a running guest could see them half done: what the `quiesce` hook would be called for, in GPAs. */
  readonly noticed: readonly MemoryRange[];
  /** Each effect in words, in order. */
  readonly effects: readonly string[];
  /** What they would fail for, `null` where they would not. What targets themselves might throw is not known. */
  readonly error: unknown;
}

/** Explains a plan. */
export function explanationOf(plan: Plan): Explanation {
  const effects: string[] = [];
  for (const step of plan.steps) {
    if (step.kind === "prefetch" && step.to === null) continue;
    const writable = step.kind === "host"
      ? step.mapping === null || step.action === "park" ? undefined : step.writable
      : step.kind === "slot" || step.kind === "dma"
      ? step.to?.writable
      : undefined;
    const access = writable === undefined ? "" : writable ? " read-write" : " read-only";
    effects.push(`${describe(step)} ${rangeOf(step)}${access} on ${targetName(step)}`);
  }
  for (const { start, end } of plan.discards) effects.push(`give up ${rangeOf({ start, end })} of parked memory`);
  return Object.freeze({
    ...effortOf(plan),
    noticed: Object.freeze([...plan.exposed]),
    effects: Object.freeze(effects),
    error: null,
  });
}

/** Explains requests that cannot be. */
export function failedExplanation(error: unknown): Explanation {
  const nothing = Object.freeze([]);
  return Object.freeze({ steps: 0, systemCalls: 0, slotChanges: 0, noticed: nothing, effects: nothing, error });
}
