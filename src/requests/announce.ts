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
 * @throws {MappingError} If one refuses. Nothing has been done by then, and those that were told before are told so.
 */
export function announceDma(steps: readonly Step[], { dmaTargets }: State, va: VaTarget<Mappable>): void {
  if (dmaTargets.length === 0) return;
  const all = announcements(steps, steps.length, va, ({ from }) => from, ({ to }) => to);
  for (const [i, { dma, unmaps, maps }] of all.entries()) {
    try {
      prepare(dma, { unmaps, maps });
    } catch (cause) {
      for (const { dma } of all.slice(0, i)) tryToPrepare(dma, NOTHING);
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

/**
 * Tells them what undoing the first `count` of `steps` will do, and those to whom nothing has been done yet that nothing
 * will be. What they say to that changes nothing.
 */
export function announceUndo(steps: readonly Step[], count: number, va: VaTarget<Mappable>): void {
  for (const { dma, unmaps, maps } of announcements(steps, count, va, ({ to }) => to, ({ from }) => from)) {
    tryToPrepare(dma, { unmaps, maps });
  }
}

const NOTHING = { unmaps: [], maps: [] };

function tryToPrepare(dma: DmaState, change: Omit<Announcement, "dma">): void {
  try {
    prepare(dma, change);
  } catch {
    // The calls themselves will say what is wrong.
  }
}

function prepare({ target }: DmaState, change: Omit<Announcement, "dma">): void {
  // SAFETY: the manager puts nothing but DmaTargets into a state.
  const dma = target as DmaTarget;
  if (dma.prepareDma !== undefined) expectSync(dma.prepareDma(change));
}

/** What the first `count` of `steps` take from each DMA target that is in any of them, in their order, and give it. */
function announcements(
  steps: readonly Step[],
  count: number,
  va: VaTarget<Mappable>,
  taken: (step: DmaStep) => DmaStep["from"],
  given: (step: DmaStep) => DmaStep["to"],
): readonly Announcement[] {
  const found: Announcement[] = [];
  let announcement: Announcement | undefined;
  for (let i = 0; i < steps.length; i++) {
    const step = steps[i]!;
    if (step.kind !== "dma" || step.uncertain) continue;
    const { dma, start, end } = step;
    // The steps of a target follow one another, first what it loses and later what it is given.
    if (announcement?.dma.id !== dma.id) announcement = found.find((each) => each.dma.id === dma.id);
    if (announcement === undefined) found.push(announcement = { dma, unmaps: [], maps: [] });
    if (i >= count) continue;
    const range = new MemoryRange(start, end);
    const piece = given(step);
    if (taken(step) !== null) announcement.unmaps.push(range);
    if (piece !== null) announcement.maps.push(dmaRequest(range, piece, va));
  }
  return found;
}
