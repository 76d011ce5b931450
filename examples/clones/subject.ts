/**
 * What is cloned: guest memory of one moment, and how a machine is made that goes on from there.
 *
 * @module
 */

import type { GuestMemoryManager, Template } from "membacking";
import type { Kvm, KvmVcpu, KvmVm } from "membacking/kvm";

/** A guest that is warm and frozen. */
export interface Subject extends Disposable {
  /** What it is. */
  readonly title: string;
  /** How long it took to get there, in milliseconds. */
  readonly warmUp: number;
  /** How much RAM it has, in bytes. */
  readonly ram: number;
  readonly template: Template;
  /** Makes the virtual machine of a clone, and whatever belongs to the moment besides RAM. */
  machine(kvm: Kvm, guest: GuestMemoryManager): Machine;
  /** What it has to answer to a question. */
  answer(question: number): number;
}

/** The virtual machine of a clone. */
export interface Machine extends Disposable {
  readonly vm: KvmVm;
  readonly vcpu: KvmVcpu;
  /** Puts the vCPU where it was at the moment of the template. */
  rewind(): void;
  /** Asks a question, runs the guest until it has answered, and returns the answer. */
  ask(question: number): number;
}
