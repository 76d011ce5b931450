/**
 * What a vCPU has to do with other threads, and with its VM.
 *
 * Why it is safe: types only.
 *
 * @module
 */

import type { SharedRing } from "./ring_reader.ts";

/** What another thread of this process needs to use a vCPU. Plain data: send it with `postMessage`. */
export interface SharedVcpu {
  /** The vCPU's descriptor, which stays the property of the `KvmVcpu` it was taken from. */
  readonly fd: number;
  /** The length of what it shares with the VMM, in bytes. */
  readonly runSize: number;
  /** Its ring of written pages, where the VM has been made with `dirtyLog: "ring"`. */
  readonly ring?: SharedRing;
  /** Where threads that attach leave word, so that what they had can be given back if they are terminated. */
  readonly attachments?: SharedArrayBuffer;
}

/** The VM of a vCPU, as the vCPU sees it. */
export interface VcpuOwner {
  /** Its name in messages. */
  readonly name: string;
  /** Whether it has been disposed. */
  disposed: boolean;
  /** The vCPU's descriptor was handed out; copies of it may outlive this object. */
  shared(): void;
  /** The vCPU was disposed. */
  gone(vcpu: object): void;
}
