import type { Mappable } from "../../ffi/files/mappable.ts";

/** How device memory behaves. */
export interface DeviceMemoryOptions {
  /**
   * What a guest access to an address without a mapping does. `"exit"` (the default): an MMIO exit, for the device to
   * answer. `"fault"`: KVM_RUN fails with EFAULT, and mapping and unmapping cost no slot change, for windows whose
   * mappings change all the time (virtio-fs DAX).
   */
  readonly holes?: "exit" | "fault";
  /**
   * Who wins an address, 0 (the default) to 255: RAM has 255 unless `ramPriority` says otherwise. Of device memory of equal
   * priority that overlaps, which `overlap: "any"` allows, the one made first wins, wherever they move.
   */
  readonly priority?: number;
}

/** What to put where in device memory. */
export interface DeviceMapping {
  /** Where in the device memory, in bytes; page-aligned. */
  readonly offset: number;
  /** The file, of which the device memory keeps a clone of its own. */
  readonly mappable: Mappable;
  /** Where in the file the range begins, in bytes; page-aligned, 0 by default. */
  readonly fileOffset?: number;
  /** In bytes; page-aligned, above 0. By default all of the file from `fileOffset` on, in whole pages. */
  readonly length?: number;
  /** Whether it may be written where `mapToGuest` allows it too; `true` by default. */
  readonly writable?: boolean;
  /**
   * Whether the file is shown as it is until it is written: written pages are the device memory's own, wherever it moves,
   * and the file stays as it is and may be read-only. Needs a file of ordinary pages that nobody can truncate. `false` by
   * default; clients cannot have it.
   */
  readonly copyOnWrite?: boolean;
}
