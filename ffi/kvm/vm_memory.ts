/**
 * The memory of a virtual machine: its slots, their logs of written pages, and what is pinned.
 *
 * Why it is safe: a slot lets a guest write host memory by address, so
 *
 * - a slot over a reservation of this thread keeps the reservation from being unmapped, for as long as the slot exists;
 * - when the VM is closed while something may keep the kernel's VM alive (a vCPU not disposed or shared with another
 *   thread, a descriptor handed out), its slots are deleted one by one, before the reservations are let go.
 *
 * For host addresses that come from elsewhere, the caller of `mapRange` guarantees that they stay mapped.
 *
 * @module
 */

import { MappingError, MembackingError } from "../../src/core/errors.ts";
import { hex } from "../../src/core/hex.ts";
import { checkAligned, type MemoryRange, ownRange } from "../../src/core/memory_range.ts";
import type { Access, MarkDirty, MarkDirtyBitmap } from "../../src/core/targets.ts";
import { adviseHost } from "../os/advise.ts";
import { type Reservation, reservationAt } from "../host/reservation.ts";
import { HVA_LIMIT } from "../os/address_space.ts";
import { MADV_POPULATE_READ, MADV_POPULATE_WRITE } from "../os/mman.ts";
import { Errno, OsError } from "../os/os_error.ts";
import { addressOf } from "../os/view.ts";
import { KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY } from "./constants.ts";
import { DirtyBitmap } from "./dirty_log.ts";
import type { DirtySource } from "./dirty_source.ts";
import { ioctlErrno, REQUEST } from "./ioctl.ts";
import { MEMORY_REGION } from "./layout.ts";
import { Pins } from "./pins.ts";
import type { SharedRing } from "./ring_reader.ts";
import { type HostPiece, type Slot, SlotBook, type SlotInfo } from "./slot_book.ts";

/** What a VM has to know about its KVM. */
export interface VmSetup {
  /** Its name in messages. */
  readonly name: string;
  /** How many slots it can have. */
  readonly capacity: number;
  /** How many bits a guest-physical address has on this CPU. */
  readonly addressBits: number;
  /** Whether deleting a slot drops all shadow pages. */
  readonly zapsAllOnSlotDelete: boolean;
  /** How it learns what the guest has written, where not by bitmaps. */
  readonly dirty?: DirtySource;
}

/** How a guest may access a memory slot, and whether KVM notes what it writes: not where that is left out. */
export type SlotAccess = Omit<Access, "logDirty"> & { readonly logDirty?: boolean };

const TWO_32 = 2 ** 32;
const SET_MEMORY_REGION = REQUEST.KVM_SET_USER_MEMORY_REGION;

/** The argument of KVM_SET_USER_MEMORY_REGION: one for all, since it is filled in and read without a call in between. */
let argument: { readonly region: Uint32Array<ArrayBuffer>; readonly address: bigint } | undefined;

function newArgument(): NonNullable<typeof argument> {
  // In a buffer of its own, which the engine never moves: a pointer to it is good for as long as it lives.
  const region = new Uint32Array(new ArrayBuffer(MEMORY_REGION.size));
  return { region, address: BigInt(addressOf(region)) };
}

/** The memory of one virtual machine, whose descriptor stays the VM's. */
export class VmMemory {
  readonly #fd: number;
  readonly #name: string;
  readonly #capacity: number;
  readonly #addressBits: number;
  #closed = false;
  /** Whether what its guest has written is being told. */
  #isTelling = false;
  #book = new SlotBook();
  readonly #dirty: DirtySource;
  #pins = new Pins();
  // Addresses with pins stay reserved until they are unpinned, slot or not: the locks are counted by address.
  #pinned = new Set<Reservation>();
  #lastReservation: Reservation | undefined;

  /** The memory of the VM `fd`: none yet. */
  constructor(fd: number, { name, capacity, addressBits, dirty = new DirtyBitmap() }: VmSetup) {
    this.#fd = fd;
    this.#name = name;
    this.#capacity = capacity;
    this.#addressBits = addressBits;
    this.#dirty = dirty;
  }

  /** The memory slots, in the order of their guest-physical addresses. */
  get slots(): readonly SlotInfo[] {
    return this.#book.ordered.map(({ slot, range, hva, writable }) => ({ slot, range, hva, writable }));
  }

  /** As `KvmVm.mapRange`. */
  mapRange(hva: number, where: MemoryRange, access: SlotAccess): void {
    const range = ownRange(where, "A memory slot");
    const fd = this.#fd;
    checkAligned(hva, "Host address");
    const { start, end } = range;
    const length = end - start;
    if (length === 0) throw new RangeError(`Range ${range} is empty`);
    if (hva + length > HVA_LIMIT) throw new RangeError(`Host range ${hex(hva)}+${hex(length)} is not in user space`);
    const { writable, logDirty = false } = access;
    if (logDirty) this.#dirty.prepare(fd);
    const slot = this.#book.nextNumber;
    const failed = this.#setSlot(fd, slot, flagsOf(writable, logDirty), start, length, hva);
    if (failed !== 0) {
      const why = failed === Errno.EEXIST
        ? "another slot overlaps it"
        : slot >= this.#capacity
        ? `all ${this.#capacity} slots are in use`
        : failed === Errno.EINVAL && end > 2 ** this.#addressBits
        ? `its end is beyond the ${this.#addressBits} bits of a guest-physical address on this CPU (CPUID 0x80000008), ` +
          `the highest is ${hex(2 ** this.#addressBits - 1)}`
        : `slot ${slot} at host address ${hex(hva)}`;
      throw new OsError("KVM_SET_USER_MEMORY_REGION", failed, `cannot map ${range}: ${why}`);
    }
    const made: Slot = { slot, range, hva, writable, reservation: this.#retain(hva, length), logDirty };
    this.#book.add(made);
    if (logDirty) this.#dirty.born(made);
  }

  /** As `KvmVm.unmapRange`. */
  unmapRange(where: MemoryRange): void {
    const range = ownRange(where, "A memory slot");
    this.checkIdle();
    const fd = this.#fd;
    const found = this.#book.exactly(range);
    if (found === undefined) throw new MappingError(`${this.#name} has no memory slot at exactly ${range}`, range);
    if (found.logDirty) this.#dirty.leaving(fd, found);
    const failed = this.#setSlot(fd, found.slot, 0, range.start, 0, found.hva);
    if (failed !== 0) {
      throw new OsError("KVM_SET_USER_MEMORY_REGION", failed, `cannot unmap ${range}, slot ${found.slot}`);
    }
    if (found.logDirty) this.#dirty.gone(fd, found);
    this.#book.remove(found);
    found.reservation?.release();
  }

  /** As `KvmVm.setDirtyLog`. */
  setDirtyLog(where: MemoryRange, on: boolean): void {
    const range = ownRange(where, "A memory slot");
    this.checkIdle();
    const fd = this.#fd;
    const found = this.#book.exactly(range);
    if (found === undefined) throw new MappingError(`${this.#name} has no memory slot at exactly ${range}`, range);
    if (found.logDirty === on) return;
    const { slot, hva, writable } = found;
    const turn = (to: boolean) =>
      this.#setSlot(fd, slot, flagsOf(writable, to), range.start, range.end - range.start, hva);
    const next: Slot = { ...found, logDirty: on };
    let failed: number;
    try {
      if (on) this.#dirty.prepare(fd);
      failed = on ? this.#dirty.begin(fd, next, () => turn(true)) : turn(false);
    } catch (error) {
      turn(false);
      throw error;
    }
    if (failed !== 0) {
      const what = `cannot ${on ? "begin" : "end"} to log written pages of ${range}, slot ${slot}`;
      throw new OsError("KVM_SET_USER_MEMORY_REGION", failed, what);
    }
    this.#book.replace(next);
    if (on) return;
    this.#dirty.ended(found);
    this.#dirty.takeRest(range, () => {});
  }

  /** As `KvmVm.takeDirty`. */
  takeDirty(where: MemoryRange, mark: MarkDirty, markBitmap?: MarkDirtyBitmap): void {
    const range = ownRange(where, "A log of written pages");
    this.checkIdle();
    this.#isTelling = true;
    try {
      if (this.#closed) this.#dirty.takeRest(range, mark);
      else this.#dirty.take(this.#fd, this.#book.logging(range), range, mark, markBitmap);
    } finally {
      this.#isTelling = false;
    }
  }

  /**
   * Throws inside of what `takeDirty` calls: what has been told is about to be cleared, in the slots there are.
   *
   * @throws {MembackingError}
   */
  checkIdle(): void {
    if (!this.#isTelling) return;
    throw new MembackingError(
      `${this.#name} is telling what its guest has written, and cannot be changed or asked meanwhile`,
    );
  }

  /** As `KvmVm.prefetchRange`. */
  prefetchRange(where: MemoryRange, copyOnWrite: boolean): void {
    const range = ownRange(where, "Prefetching");
    for (const { hva, length, writable } of this.#pieces(range)) {
      adviseHost(hva, length, writable && !copyOnWrite ? MADV_POPULATE_WRITE : MADV_POPULATE_READ);
    }
  }

  /** As `KvmVm.pinRange`. */
  pinRange(where: MemoryRange): void {
    const range = ownRange(where, "Pinning");
    const pieces = this.#pieces(range);
    this.#pins.pin(pieces);
    for (const { hva, length } of pieces) {
      const reservation = reservationAt(hva, length);
      if (reservation !== undefined && !this.#pinned.has(reservation)) this.#pinned.add(reservation.retain());
    }
  }

  /** As `KvmVm.unpinRange`. */
  unpinRange(where: MemoryRange): void {
    const range = ownRange(where, "Unpinning");
    this.#pins.unpin(range.start, range.end);
    if (this.#pins.size === 0) this.#releasePinned();
  }

  /** Prepares for what a new vCPU writes. What its threads need to know of that is the result. */
  vcpuMade(vcpu: number): SharedRing | undefined {
    return this.#dirty.vcpuMade(this.#fd, vcpu);
  }

  /**
   * Takes all of it away, before the VM is closed by `close`. `isReachable`: whether something may keep the kernel's VM
   * alive beyond that.
   */
  clear(isReachable: boolean, close: () => void): void {
    this.#closed = true;
    const logging = [...this.#book.all].filter(({ logDirty }) => logDirty);
    this.#pins.unpin(0, Infinity);
    for (const slot of this.#book.all) {
      // A slot that will not go keeps its addresses reserved for good: better that than a guest in V8's heap.
      if (slot.logDirty) this.#dirty.leaving(this.#fd, slot);
      if (isReachable && this.#setSlot(this.#fd, slot.slot, 0, slot.range.start, 0, slot.hva) !== 0) {
        slot.reservation?.retain();
      }
    }
    this.#dirty.close(logging);
    close();
    for (const slot of this.#book.all) slot.reservation?.release();
    this.#releasePinned();
    this.#book = new SlotBook();
    this.#lastReservation = undefined;
  }

  /** The error number, 0 for success. A `length` of 0 deletes the slot. */
  #setSlot(fd: number, slot: number, flags: number, gpa: number, length: number, hva: number): number {
    // Eight 32-bit words, low half first. `>>> 0` takes a number modulo 2^32.
    const { region } = argument ??= newArgument();
    region[0] = slot;
    region[1] = flags;
    region[2] = gpa >>> 0;
    region[3] = gpa / TWO_32;
    region[4] = length >>> 0;
    region[5] = length / TWO_32;
    region[6] = hva >>> 0;
    region[7] = hva / TWO_32;
    // SAFETY: the struct has the size of the request and stays where it is; that the host memory does is seen to above.
    return ioctlErrno(fd, SET_MEMORY_REGION, argument.address);
  }

  #retain(hva: number, length: number): Reservation | undefined {
    let reservation = this.#lastReservation;
    if (
      reservation === undefined || reservation.released || hva < reservation.base ||
      hva >= reservation.base + reservation.length
    ) {
      reservation = this.#lastReservation = reservationAt(hva, length);
    }
    return reservation?.retain();
  }

  #releasePinned(): void {
    for (const reservation of this.#pinned) reservation.release();
    this.#pinned.clear();
  }

  #pieces(range: MemoryRange): HostPiece[] {
    return this.#book.pieces(range);
  }
}

function flagsOf(writable: boolean, logDirty: boolean): number {
  return (writable ? 0 : KVM_MEM_READONLY) | (logDirty ? KVM_MEM_LOG_DIRTY_PAGES : 0);
}
