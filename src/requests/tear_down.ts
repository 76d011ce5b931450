import { regionsIn } from "../core/map/layers.ts";
import type { State } from "../core/map/state.ts";
import { releaseFiles } from "../memory/file_backing.ts";
import { piecesIn } from "../core/map/view.ts";
import { unpinAll } from "../core/plan/attend_track.ts";
import { dmaGoodbyes, slotGoodbyes } from "../core/plan/goodbyes.ts";
import type { HostStep, Step } from "../core/plan/steps.ts";
import { gaps, type Span } from "../core/span.ts";
import { carryOut, clear, type StepContext } from "./carry_out.ts";

/**
 * Takes everything away from every target and gives host memory back, whatever fails on the way. Pieces that overlap
 * one of the spans in `kept` stay mapped: somebody still looks at them.
 *
 * @returns What failed.
 */
export function tearDown(state: State, context: StepContext, kept: readonly Span[]): unknown[] {
  const failures: unknown[] = [];
  const attempt = (step: Step) => {
    if (step.kind !== "host" && step.uncertain) return void clear(step, context);
    try {
      carryOut(step, context);
    } catch (error) {
      failures.push(error);
    }
  };
  for (const dma of state.dmaTargets) dmaGoodbyes(dma).forEach(attempt);
  for (const partition of state.partitions) {
    unpinAll(partition).forEach(attempt);
    slotGoodbyes(partition).forEach(attempt);
  }
  for (const memory of state.parked.keys()) {
    try {
      context.va.discard(memory, memory.start, memory.end);
    } catch (error) {
      failures.push(error);
    }
  }
  // Addresses that are about to be unmapped as a whole need not be emptied first.
  if (context.va.disposed ?? false) return failures;
  for (const { start, end } of piecesIn(state)) {
    if (!kept.some((span) => span.start < end && start < span.end)) attempt(removal(start, end));
  }
  // What an undo left behind is in no region's mappings any more.
  const { lost, poisoned } = state.damage;
  for (const { start, end } of lost) {
    for (const gap of gaps(start, end, poisoned.overlapping(start, end))) attempt(removal(gap.start, gap.end));
  }
  return failures;
}

function removal(start: number, end: number): HostStep {
  return { kind: "host", action: "remove", start, end, mapping: null, writable: false };
}

/** Closes the files of all regions, and has the regions forget their states. */
export function forgetRegions({ layers, regions }: State): void {
  let table = regions;
  for (const region of regionsIn(layers)) {
    const state = table.get(region);
    if (state !== undefined) { for (const { value } of state.mappings) releaseFiles([value], NOTHING); }
    table = table.with(region, undefined);
  }
}

const NOTHING: readonly never[] = [];
