/**
 * What a `VcpuThread` and its Worker say to each other.
 *
 * @module
 */

import type { KvmExit, SharedVcpu } from "membacking/kvm";

/** Words of the memory they share. */
export const CONTROL = {
  /**
   * What the Worker shall do: a `WANT` in the low two bits, and above it the number of the wish, so that no two words
   * are the same and a Worker about to sleep on one sees that there is another. Written by the thread that owns the VM.
   */
  want: 0,
  /** Where the Worker is: a `STATE`. Written by the Worker. */
  state: 1,
  /** How many there are. */
  words: 2,
} as const;

/** What the Worker shall do. */
export const WANT = { run: 0, pause: 1, stop: 2 } as const;

/** The `WANT` in a word. */
export function wantOf(word: number): number {
  return word & 3;
}

/** Where the Worker is: maybe in the guest, held outside, or done. */
export const STATE = { running: 0, paused: 1, ended: 2 } as const;

/** The first message to the Worker. */
export interface VcpuJob {
  /** The vCPU to attach to. */
  readonly vcpu: SharedVcpu;
  /** The shared words. */
  readonly control: SharedArrayBuffer;
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
  | { readonly kind: "ready"; readonly threadId: number }
  | { readonly kind: "ended"; readonly report: VcpuReport };
