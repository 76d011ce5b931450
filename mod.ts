/**
 * Guest memory for KVM virtual machine monitors, written natively for Deno.
 *
 * A guest has one flat space of physical addresses, and a VMM decides what is where in it: RAM, firmware, a frame
 * buffer, the BARs of devices, and all of that changes while the guest runs. This package keeps three things in step
 * with those decisions: the host's own mappings, which are one reserved range of addresses in which guest address x
 * lives at `base + x`; the memory slots of virtual machines, which are told which ranges exist and may be written; and
 * DMA targets, which must know the file behind each mapping.
 *
 * **Regions** are named ranges with a priority. The mapped region of highest priority is visible; what lies below shows
 * again when it goes. **Mappings** put parts of files (memfds, usually) into a region. `RegionManager` has both, and
 * `GuestMemoryManager`, where a VMM begins, builds RAM out of them. `GuestMemory` reads and writes what is visible, and
 * locks it in place.
 *
 * Every request is decided before anything is touched: a pure core works out the next memory map and the steps that
 * lead there, and a transaction carries them out. If one fails, the ones done are undone and the error carries the
 * cause, so that a caller sees all of a request or nothing of it. The steps are chosen to disturb a running guest least:
 * a slot's host address depends on nothing but its guest address, so whose memory shows is a matter of one `mmap`,
 * which is atomic to the guest, and a slot changes only where memory appears, disappears or becomes read-only.
 *
 * The ideas come from the crate of the same name in OpenVMM. Where this one deviates: by default a hole in a region is
 * an MMIO exit and not a fault (`holes` chooses); a mapping in a read-only region is read-only; empty ranges are
 * refused; `unmapDma` names exactly one earlier `mapDma`, and a failing `mapDma` fails the request whatever the type of
 * memory; `executable` is recorded and passed on, though KVM does not enforce it, and host memory is never executable;
 * several requests can be one (`batch`); mappings can be cut and replaced; memory can be locked.
 *
 * Holes that remain:
 *
 * - What is not one system call is not atomic to a guest that nobody holds: give the manager a `quiesce` hook.
 * - Undo can fail. The error then names what is out of step, and the next request over it mends what it can, but until
 *   then a guest may find memory missing.
 * - The host's limit on mappings is the process's: what others in it have is counted now and then, and a quarter of the
 *   limit is left to them. A process that maps tens of thousands of other things at once can still run into it.
 * - Input and output that bytes of a lock were given to cannot be called back when the lock goes: wait for it first.
 * - x86-64 Linux with glibc and 4 KiB base pages, nothing else.
 *
 * @module
 */

export { MemoryRange } from "./src/core/memory_range.ts";
export { PageSet } from "./src/core/page_set.ts";
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
export { OsError } from "./ffi/os/os_error.ts";
export type { MemfdOptions } from "./ffi/files/memfd.ts";
export { type FromFdOptions, Mappable, type OpenOptions } from "./ffi/files/mappable.ts";
export { ReservationLostError } from "./ffi/host/failures.ts";
export { type ReserveOptions, VaMapper } from "./ffi/host/va_mapper.ts";
export type { OverlapRule } from "./src/core/map/overlap.ts";
export type { MapParams } from "./src/core/map/region.ts";
export type {
  Access,
  HostBytes,
  HostMemory,
  MarkDirty,
  MarkDirtyBitmap,
  MemoryPolicy,
  Partition,
  VaTarget,
} from "./src/core/targets.ts";
export { type DmaRequest, type DmaTarget, type Logger, type Quiesce } from "./src/targets/targets.ts";
export { type MappingOptions, RegionHandle } from "./src/regions/region_handle.ts";
export type { RegionInfo } from "./src/regions/region_info.ts";
export { RegionManager } from "./src/regions/region_manager.ts";
export type { RequestRecord } from "./src/regions/request_record.ts";
export type { DmaTargetOptions, PartitionOptions, RegionManagerOptions, RegionOptions } from "./src/regions/options.ts";
export { GuestMemoryManager, Template } from "./src/guest/guest_memory_manager.ts";
export type { GuestRam } from "./src/guest/guest_ram.ts";
export type { AttachOptions, CloneOptions, GuestMemoryOptions, RestoreOptions } from "./src/guest/options.ts";
export type { SaveOptions } from "./src/guest/save_options.ts";
export { Snapshot, type SnapshotOpenOptions } from "./src/snapshots/snapshot.ts";
export { SnapshotError, type SnapshotErrorKind } from "./src/core/snapshot_error.ts";
export type { RamBacking } from "./src/guest/ram_backing.ts";
export { RamHandle } from "./src/guest/ram_handle.ts";
export type { RamVisibility } from "./src/guest/ram_visibility.ts";
export { RamLayoutError, type RamLayoutErrorKind } from "./src/core/ram_layout.ts";
export type { PrefaultOptions } from "./src/guest/prefault.ts";
export type { SharedRegion, SharedRegionsListener } from "./src/guest/shareable_regions.ts";
export { DeviceMemory, type InspectDeviceMemory } from "./src/guest/device_memory.ts";
export type { DeviceMapping, DeviceMemoryOptions } from "./src/guest/device_options.ts";
export type { InspectGuestMemory, InspectRamBacking } from "./src/guest/inspect_guest.ts";
export type { MemoryUsage } from "./ffi/host/smaps.ts";
export { DirtyTracker } from "./src/memory/dirty_tracker.ts";
export { GuestMemory } from "./src/memory/guest_memory.ts";
export { MappedMemory } from "./src/memory/mapped_memory.ts";
export type { MemoryKind, MemoryPiece, PieceRegion } from "./src/memory/memory_piece.ts";
export { FileTransferError } from "./src/memory/transfers.ts";
export { type ConnectOptions, RegionManagerClient } from "./src/clients/region_manager_client.ts";
export { ProcessClient } from "./src/clients/process_client.ts";
export { RegionClient, type SynchronousOnly } from "./src/clients/region_client.ts";
export type { ServeOptions } from "./src/serving/server.ts";
export { ClientDeviceMemory } from "./src/clients/client_device_memory.ts";
export { ClientRegionHandle } from "./src/clients/client_region_handle.ts";
export { type SyncConnectOptions, SyncRegionManagerClient } from "./src/clients/sync_region_manager_client.ts";
export { RequestTimeoutError } from "./src/clients/request_timeout_error.ts";
export { LockedMemory, LockedRanges, type LockOptions } from "./src/memory/locked_memory.ts";
export type {
  InspectDmaTarget,
  InspectMapping,
  InspectNode,
  InspectPartition,
  InspectRegion,
} from "./src/regions/inspect.ts";
export { drawExplanation } from "./src/drawing/explanation.ts";
export type { Explanation } from "./src/regions/explanation.ts";
export { drawMemoryMap, type DrawOptions } from "./src/drawing/draw.ts";
export { drawMemoryMapSvg, type SvgOptions } from "./src/drawing/draw_svg.ts";
