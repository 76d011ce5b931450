/**
 * What the thread of the machine and the threads of its vCPUs say to each other.
 *
 * @module
 */

import type { SharedVcpuControl, VcpuState } from "membacking/kvm";
import type { Crash } from "../pc/crash.ts";

/** The only message to a vCPU's thread. */
export interface VcpuJob {
  /** The vCPU to run. */
  readonly vcpu: SharedVcpuControl;
  /** Where devices answer. */
  readonly mailbox: SharedArrayBuffer;
}

/** How often a vCPU left the guest, by the kind of exit; ports and addresses apart. */
export type ExitCounts = Readonly<Record<string, number>>;

/** The only message from it. */
export type VcpuEnd =
  | { readonly why: "kicked"; readonly exits: ExitCounts; readonly state: VcpuState }
  | { readonly why: "crashed"; readonly exits: ExitCounts; readonly crash: Crash }
  | { readonly why: "failed"; readonly exits: ExitCounts; readonly error: unknown };
