/**
 * What the thread of the machine and the thread of its vCPU say to each other. Memory is no part of it: for that the
 * vCPU's thread is a client of the region manager.
 *
 * @module
 */

import type { SharedVcpuControl } from "membacking/kvm";
import type { Crash } from "../pc/crash.ts";
import type { Request } from "./chipset_memory.ts";
import type { FwCfgFile } from "./fw_cfg.ts";

/** The first message to the vCPU's thread. */
export interface VcpuJob {
  /** The vCPU to run. */
  readonly vcpu: SharedVcpuControl;
  /** Where the region manager serves it. */
  readonly regions: MessagePort;
  /** One 32-bit word: the number of the memory request that is under way. Written by the vCPU's thread. */
  readonly request: SharedArrayBuffer;
  /** The RAM below 4 GiB, in bytes. */
  readonly ram: number;
  /** The addresses at which cards can be. */
  readonly bus: readonly [start: number, end: number];
  /** Files for the firmware. */
  readonly files: readonly FwCfgFile[];
}

/** How a boot ended. */
export interface BootEnd {
  /** `"done"`: the firmware found nothing to boot, which is what it is expected to come to. */
  readonly why: "done" | "kicked" | "crash";
  /** What the vCPU was doing when it crashed. */
  readonly crash: Crash | null;
  /** How often the guest left to the VMM, by the kind of exit. */
  readonly exits: Readonly<Record<string, number>>;
  /** How long the guest ran, in milliseconds. */
  readonly millis: number;
}

/** Messages from the vCPU's thread. */
export type VcpuMessage =
  | { readonly kind: "log" | "finding"; readonly line: string }
  | { readonly kind: "request"; readonly number: number; readonly request: Request; readonly micros: number }
  | { readonly kind: "refused"; readonly error: string }
  | { readonly kind: "end"; readonly end: BootEnd }
  | { readonly kind: "failed"; readonly error: unknown };
