/**
 * What the thread of the machine and the thread of its vCPU say to each other.
 *
 * @module
 */

import type { KvmExit, KvmRegs, KvmSregs, SharedVcpu } from "membacking/kvm";
import type { FwCfgFile } from "./fw_cfg.ts";
import type { Visibility } from "./pam.ts";

/** The first message to the vCPU's thread. */
export interface VcpuJob {
  /** The vCPU to run. */
  readonly vcpu: SharedVcpu;
  /** Where answers to memory requests are left. */
  readonly mailbox: SharedArrayBuffer;
  /** The RAM below 4 GiB, in bytes. */
  readonly ram: number;
  /** The addresses at which cards can be. */
  readonly bus: readonly [start: number, end: number];
  /** Files for the firmware. */
  readonly files: readonly FwCfgFile[];
}

/** A memory request, answered through the mailbox. */
export type MemoryMessage =
  | {
    readonly kind: "visibility";
    readonly changes: readonly { readonly start: number; readonly end: number; readonly to: Visibility }[];
    readonly cause: string;
  }
  | { readonly kind: "bar"; readonly bar: number; readonly gpa: number | null; readonly cause: string };

/** What the vCPU was doing when it could not go on. */
export interface Crash {
  /** Why it came out of the guest for good. */
  readonly exit: KvmExit;
  /** Its general registers. */
  readonly regs: KvmRegs;
  /** Its special registers. */
  readonly sregs: KvmSregs;
}

/** How a boot ended. */
export interface BootEnd {
  /** What ended it; `null` if the firmware found nothing to boot, which is what it is expected to come to. */
  readonly crash: Crash | null;
  /** How often the guest left to the VMM, by the kind of exit. */
  readonly exits: Readonly<Record<string, number>>;
  /** How long the guest ran, in milliseconds. */
  readonly millis: number;
}

/** Messages from the vCPU's thread. */
export type VcpuMessage =
  | MemoryMessage
  | { readonly kind: "log" | "finding"; readonly line: string }
  | { readonly kind: "refused"; readonly why: string }
  | { readonly kind: "end"; readonly end: BootEnd }
  | { readonly kind: "failed"; readonly error: unknown };
