/**
 * What takes everything away from a target that goes: by a request, or with its manager.
 *
 * @module
 */

import type { DmaState, PartitionState } from "../map/state.ts";
import type { DmaStep, SlotStep } from "./steps.ts";

/** All slots of a partition: first what it may hold because an undo failed. */
export function slotGoodbyes(partition: PartitionState): readonly SlotStep[] {
  const { uncertain, held } = partition.slots;
  const steps: SlotStep[] = [];
  for (const { start, end } of uncertain) {
    steps.push({ kind: "slot", partition, start, end, from: null, to: null, uncertain: true });
  }
  for (const { start, end, value } of held) {
    steps.push({ kind: "slot", partition, start, end, from: value, to: null, uncertain: false });
  }
  return steps;
}

/** All mappings of a DMA target, in the same order. */
export function dmaGoodbyes(dma: DmaState): readonly DmaStep[] {
  const { uncertain, held } = dma.mappings;
  const steps: DmaStep[] = [];
  for (const { start, end } of uncertain) {
    steps.push({ kind: "dma", dma, start, end, from: null, to: null, uncertain: true });
  }
  for (const { start, end, value } of held) {
    steps.push({ kind: "dma", dma, start, end, from: value, to: null, uncertain: false });
  }
  return steps;
}
