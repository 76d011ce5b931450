/**
 * What a step does to its target.
 *
 * @module
 */

import type { Mappable } from "../../ffi/files/mappable.ts";
import { MemoryRange } from "../core/memory_range.ts";
import type { Span } from "../core/span.ts";
import type { Piece } from "../core/map/region.ts";
import { type HostStep, isTurn, type Step } from "../core/plan/steps.ts";
import type { VaTarget } from "../core/targets.ts";
import { mappableOf, sharedFileOf } from "../memory/file_backing.ts";
import type { WrittenPages } from "../memory/written_pages.ts";
import { expectSync } from "../targets/sync.ts";
import type { DmaRequest, DmaTarget, Logger } from "../targets/targets.ts";

/** What steps act through, besides the partitions and DMA targets in them. */
export interface StepContext {
  /** Host memory. */
  readonly va: VaTarget<Mappable>;
  /** Where failures go that fail nothing. */
  readonly logger: Logger;
  /** Who keeps account of written pages, if anybody. */
  readonly written?: WrittenPages;
}

/** Carries out one step. A prefetch that fails is logged and fails nothing. */
export function carryOut(step: Step, context: StepContext): void {
  switch (step.kind) {
    case "host":
      return changeHostMemory(step, context.va);
    case "slot": {
      const { target, offset } = step.partition;
      if (target.disposed ?? false) return;
      const range = new MemoryRange(step.start + offset, step.end + offset);
      if (step.to === null) {
        context.written?.beforeStep(step);
        expectSync(target.unmapRange(range));
      } else if (isTurn(step)) expectSync(target.setDirtyLog?.(range, step.to.logDirty ?? false));
      else expectSync(target.mapRange(context.va.base + step.start, range, step.to));
      return;
    }
    case "dma": {
      // SAFETY: the manager puts nothing but DmaTargets into a state.
      const target = step.dma.target as DmaTarget;
      const range = new MemoryRange(step.start, step.end);
      if (step.to === null) context.written?.beforeStep(step);
      expectSync(step.to === null ? target.unmapDma(range) : target.mapDma(dmaRequest(range, step.to, context.va)));
      return;
    }
    case "pin": {
      const { target, offset } = step.partition;
      if (target.disposed ?? false) return;
      const range = new MemoryRange(step.start + offset, step.end + offset);
      expectSync(step.to === null ? target.unpinRange?.(range) : target.pinRange?.(range));
      return;
    }
    case "prefetch": {
      const { target, offset } = step.partition;
      if (step.to === null || (target.disposed ?? false)) return;
      const range = new MemoryRange(step.start + offset, step.end + offset);
      try {
        expectSync(target.prefetchRange?.(range, step.copyOnWrite));
      } catch (error) {
        context.logger.warn(`Prefetching ${range} failed`, error);
      }
      return;
    }
  }
}

/** Carries out one step on host memory. */
function changeHostMemory({ action, start, end, mapping, writable }: HostStep, va: VaTarget<Mappable>): void {
  if (mapping === null) return va.remove(start, end);
  const { own, delta, policy, kind } = mapping;
  if (action === "protect") return va.protect(start, end, writable);
  if (action === "park" && own !== null) return va.park(start, end, own, start + delta);
  if (action === "restore" && own !== null) return va.restore(start, end, own, start + delta, writable);
  const mappable = mappableOf(mapping);
  va.map(start, end, mappable, mappable === null ? 0 : start + delta, writable, policy, kind === "copy-on-write");
}

/** What a DMA target is told of a piece. */
export function dmaRequest(range: MemoryRange, piece: Piece, va: VaTarget<Mappable>): DmaRequest {
  const mappable = sharedFileOf(piece.mapping);
  return {
    range,
    hva: va.base + range.start,
    mappable,
    fileOffset: mappable === null ? 0 : range.start + piece.mapping.delta,
    writable: piece.writable,
    type: piece.region.type,
  };
}

/** What messages call the target of `step`. */
export function targetName(step: Step): string {
  if (step.kind === "host") return "host memory";
  return step.kind === "dma"
    ? nameOf(step.dma.target as DmaTarget, "DMA target")
    : nameOf(step.partition.target, "partition");
}

/** The name of a target, whatever it does when asked: an undo goes on. */
export function nameOf(target: { readonly name?: string }, otherwise: string): string {
  try {
    const { name } = target;
    return typeof name === "string" ? name : otherwise;
  } catch {
    return otherwise;
  }
}

/** What a target threw, in words, whatever it is. */
export function messageOf(error: unknown): string {
  try {
    return error instanceof Error ? `${error.message}` : String(error);
  } catch {
    return "it threw something that cannot be described";
  }
}

/** What messages call the effect of `step`. */
export function describe(step: Step): string {
  if (step.kind === "host") return step.action;
  if (isTurn(step)) return "log written pages of";
  const isMap = step.kind === "slot" || step.kind === "dma";
  return `${step.to === null ? "un" : ""}${isMap ? "map" : step.kind}`;
}

/** The GPA range of a step or span. */
export function rangeOf({ start, end }: Span): MemoryRange {
  return new MemoryRange(start, end);
}

/** Whether the step's target has it, or does it, afterwards. */
export function isThere(step: Step): boolean {
  return step.kind === "host" ? step.mapping !== null : step.to !== null;
}

/** Takes away what may be there, and says whether there was something. Throwing only says that there was nothing. */
export function clear(step: Exclude<Step, HostStep>, context: StepContext): boolean {
  try {
    carryOut({ ...step, to: null }, context);
    return true;
  } catch (error) {
    context.logger.debug(`Clearing ${rangeOf(step)} on ${targetName(step)} found nothing to clear`, error);
    return false;
  }
}
