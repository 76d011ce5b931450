/**
 * Targets for tests: a partition, a DMA target and a host address range that keep their state in plain memory, log
 * every call, refuse what they should never be asked for, and fail when told to.
 *
 * They need no permission, no KVM and no guest, so a VMM can test how it drives its memory map anywhere, and see what it
 * does when the host refuses.
 *
 * @example A partition whose second call fails
 * ```ts
 * import { MemoryRange } from "membacking";
 * import { failAfter, RecordingPartition } from "membacking/testing";
 *
 * const partition = new RecordingPartition({ faults: failAfter(1) });
 * const range = new MemoryRange(0x0, 0x1000);
 * partition.mapRange(0x7f00_0000_0000, range, { writable: true, executable: true });
 * try {
 *   partition.unmapRange(range);
 * } catch (error) {
 *   console.log(`${error}`); // InjectedFault: Injected fault: partition failed in unmapRange(0x0-0x1000), nothing-done
 * }
 * console.assert(partition.ranges.length === 1);
 * ```
 *
 * @module
 */

export type { CallMethod, RecordedCall, TargetCall } from "./call.ts";
export {
  type CallEffects,
  failAfter,
  FAILURE_MODES,
  type FailureMode,
  type FaultOptions,
  Faults,
  InjectedFault,
} from "./faults.ts";
export { type RecordingOptions, TargetStateError } from "./recorder.ts";
export { type PartitionRange, RecordingPartition, type RecordingPartitionOptions } from "./recording_partition.ts";
export { type RecordedDmaMapping, RecordingDmaTarget } from "./recording_dma_target.ts";
export { type RecordedBacking, type RecordedVaRange, RecordingVa, type RecordingVaOptions } from "./recording_va.ts";
