/**
 * What DMA targets have to be told. A mapping is never cut: it goes whole, and what is left of it comes anew.
 *
 * @module
 */

import { MappingError } from "../errors.ts";
import { hex } from "../hex.ts";
import { MemoryRange } from "../memory_range.ts";
import { type Entry, RangeMap } from "../range_map.ts";
import { type RangeChanges, reconcile } from "./slots.ts";
import { EVERYWHERE, parted, type Span } from "../span.ts";
import type { DmaState, State } from "../map/state.ts";
import type { Step } from "./steps.ts";
import { type Piece, piecesIn, unpoisoned } from "../map/view.ts";

function isSameDma(a: Piece, b: Piece): boolean {
  if (a.writable !== b.writable || a.region.type !== b.region.type) return false;
  const [x, y] = [a.mapping, b.mapping];
  return x === y ||
    (x.backing !== null && y.backing !== null && x.backing.file === y.backing.file && x.delta === y.delta);
}

/** What changes for one DMA target. */
export interface DmaPlan extends RangeChanges<Piece> {
  readonly dma: DmaState;
  readonly stays: boolean;
  /** Mappings that it may hold without our knowing, to be taken away first, and those that are left for later. */
  readonly cleared: readonly Span[];
  readonly doubts: readonly Span[];
}

/** Plans for DMA targets that stay, come and go. */
export function planDmaTargets(old: State, next: State, spans: readonly Span[]): DmaPlan[] {
  const plans: DmaPlan[] = [];
  for (const dma of next.dmaTargets) {
    const was = old.dmaTargets === next.dmaTargets || old.dmaTargets.some(({ id }) => id === dma.id);
    const over = was ? spans : EVERYWHERE;
    const wanted = over.flatMap(({ start, end }) => piecesIn(next, start, end));
    if (dma.needsFd) checkFiles(wanted);
    const { gone, added, book } = reconcile(dma.book, unpoisoned(wanted, next), over, isSameDma) ??
      { gone: [], added: [], book: dma.book };
    const { inside, outside } = parted(dma.doubts, over);
    plans.push({ dma, gone, added, book, stays: true, cleared: inside, doubts: outside });
  }
  if (old.dmaTargets === next.dmaTargets) return plans;
  for (const dma of old.dmaTargets) {
    if (next.dmaTargets.some(({ id }) => id === dma.id)) continue;
    const gone = [...dma.book];
    plans.push({ dma, gone, added: [], book: RangeMap.EMPTY, stays: false, cleared: dma.doubts, doubts: [] });
  }
  return plans;
}

/** The DMA targets with what they hold after the plan. */
export function bookedDma(targets: readonly DmaState[], plans: readonly DmaPlan[]): readonly DmaState[] {
  if (targets.length === 0) return targets;
  return plans.filter(({ stays }) => stays).map(({ dma, book, doubts }) => ({ ...dma, book, doubts }));
}

function checkFiles(wanted: readonly Entry<Piece>[]): void {
  const bare = wanted.find(({ value }) => value.mapping.backing === null);
  if (bare === undefined) return;
  throw new MappingError(
    `A DMA target needs file descriptors and the memory at ${hex(bare.start)} is private, back it by a memfd`,
    new MemoryRange(bare.start, bare.end),
  );
}

/** Appends the steps that take mappings away from a DMA target. */
export function pushDmaUnmaps(steps: Step[], { dma, gone, cleared }: DmaPlan): void {
  for (const { start, end } of cleared) {
    steps.push({ kind: "dma", dma, start, end, from: null, to: null, uncertain: true });
  }
  for (const { start, end, value } of gone) {
    steps.push({ kind: "dma", dma, start, end, from: value, to: null, uncertain: false });
  }
}

/** Appends the steps that tell a DMA target of mappings. */
export function pushDmaMaps(steps: Step[], { dma, added }: DmaPlan): void {
  for (const { start, end, value } of added) {
    steps.push({ kind: "dma", dma, start, end, from: null, to: value, uncertain: false });
  }
}
