import type { Mappable } from "../../ffi/files/mappable.ts";
import type { VaMapper } from "../../ffi/host/va_mapper.ts";
import type { OverlapRule } from "../core/map/overlap.ts";
import type { VaTarget } from "../core/targets.ts";
import type { Logger, Quiesce } from "../targets/targets.ts";
import type { RamBacking } from "./ram_backing.ts";

/** What guest memory is made of. */
export interface GuestMemoryOptions {
  /** Where guest memory ends, in bytes: RAM, and everything that will ever be mapped, lies below. Page-aligned. */
  readonly maxAddress: number;
  /** The RAM; none if empty. */
  readonly ram: readonly RamBacking[];
  /**
   * Whether the ranges that PC chipsets switch on and off become regions of their own, for `setRamVisibility`: the VGA
   * window 0xa0000-0xc0000, the twelve PAM ranges of 0x4000 bytes from 0xc0000 on, and 0xf0000-0x100000. All begin as
   * ordinary RAM. Needs shared RAM of ordinary pages from 0 to at least 1 MiB. `false` by default.
   */
  readonly x86Legacy?: boolean;
  /** Whether all memory is pinned into host memory for partitions that are attached, `false` by default. */
  readonly pin?: boolean;
  /** The priority of RAM, 0 to 255: 255 by default, so that it hides whatever else is at its addresses. */
  readonly ramPriority?: number;
  /**
   * `"nested"` (the default): of two overlapping regions the higher one contains the lower, or both are of equal priority
   * and on one range. `"any"`: no such rule. RAM never overlaps RAM, under either.
   */
  readonly overlap?: OverlapRule;
  /** Is told what the manager does; `console` fits. Silent by default. A logger that throws is ignored. */
  readonly logger?: Logger;
  /** Holds vCPUs while a change that is not atomic to them is made. Without it, changes are made all the same. */
  readonly quiesce?: Quiesce;
  /**
   * Where memory is mapped: a `VaMapper` of at least `maxAddress` bytes that serves no other manager and stays the caller's
   * to dispose, or the `RecordingVa` of `membacking/testing`, with which a VMM can be tested without any permission: its
   * RAM stands in for memfds and has no file descriptor. Left out: addresses are reserved.
   */
  readonly va?: VaMapper | VaTarget<Mappable>;
}

/** How a partition is attached. */
export interface AttachOptions {
  /**
   * If given, all memory appears a second time, at its GPA plus this many bytes (in OpenVMM, the VTL0 alias map). A
   * multiple of 2 MiB at or above `maxAddress`.
   */
  readonly aliasOffset?: number;
}

/** How a clone is made: what it does not have from its template. */
export type CloneOptions = Pick<GuestMemoryOptions, "overlap" | "ramPriority" | "logger" | "quiesce" | "va">;

/** How a snapshot is restored. */
export interface RestoreOptions extends CloneOptions {
  /**
   * Whether the snapshot's file is shown copy-on-write, which reads nothing and costs memory only for what is written
   * (the default). Otherwise it is read into memory that can be shared with other processes.
   */
  readonly copyOnWrite?: boolean;
}
