import type { Mappable } from "../../ffi/files/mappable.ts";
import { MappingError } from "../core/errors.ts";
import type { DmaState, State } from "../core/map/state.ts";
import { MemoryRange } from "../core/memory_range.ts";
import type { DmaStep, Step } from "../core/plan/steps.ts";
import type { VaTarget } from "../core/targets.ts";
import type { DmaRequest, DmaTarget } from "../targets/targets.ts";
import { expectSync } from "../targets/sync.ts";
import { dmaRequest, messageOf, nameOf } from "./carry_out.ts";

/** What one DMA target is told at once. */
interface Announcement {
  readonly dma: DmaState;
  readonly unmaps: MemoryRange[];
  readonly maps: DmaRequest[];
}

/**
 * Tells DMA targets that want to know beforehand what `steps` will do to them.
 *
 * @throws {MappingError} If one refuses. Nothing has been done by then.
 */
export function announceDma(steps: readonly Step[], { dmaTargets }: State, va: VaTarget<Mappable>): void {
  if (dmaTargets.length === 0) return;
  for (const { dma, unmaps, maps } of announcements(steps, va, ({ from }) => from, ({ to }) => to)) {
    try {
      prepare(dma, { unmaps, maps });
    } catch (cause) {
      const name = nameOf(dma.target as DmaTarget, "DMA target");
      const first = unmaps[0] ?? maps[0]?.range ?? MemoryRange.EMPTY;
      throw new MappingError(
        `${name} refuses a change from ${first} on, nothing was done: ${messageOf(cause)}`,
        first,
        {
          cause,
        },
      );
    }
  }
}

/** Tells them what undoing `steps` will do. What they say to that changes nothing. */
export function announceUndo(steps: readonly Step[], { dmaTargets }: State, va: VaTarget<Mappable>): void {
  if (dmaTargets.length === 0) return;
  for (const { dma, unmaps, maps } of announcements(steps, va, ({ to }) => to, ({ from }) => from)) {
    try {
      prepare(dma, { unmaps, maps });
    } catch {
      // The calls themselves will say what is wrong.
    }
  }
}

function prepare({ target }: DmaState, change: Omit<Announcement, "dma">): void {
  // SAFETY: the manager puts nothing but DmaTargets into a state.
  const dma = target as DmaTarget;
  if (dma.prepareDma !== undefined) expectSync(dma.prepareDma(change));
}

/** What `steps` take from each DMA target, in their order, and what they give it. */
function announcements(
  steps: readonly Step[],
  va: VaTarget<Mappable>,
  taken: (step: DmaStep) => DmaStep["from"],
  given: (step: DmaStep) => DmaStep["to"],
): Iterable<Announcement> {
  const found = new Map<number, Announcement>();
  for (const step of steps) {
    if (step.kind !== "dma" || step.uncertain) continue;
    const { dma, start, end } = step;
    const announcement = found.get(dma.id) ?? { dma, unmaps: [], maps: [] };
    found.set(dma.id, announcement);
    const range = new MemoryRange(start, end);
    const piece = given(step);
    if (taken(step) !== null) announcement.unmaps.push(range);
    if (piece !== null) announcement.maps.push(dmaRequest(range, piece, va));
  }
  return found.values();
}
