/**
 * Guest memory for KVM virtual machine monitors on Deno.
 *
 * @module
 */

export { MemoryRange } from "./src/core/memory_range.ts";
export {
  DisposedError,
  GuestMemoryError,
  type GuestMemoryErrorKind,
  LimitError,
  MappingError,
  MembackingError,
  MemoryLockedError,
  type OutOfStep,
  ReentrancyError,
  RegionOverlapError,
  type RegionSummary,
} from "./src/core/errors.ts";
export { OsError } from "./ffi/os_error.ts";
export { Mappable, type MemfdOptions, type OpenOptions } from "./ffi/mappable.ts";
export { ReservationLostError, type ReserveOptions, VaMapper } from "./ffi/va_mapper.ts";
export type { OverlapRule } from "./src/core/overlap.ts";
export type { MapParams } from "./src/core/state.ts";
export type { Access, MemoryPolicy, Partition, VaTarget } from "./src/core/targets.ts";
export { type DmaRequest, type DmaTarget, type Logger, type Quiesce } from "./src/targets.ts";
export { type MappingOptions, RegionHandle } from "./src/region_handle.ts";
export {
  type DmaTargetOptions,
  type PartitionOptions,
  RegionManager,
  type RegionManagerOptions,
  type RegionOptions,
} from "./src/region_manager.ts";
export {
  type AttachOptions,
  GuestMemoryManager,
  type GuestMemoryOptions,
  type RamVisibility,
} from "./src/guest_memory_manager.ts";
export type { RamBacking } from "./src/ram_backing.ts";
export { RamLayoutError, type RamLayoutErrorKind } from "./src/core/ram_layout.ts";
export type { PrefaultOptions } from "./src/ram_prefault.ts";
export type { SharedRegion, SharedRegionsListener } from "./src/shareable_regions.ts";
export { DeviceMemory, type DeviceMemoryOptions, type InspectDeviceMemory } from "./src/device_memory.ts";
export type { InspectGuestMemory, InspectRamBacking } from "./src/inspect_guest.ts";
export type { MemoryUsage } from "./ffi/smaps.ts";
export { GuestMemory } from "./src/guest_memory.ts";
export { LockedMemory } from "./src/locked_memory.ts";
export type { InspectMapping, InspectNode, InspectPartition, InspectRegion } from "./src/inspect.ts";
export { drawMemoryMap, type DrawOptions } from "./src/draw.ts";
