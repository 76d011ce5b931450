import { type Mappable, standInMappable } from "../../ffi/files/mappable.ts";
import { PAGE_SIZE } from "../core/memory_range.ts";

/**
 * What stands in for a memfd in a test that has no permission: an array of zeros that can be read, written and mapped
 * with a `RecordingVa`. It has no file descriptor.
 *
 * @example A VMM's own test, which needs no permission
 * ```ts
 * import { drawMemoryMap, GuestMemoryManager, type Mappable, MemoryRange } from "membacking";
 * import { RecordingPartition, RecordingVa, standIn } from "membacking/testing";
 *
 * using guest = GuestMemoryManager.create({
 *   maxAddress: 0x800_0000,
 *   ram: [{ ranges: [new MemoryRange(0, 0x400_0000)] }],
 *   va: new RecordingVa<Mappable>(0x800_0000),
 * });
 * const vm = new RecordingPartition();
 * using _attached = guest.attachPartition(vm);
 *
 * guest.memory.write(0x10_0000, new TextEncoder().encode("kernel"));
 * using rom = standIn("rom", 0x1_0000);
 * using bar = guest.newDeviceMemory("rom", 0x1_0000);
 * bar.map({ offset: 0, mappable: rom, length: 0x1_0000, writable: false });
 * bar.mapToGuest(0x700_0000, false);
 *
 * console.assert(vm.accessAt(0x700_0000)?.writable === false);
 * console.assert(drawMemoryMap(guest.inspect()).includes("rom"));
 * ```
 *
 * @param size In bytes: a multiple of `pageSize`.
 * @throws {RangeError} If it is not, or 0.
 */
export function standIn(name: string, size: number, pageSize: number = PAGE_SIZE): Mappable {
  return standInMappable(name, size, pageSize);
}
