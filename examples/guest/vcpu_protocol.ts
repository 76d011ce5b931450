/**
 * What a `VcpuThread` and its Worker say to each other.
 *
 * @module
 */

import type { KvmExit, SharedVcpuControl } from "membacking/kvm";

/** The first message to the Worker. */
export interface VcpuJob {
  /** The vCPU to attach to. */
  readonly vcpu: SharedVcpuControl;
  /** A write to this port ends the run. */
  readonly stopPort: number;
}

/** A write to another port. */
export interface PortWrite {
  /** The port. */
  readonly port: number;
  /** What was written; the first four bytes. */
  readonly value: number;
}

/** An access to an address without memory. */
export interface MmioAccess {
  /** The guest-physical address. */
  readonly gpa: number;
  /** Whether it was a write. */
  readonly isWrite: boolean;
}

/** What happened while the vCPU ran. */
export interface VcpuReport {
  /** Why it ended: it was asked to, the guest wrote to the stop port, or an exit it cannot go on from. */
  readonly end: "asked" | "stop-port" | KvmExit["kind"] | "error";
  /** More about the end, for messages. */
  readonly detail: string;
  /** How often each kind of exit was seen. */
  readonly exits: Readonly<Partial<Record<KvmExit["kind"], number>>>;
  /** Port writes in order, as many as `RECORD_LIMIT`. */
  readonly portWrites: readonly PortWrite[];
  /** MMIO accesses in order, as many as `RECORD_LIMIT`. */
  readonly mmio: readonly MmioAccess[];
}

/** How many port writes and MMIO accesses are kept. */
export const RECORD_LIMIT = 4096;

/** Messages from the Worker. */
export type VcpuMessage =
  | { readonly kind: "ready" }
  | { readonly kind: "ended"; readonly report: VcpuReport };
