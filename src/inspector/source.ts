import { GuestMemoryManager } from "../guest/guest_memory_manager.ts";
import type { RegionInternals } from "../regions/region_internals.ts";
import { internalsOf, RegionManager } from "../regions/region_manager.ts";

/** Device memory, whether the guest has it or not. */
export interface Device {
  /** Its name. */
  readonly name: string;
  /** Where the guest has it, `null` for nowhere. */
  readonly start: number | null;
  /** Where that ends. */
  readonly end: number | null;
}

/** What an inspector looks at. */
export interface Source {
  /** The manager. */
  readonly regions: RegionManager;
  /** What is inside it. */
  readonly map: RegionInternals;
  /** The device memory, `null` where nobody knows more than the regions. */
  devices(): readonly Device[] | null;
}

/** Makes a source of a manager. */
export function sourceOf(guest: GuestMemoryManager | RegionManager): Source {
  if (guest instanceof RegionManager) return { regions: guest, map: internalsOf(guest), devices: () => null };
  if (!(guest instanceof GuestMemoryManager)) throw new TypeError("A GuestMemoryManager or a RegionManager is needed");
  return {
    regions: guest.regions,
    map: internalsOf(guest.regions),
    devices: () =>
      guest.devices.map(({ name, gpa, length }) => ({ name, start: gpa, end: gpa === null ? null : gpa + length })),
  };
}
