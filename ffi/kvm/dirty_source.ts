/**
 * What a virtual machine needs of the two ways in which KVM tells which pages a guest has written: a bitmap a slot
 * (`dirty_log.ts`) and a ring a vCPU (`dirty_ring.ts`).
 *
 * Why it is safe: types only.
 *
 * @module
 */

import type { MemoryRange } from "../../src/core/memory_range.ts";
import type { MarkDirty, MarkDirtyBitmap } from "../../src/core/targets.ts";
import type { SharedRing } from "./ring_reader.ts";
import type { Slot } from "./slot_book.ts";

/** How a virtual machine learns what its guest has written. */
export interface DirtySource {
  /**
   * Makes logging possible, before the first slot logs.
   *
   * @throws {MembackingError} If this KVM lacks what it takes; says what.
   */
  prepare(vm: number): void;
  /**
   * Has `turn` make `slot` log, and returns what it returns, an error number. What the guest wrote before is not
   * reported.
   */
  begin(vm: number, slot: Slot, turn: () => number): number;
  /** Notes a slot that logs from its birth. */
  born(slot: Slot): void;
  /** Keeps what a slot that logs has, just before it goes. */
  leaving(vm: number, slot: Slot): void;
  /** The same just after it has gone, before its number is used again. */
  gone(vm: number, slot: Slot): void;
  /** Forgets about a slot that does not log any more. */
  ended(slot: Slot): void;
  /**
   * Hands over what was written in `range` to `mark`, or to `markBitmap` what is a bitmap anyway; what is left of `slots`,
   * which log, stays for later.
   */
  take(vm: number, slots: readonly Slot[], range: MemoryRange, mark: MarkDirty, markBitmap?: MarkDirtyBitmap): void;
  /** The same when the VM is gone. */
  takeRest(range: MemoryRange, mark: MarkDirty): void;
  /** A vCPU was made. What its threads need to know is the result. */
  vcpuMade(vm: number, vcpu: number): SharedRing | undefined;
  /** Keeps what there is, before the VM is closed. `slots` are those that log, and had their `leaving`. */
  close(slots: readonly Slot[]): void;
}
