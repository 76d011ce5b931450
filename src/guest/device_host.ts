import { regionOf } from "../regions/region_handle.ts";
import { internalsOf, type RegionManager } from "../regions/region_manager.ts";
import type { DeviceMemoryHost } from "./device_memory.ts";

/** What device memory needs of a manager. */
export function deviceHost(regions: RegionManager): DeviceMemoryHost {
  return {
    isDisposed: () => regions.disposed,
    nextAge: () => internalsOf(regions).service.nextId(),
    newRegion: (options, age) => internalsOf(regions).service.newRegion(options, age),
    batch: (requests) => regions.batch(requests),
    whenDecided: (outcome) => internalsOf(regions).whenDecided(outcome),
    copies: {
      addMapping: (region, mapping, own) => internalsOf(regions).service.addMapping(regionOf(region), mapping, own),
      removeKeeping: (region) => internalsOf(regions).service.removeKeeping(regionOf(region)),
      forget: (ranges) => internalsOf(regions).service.forget(ranges),
    },
  };
}
