/**
 * KVM's log of written pages as one ring a vCPU.
 *
 * An entry names a slot by its number and a page within it, and outlives the slot. So the rings are emptied when a slot is
 * gone and before its number is used again; what they had is kept by guest-physical address until it is asked for.
 *
 * Why it is safe: an entry that names no slot, or a page beyond its end, is ignored.
 *
 * @module
 */

import { MembackingError } from "../../src/core/errors.ts";
import { LeftBehind } from "../../src/core/left_behind.ts";
import { type MemoryRange, PAGE_SIZE } from "../../src/core/memory_range.ts";
import type { MarkDirty } from "../../src/core/targets.ts";
import { KvmCap } from "./constants.ts";
import type { DirtySource } from "./dirty_source.ts";
import { ioctlValue } from "./ioctl.ts";
import { DIRTY_GFN } from "./layout.ts";
import { newRing, RingReader, type SharedRing } from "./ring_reader.ts";
import type { Slot } from "./slot_book.ts";
import { enableCap } from "./vm_requests.ts";

/** How many entries a ring has when nothing else is said: 1 MiB a vCPU. */
const RING_ENTRIES = 65_536;

/** The rings of one virtual machine, all of one length. */
export class DirtyRings implements DirtySource {
  readonly #entries: number;
  readonly #readers: RingReader[] = [];
  /** The slots that log, by number. */
  readonly #slots = new Map<number, MemoryRange>();
  /** What was harvested and not asked for yet. */
  readonly #left = new LeftBehind();

  private constructor(entries: number) {
    this.#entries = entries;
  }

  /**
   * Makes the new VM `vm` keep rings of `entries` entries, a power of two, or of the usual number.
   *
   * @throws {MembackingError} If this KVM has none, or none of that length.
   */
  static enable(vm: number, wanted: number | undefined): DirtyRings {
    const cap = [KvmCap.DIRTY_LOG_RING_ACQ_REL, KvmCap.DIRTY_LOG_RING]
      .find((cap) => ioctlValue(vm, "KVM_CHECK_EXTENSION", cap) > 0);
    if (cap === undefined) {
      throw new MembackingError(
        'This KVM has no dirty ring: it lacks KVM_CAP_DIRTY_LOG_RING, which Linux 5.11 brought; use dirtyLog "bitmap"',
      );
    }
    const most = ioctlValue(vm, "KVM_CHECK_EXTENSION", cap) / DIRTY_GFN.size;
    const entries = wanted ?? Math.min(RING_ENTRIES, most);
    if (entries > most) {
      throw new MembackingError(`This KVM's dirty rings have at most ${most} entries, and ${entries} are asked for`);
    }
    enableCap(vm, cap, [BigInt(entries * DIRTY_GFN.size)]);
    return new DirtyRings(entries);
  }

  prepare(): void {}

  begin(_vm: number, slot: Slot, turn: () => number): number {
    const failed = turn();
    if (failed === 0) this.born(slot);
    return failed;
  }

  born({ slot, range }: Slot): void {
    this.#slots.set(slot, range);
  }

  leaving(): void {}

  gone(_vm: number, slot: Slot): void {
    this.#harvestLast([slot]);
    this.#slots.delete(slot.slot);
  }

  ended(slot: Slot): void {
    this.gone(0, slot);
  }

  take(_vm: number, _slots: readonly Slot[], range: MemoryRange, mark: MarkDirty): void {
    this.#harvest();
    this.takeRest(range, mark);
  }

  takeRest(range: MemoryRange, mark: MarkDirty): void {
    this.#left.handOut(mark, range);
  }

  vcpuMade(vm: number, vcpu: number): SharedRing {
    const shared = newRing(vm, this.#entries);
    this.#readers.push(new RingReader(vcpu, shared));
    return shared;
  }

  close(slots: readonly Slot[]): void {
    try {
      this.#harvestLast(slots);
    } finally {
      for (const reader of this.#readers) reader[Symbol.dispose]();
      this.#readers.length = 0;
      this.#slots.clear();
    }
  }

  /** The same where `slots` cannot be asked again: what cannot be known may all have been written. */
  #harvestLast(slots: readonly Slot[]): void {
    try {
      this.#harvest();
    } catch {
      for (const { range } of slots) this.#left.marks.add(range.start, range.end);
    }
  }

  #harvest(): void {
    const left = this.#left.marks;
    let last: MemoryRange | undefined;
    let lastSlot = -1;
    let lost = false;
    for (const reader of this.#readers) {
      const lostHere = reader.harvest((slot, page) => {
        if (slot !== lastSlot) {
          lastSlot = slot;
          last = this.#slots.get(slot);
        }
        if (last === undefined) return;
        const at = last.start + page * PAGE_SIZE;
        if (at < last.end) left.add(at, at + PAGE_SIZE);
      });
      lost ||= lostHere;
    }
    if (lost) { for (const { start, end } of this.#slots.values()) left.add(start, end); }
    // One call for all rings.
    this.#readers[0]?.reset();
  }
}
