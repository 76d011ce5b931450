/**
 * A virtual machine: its memory slots, interrupt lines and event descriptors.
 *
 * Why it is safe: a slot lets a guest write host memory by address, so
 *
 * - a slot over a reservation of this thread keeps the reservation from being unmapped, for as long as the slot exists;
 * - when the VM is disposed while something may keep the kernel's VM alive (a vCPU not disposed or shared with another
 *   thread, a descriptor handed out), its slots are deleted one by one, before the reservations are let go.
 *
 * For host addresses that come from elsewhere, the caller of `mapRange` guarantees that they stay mapped.
 *
 * @module
 */

import { DisposedError, MappingError } from "../../src/core/errors.ts";
import { hex } from "../../src/core/hex.ts";
import { checkAligned, checkNumber, type MemoryRange } from "../../src/core/memory_range.ts";
import type { Access, Partition } from "../../src/core/targets.ts";
import { adviseHost } from "../os/advise.ts";
import { HVA_LIMIT } from "../os/address_space.ts";
import { libc } from "../os/libc.ts";
import { MADV_POPULATE_READ, MADV_POPULATE_WRITE } from "../os/mman.ts";
import { Errno, OsError } from "../os/os_error.ts";
import { type Reservation, reservationAt } from "../host/reservation.ts";
import { KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, KVM_PIT_SPEAKER_DUMMY } from "./constants.ts";
import { DirtyBitmap } from "./dirty_log.ts";
import type { DirtySource, Mark } from "./dirty_source.ts";
import { ioctl, ioctlValue, REQUEST } from "./ioctl.ts";
import { KvmVcpu, type VcpuOwner } from "./kvm_vcpu.ts";
import { MEMORY_REGION, PIT_CONFIG } from "./layout.ts";
import { Pins } from "./pins.ts";
import { type HostPiece, type Slot, SlotBook, type SlotInfo } from "./slot_book.ts";
import { enableCap, type IoEventOptions, setIoEvent, setIrqFd, setIrqLine } from "./vm_requests.ts";

/** What a VM has to know about its KVM. */
export interface VmSetup {
  /** Its name in messages. */
  readonly name: string;
  /** How many slots it can have. */
  readonly capacity: number;
  /** The length of what a vCPU shares with its VMM, in bytes. */
  readonly runSize: number;
  /** Whether deleting a slot drops all shadow pages. */
  readonly zapsAllOnSlotDelete: boolean;
  /** How it learns what the guest has written, where not by bitmaps. */
  readonly dirty?: DirtySource;
}

/** How a guest may access a memory slot, and whether KVM notes what it writes: not where that is left out. */
export type SlotAccess = Omit<Access, "logDirty"> & { readonly logDirty?: boolean };

const TWO_32 = 2 ** 32;
const SET_MEMORY_REGION = REQUEST.KVM_SET_USER_MEMORY_REGION;

/**
 * A KVM virtual machine. As a `Partition`, it keeps one memory slot per range.
 *
 * Disposing it closes it in any order with its vCPUs and with the memory behind it. A vCPU that still runs in another
 * thread then finds itself without memory.
 */
export class KvmVm implements Partition, Disposable {
  /** Its name in messages. */
  readonly name: string;
  /** How many memory slots it can have. */
  readonly capacity: number;
  /**
   * Whether deleting any slot makes KVM drop all pages it has mapped for the guest, which then come back one fault at a
   * time: KVM's own choice unless `createVm({ zapAllOnSlotDelete: false })` could be granted.
   */
  readonly zapsAllOnSlotDelete: boolean;
  #fd: number;
  #runSize: number;
  #disposed = false;
  #book = new SlotBook();
  readonly #dirty: DirtySource;
  #pins = new Pins();
  // Addresses with pins stay reserved until they are unpinned, slot or not: the locks are counted by address.
  #pinned = new Set<Reservation>();
  #lastReservation: Reservation | undefined;
  #vcpus = new Set<KvmVcpu>();
  // Whether someone else may keep the kernel's VM alive.
  #handedOut = false;
  // In a buffer of its own, which the engine never moves: a pointer to it is good for as long as this object lives.
  readonly #region: Uint32Array<ArrayBuffer> = new Uint32Array(new ArrayBuffer(MEMORY_REGION.size));
  readonly #regionAddress: bigint = Deno.UnsafePointer.value(Deno.UnsafePointer.of(this.#region));
  #owner: VcpuOwner = {
    shared: () => this.#handedOut = true,
    gone: (vcpu) => this.#vcpus.delete(vcpu),
  };

  private constructor(fd: number, setup: VmSetup) {
    this.#fd = fd;
    this.#runSize = setup.runSize;
    this.name = setup.name;
    this.capacity = setup.capacity;
    this.zapsAllOnSlotDelete = setup.zapsAllOnSlotDelete;
    this.#dirty = setup.dirty ?? new DirtyBitmap();
  }

  /**
   * Takes over the descriptor of a new VM. Only `Kvm.createVm` calls it.
   *
   * @internal
   */
  static own(fd: number, setup: VmSetup): KvmVm {
    return new KvmVm(fd, setup);
  }

  /** Whether it has been disposed. */
  get disposed(): boolean {
    return this.#disposed;
  }

  /**
   * The descriptor, for whatever in the kernel wants to know about the VM (VFIO, vhost). It stays this object's to close.
   *
   * @throws {DisposedError} After dispose, as every method does too.
   */
  get fd(): number {
    this.#handedOut = true;
    return this.#checked();
  }

  /** The memory slots, in the order of their guest-physical addresses. */
  get slots(): readonly SlotInfo[] {
    return this.#book.ordered.map(({ slot, range, hva, writable }) => ({ slot, range, hva, writable }));
  }

  /**
   * Makes a memory slot: the guest sees the host memory from `hva` on at `range`. With `logDirty`, KVM notes what the
   * guest writes there from the first moment on, for `takeDirty`.
   *
   * @throws {RangeError} If `range` is empty, or `hva` not a page-aligned user address with room for it.
   * @throws {OsError} EEXIST if a slot overlaps, EINVAL if there are no more slots or KVM knows no read-only memory.
   * @throws {MembackingError} If this KVM cannot log written pages.
   */
  mapRange(hva: number, range: MemoryRange, access: SlotAccess): void {
    const fd = this.#checked();
    checkAligned(hva, "Host address");
    const { start, length } = range;
    if (length === 0) throw new RangeError(`Range ${range} is empty`);
    if (hva + length > HVA_LIMIT) throw new RangeError(`Host range ${hex(hva)}+${hex(length)} is not in user space`);
    const { writable, logDirty = false } = access;
    if (logDirty) this.#dirty.prepare(fd);
    const slot = this.#book.nextNumber;
    const failed = this.#setSlot(fd, slot, flagsOf(writable, logDirty), start, length, hva);
    if (failed !== 0) {
      const why = failed === Errno.EEXIST
        ? "another slot overlaps it"
        : slot >= this.capacity
        ? `all ${this.capacity} slots are in use`
        : `slot ${slot} at host address ${hex(hva)}`;
      throw new OsError("KVM_SET_USER_MEMORY_REGION", failed, `cannot map ${range}: ${why}`);
    }
    const made: Slot = { slot, range, hva, writable, reservation: this.#retain(hva, length), logDirty };
    this.#book.add(made);
    if (logDirty) this.#dirty.born(made);
  }

  /**
   * Deletes a memory slot: exactly one that `mapRange` made. What its log has is kept for `takeDirty`.
   *
   * @throws {MappingError} If no slot covers exactly `range`.
   * @throws {OsError} If KVM refuses.
   */
  unmapRange(range: MemoryRange): void {
    const fd = this.#checked();
    const found = this.#book.exactly(range);
    if (found === undefined) throw new MappingError(`${this.name} has no memory slot at exactly ${range}`, range);
    if (found.logDirty) this.#dirty.leaving(fd, found);
    const failed = this.#setSlot(fd, found.slot, 0, range.start, 0, found.hva);
    if (failed !== 0) {
      throw new OsError("KVM_SET_USER_MEMORY_REGION", failed, `cannot unmap ${range}, slot ${found.slot}`);
    }
    if (found.logDirty) this.#dirty.gone(fd, found);
    this.#book.remove(found);
    found.reservation?.release();
  }

  /**
   * Begins or ends noting what the guest writes in a memory slot: exactly one that `mapRange` made. It stays in place,
   * and the guest notices nothing. What was written before it begins is not reported, and what has not been taken when it
   * ends never is.
   *
   * @throws {MappingError} If no slot covers exactly `range`.
   * @throws {MembackingError} If this KVM cannot log written pages; the message says what it lacks.
   * @throws {OsError} If KVM refuses. The slot is as it was then.
   */
  setDirtyLog(range: MemoryRange, on: boolean): void {
    const fd = this.#checked();
    const found = this.#book.exactly(range);
    if (found === undefined) throw new MappingError(`${this.name} has no memory slot at exactly ${range}`, range);
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

  /**
   * Tells `mark` what the guest has written in `range` since it was asked last: the first GPA and the end of each run of
   * pages, in bytes. Slots that do not log have nothing to tell, and those that are gone what they had when they went,
   * also once the VM is disposed.
   *
   * @throws {OsError} If KVM refuses. What has been told by then is not told again, or told twice.
   */
  takeDirty(range: MemoryRange, mark: (start: number, end: number) => void): void {
    if (this.#disposed) this.#dirty.takeRest(range, mark);
    else this.#dirty.take(this.#fd, this.#book.logging(range), range, mark satisfies Mark);
  }

  /**
   * Brings the host memory behind `range` in, so that the guest's first touch does not wait for it.
   *
   * @throws {MappingError} If slots do not cover all of it.
   * @throws {OsError} If it cannot be brought in, as past the end of a file.
   */
  prefetchRange(range: MemoryRange): void {
    for (const { hva, length, writable } of this.#pieces(range)) {
      adviseHost(hva, length, writable ? MADV_POPULATE_WRITE : MADV_POPULATE_READ);
    }
  }

  /**
   * Brings the host memory behind `range` in and keeps it in until `unpinRange`, or until the VM is disposed. Pinning
   * what is pinned renews the lock, which is needed after the memory behind it was replaced.
   *
   * @throws {MappingError} If slots do not cover all of it.
   * @throws {OsError} If the limit on locked memory is too low, or a part has no memory. Nothing new is pinned then.
   */
  pinRange(range: MemoryRange): void {
    const pieces = this.#pieces(range);
    this.#pins.pin(pieces);
    for (const { hva, length } of pieces) {
      const reservation = reservationAt(hva, length);
      if (reservation !== undefined && !this.#pinned.has(reservation)) this.#pinned.add(reservation.retain());
    }
  }

  /** Undoes `pinRange` for whatever of `range` is pinned. */
  unpinRange(range: MemoryRange): void {
    this.#pins.unpin(range.start, range.end);
    if (this.#pins.size === 0) this.#releasePinned();
  }

  /**
   * Makes a virtual processor.
   *
   * @param id Its number, which is also its APIC id.
   * @throws {OsError} EEXIST if there is one with this id, EINVAL if the id is too high.
   */
  createVcpu(id: number): KvmVcpu {
    checkNumber(id, "vCPU id");
    const vcpuFd = ioctlValue(this.#checked(), "KVM_CREATE_VCPU", id, () => `vCPU ${id}`);
    const vcpu = KvmVcpu.own(vcpuFd, this.#runSize, this.#owner, () => this.#dirty.vcpuMade(this.#fd, vcpuFd));
    this.#vcpus.add(vcpu);
    return vcpu;
  }

  /** Says where KVM may keep three pages for Intel's real mode: below 4 GiB, away from memory. */
  setTssAddress(gpa: number): void {
    checkAligned(gpa, "TSS address");
    ioctlValue(this.#checked(), "KVM_SET_TSS_ADDR", gpa, () => hex(gpa));
  }

  /** Says where KVM may keep one page of identity mapping for Intel's real mode. Before the first vCPU. */
  setIdentityMapAddress(gpa: number): void {
    checkAligned(gpa, "Identity map address");
    const struct = new Uint8Array(8);
    new DataView(struct.buffer).setBigUint64(0, BigInt(gpa), true);
    ioctl(this.#checked(), "KVM_SET_IDENTITY_MAP_ADDR", struct, () => hex(gpa));
  }

  /** Makes the in-kernel interrupt controllers: two PICs, an I/O APIC, a local APIC per vCPU. Before the first vCPU. */
  createIrqchip(): void {
    ioctlValue(this.#checked(), "KVM_CREATE_IRQCHIP", 0);
  }

  /** Makes the in-kernel timer, with port 0x61 answered by KVM. After `createIrqchip`. */
  createPit2(): void {
    const struct = new Uint8Array(PIT_CONFIG.size);
    struct[PIT_CONFIG.flags] = KVM_PIT_SPEAKER_DUMMY;
    ioctl(this.#checked(), "KVM_CREATE_PIT2", struct);
  }

  /** Sets an interrupt line of the in-kernel controllers. */
  irqLine(irq: number, level: boolean): void {
    setIrqLine(this.#checked(), irq, level);
  }

  /**
   * Makes guest writes signal an eventfd instead of leaving the guest. The result takes it back.
   *
   * @throws {OsError} EEXIST if the address has one already.
   */
  ioeventfd(eventFd: number, options: IoEventOptions): Disposable {
    const fd = this.#checked();
    const wanted = { ...options }; // as it is now, for taking it back
    setIoEvent(fd, eventFd, wanted, false);
    return this.#undo(() => setIoEvent(fd, eventFd, wanted, true));
  }

  /**
   * Makes an eventfd raise an interrupt line of the in-kernel controllers. The result takes it back.
   *
   * @throws {OsError} EINVAL without `createIrqchip`.
   */
  irqfd(eventFd: number, irq: number): Disposable {
    const fd = this.#checked();
    setIrqFd(fd, eventFd, irq, false);
    return this.#undo(() => setIrqFd(fd, eventFd, irq, true));
  }

  /**
   * Turns on a capability of the VM: a `KvmCap` and up to four arguments.
   *
   * @throws {OsError} EINVAL if KVM does not have it.
   */
  enableCap(cap: number, args: readonly bigint[] = []): void {
    enableCap(this.#checked(), cap, args);
  }

  /**
   * Deletes what a vCPU that is still around could reach, closes the VM, and lets go of the memory. What is in its log of
   * written pages can be taken afterwards.
   */
  [Symbol.dispose](): void {
    if (this.#disposed) return;
    this.#disposed = true;
    const logging = [...this.#book.all].filter(({ logDirty }) => logDirty);
    const reachable = this.#handedOut || this.#vcpus.size > 0;
    this.#pins.unpin(0, Infinity);
    for (const slot of this.#book.all) {
      // A slot that will not go keeps its addresses reserved for good: better that than a guest in V8's heap.
      if (slot.logDirty) this.#dirty.leaving(this.#fd, slot);
      if (reachable && this.#setSlot(this.#fd, slot.slot, 0, slot.range.start, 0, slot.hva) !== 0) {
        slot.reservation?.retain();
      }
    }
    this.#dirty.close(logging);
    libc().sys.close(this.#fd);
    for (const slot of this.#book.all) slot.reservation?.release();
    this.#releasePinned();
    this.#book = new SlotBook();
    this.#lastReservation = undefined;
  }

  /** The error number, 0 for success. A `length` of 0 deletes the slot. */
  #setSlot(fd: number, slot: number, flags: number, gpa: number, length: number, hva: number): number {
    // Eight 32-bit words, low half first. `>>> 0` takes a number modulo 2^32.
    const region = this.#region;
    region[0] = slot;
    region[1] = flags;
    region[2] = gpa >>> 0;
    region[3] = gpa / TWO_32;
    region[4] = length >>> 0;
    region[5] = length / TWO_32;
    region[6] = hva >>> 0;
    region[7] = hva / TWO_32;
    const { sys, errno } = libc();
    // SAFETY: the struct has the size of the request and stays where it is; that the host memory does is seen to above.
    return sys.ioctlValue(fd, SET_MEMORY_REGION, this.#regionAddress) === -1 ? errno[0] ?? 0 : 0;
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
    this.#checked();
    return this.#book.pieces(range);
  }

  #checked(): number {
    if (this.#disposed) throw new DisposedError(this.name);
    return this.#fd;
  }

  #undo(undo: () => void): Disposable {
    let done = false;
    return {
      [Symbol.dispose]: () => {
        if (!done && !this.#disposed) undo();
        done = true;
      },
    };
  }
}

function flagsOf(writable: boolean, logDirty: boolean): number {
  return (writable ? 0 : KVM_MEM_READONLY) | (logDirty ? KVM_MEM_LOG_DIRTY_PAGES : 0);
}
