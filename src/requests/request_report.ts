import type { Region } from "../core/map/region.ts";
import type { State } from "../core/map/state.ts";
import type { Plan } from "../core/plan/plan.ts";
import type { Span } from "../core/span.ts";

/** What became of one request, as the map tells it. */
export interface RequestReport {
  /** What was asked for. */
  readonly name: string;
  /** The region it is about, `null` where it is about none or several. */
  readonly region: Region | null;
  /** What a batch asked for, in order. */
  readonly parts: readonly RequestPart[];
  /** Where what the guest sees may differ from before; may overlap. */
  readonly changed: readonly Span[];
  /** What was to be done, `null` where it did not come to a plan. */
  readonly plan: Plan | null;
  /** What it took to plan it and to carry it out, in microseconds. */
  readonly microseconds: number;
  /** What it failed for, `null` where it did not. */
  readonly error: unknown;
  /** The memory map after it. */
  readonly state: State;
}

/** A request inside a batch. */
export interface RequestPart {
  /** What was asked for. */
  readonly name: string;
  /** The region it is about. */
  readonly region: Region | null;
}

/** Is told of each request that is done or has failed, once the next one may be made. Must not throw. */
export type Reporter = (report: RequestReport) => void;

/** What carrying out a plan means to the host and to partitions. */
export interface Effort {
  /** How many effects on targets. */
  readonly steps: number;
  /** Of these, those that the kernel is asked for: changes of host memory, slots and pins. */
  readonly systemCalls: number;
  /** Of these, slots that go or come. */
  readonly slotChanges: number;
}

/** Counts the steps of a plan. */
export function effortOf(plan: Plan | null): Effort {
  if (plan === null) return { steps: 0, systemCalls: 0, slotChanges: 0 };
  let [steps, systemCalls, slotChanges] = [plan.discards.length, plan.discards.length, 0];
  for (const step of plan.steps) {
    // That memory is brought in no longer is for its inverse to know.
    if (step.kind === "prefetch" && step.to === null) continue;
    steps++;
    if (step.kind !== "dma") systemCalls++;
    // Memory comes back by one call, and is protected by another.
    if (step.kind === "host" && step.action === "restore") systemCalls++;
    if (step.kind === "slot") slotChanges++;
  }
  return { steps, systemCalls, slotChanges };
}

/** One line about a request, for a log. */
export function reportText({ name, region, parts, error }: RequestReport): string {
  const what = region === null ? name : partText({ name, region });
  const shown = parts.slice(0, MOST_PARTS).map(partText);
  const more = parts.length > MOST_PARTS ? [`and ${parts.length - MOST_PARTS} more`] : [];
  const list = parts.length === 0 ? "" : ` of ${[...shown, ...more].join(", ")}`;
  return `${what}${list}${error === null ? "" : " failed"}`;
}

const MOST_PARTS = 8;

/** What one part of a batch is called. */
export function partText({ name, region }: RequestPart): string {
  return region === null ? name : `${name}: region "${region.name}" ${region.range}`;
}
