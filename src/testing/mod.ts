/**
 * Targets for tests: a partition, a DMA target and a host address range that keep their state in plain memory, log
 * every call, refuse what they should never be asked for, and fail when told to.
 *
 * They need no permission, no KVM and no guest, so a VMM can test how it drives its memory map anywhere, and see what it
 * does when the host refuses.
 *
 * @example A request that fails halfway
 * ```ts
 * import { MappingError, MemoryRange, RegionManager } from "membacking";
 * import { Faults, RecordingPartition, RecordingVa } from "membacking/testing";
 *
 * const faults = new Faults();
 * const vm = new RecordingPartition({ name: "vm", faults });
 * using regions = new RegionManager(new RecordingVa(0x10_0000, { faults }));
 * using _attached = regions.addPartition(vm);
 *
 * using ram = regions.newRegion({ name: "ram", range: new MemoryRange(0x0, 0x4000), priority: 0 });
 * ram.addMapping({ rangeInRegion: new MemoryRange(0x0, 0x4000), mappable: "private" });
 * ram.map();
 *
 * // Making it read-only takes three steps: slot away, protection, slot back. The last one fails.
 * faults.failAfter(2, { mode: "done-then-failed" });
 * try {
 *   ram.map({ writable: false });
 * } catch (error) {
 *   console.assert(error instanceof MappingError && error.cause === faults.fired[0]);
 * }
 * console.assert(vm.accessAt(0x0)?.writable === true); // as if nothing had happened
 * ```
 *
 * @module
 */

export type { HostBytes } from "../core/targets.ts";
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
export { standIn } from "./stand_in.ts";
