import { MemoryRange } from "../memory_range.ts";
import { normalize, type Span } from "../span.ts";
import type { HostTrack } from "./host_track.ts";
import type { SlotTrack } from "./slot_track.ts";
import { isTurn, type Step } from "./steps.ts";

/**
 * Where a running guest could see the request half done.
 *
 * One system call that a guest sees is atomic to it, and ranges that only appear expose nothing: each was absent before.
 */
export function exposedRanges(
  steps: readonly Step[],
  host: HostTrack,
  partitions: readonly SlotTrack[],
): readonly MemoryRange[] {
  if (steps.length === 0 || (steps.length === 1 && !isLate(steps[0]!))) return NOT_EXPOSED;
  return exposedAmong(steps, host, partitions);
}

function exposedAmong(
  steps: readonly Step[],
  { parking, arriving, leaving }: HostTrack,
  partitions: readonly SlotTrack[],
): readonly MemoryRange[] {
  let unmaps = 0;
  const seen: Span[] = [];
  for (const step of steps) {
    if (step.kind !== "slot" || isTurn(step)) continue;
    if (step.to === null) unmaps++;
    seen.push(step);
  }
  let live = 0;
  let late = false;
  for (const list of [parking, arriving, leaving]) {
    for (const step of list) {
      if (!isUnderSlot(step, partitions)) continue;
      live++;
      late ||= isLate(step);
      seen.push(step);
    }
  }
  if (!late && (seen.length < 2 || (unmaps === 0 && live === 0))) return NOT_EXPOSED;
  return normalize(seen).map(({ start, end }) => new MemoryRange(start, end));
}

const NOT_EXPOSED: readonly MemoryRange[] = [];

/** Whether the step replaces memory by way of another address, which a guest could see. */
function isLate(step: Step): boolean {
  if (step.kind !== "host" || step.mapping === null || step.mapping.backing === null) return false;
  return step.mapping.backing.mayFailLate;
}

/** Whether a guest may look at `span` all the while: some partition has it before and after. */
function isUnderSlot({ start, end }: Span, partitions: readonly SlotTrack[]): boolean {
  return partitions.some(({ partition, after }) =>
    partition.slots.held.overlaps(start, end) && after.slots.held.overlaps(start, end)
  );
}
