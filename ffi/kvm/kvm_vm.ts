/**
 * A virtual machine: its memory slots, interrupt lines and event descriptors.
 *
 * Why it is safe: a slot lets a guest write host memory by address, so
 *
 * - a slot over a reservation of this thread keeps the reservation from being unmapped, for as long as the slot exists;
 * - when the VM is disposed while a vCPU may still be around (one not disposed, or attached in another thread, keeps the
 *   kernel's VM alive), its slots are deleted one by one, before the reservations are let go.
 *
 * For host addresses that come from elsewhere, the caller of `mapRange` guarantees that they stay mapped.
 *
 * @module
 */

import { DisposedError, hex, MappingError } from "../../src/core/errors.ts";
import { checkAligned, checkNumber, type MemoryRange } from "../../src/core/memory_range.ts";
import type { Access, Partition } from "../../src/core/targets.ts";
import { HVA_LIMIT } from "../address_space.ts";
import { libc } from "../libc.ts";
import { MADV_POPULATE_READ, MADV_POPULATE_WRITE } from "../mman.ts";
import { Errno, OsError } from "../os_error.ts";
import { lockPages, relockPages, unlockPages } from "../page_locks.ts";
import { type Reservation, reservationAt } from "../reservation.ts";
import { adviseHost } from "../va_mapper.ts";
import {
  KVM_IOEVENTFD_FLAG_DATAMATCH,
  KVM_IOEVENTFD_FLAG_DEASSIGN,
  KVM_IOEVENTFD_FLAG_PIO,
  KVM_IRQFD_FLAG_DEASSIGN,
  KVM_MEM_READONLY,
  KVM_PIT_SPEAKER_DUMMY,
} from "./constants.ts";
import { ioctl, ioctlValue, REQUEST } from "./ioctl.ts";
import { KvmVcpu, type VcpuOwner } from "./kvm_vcpu.ts";
import { ENABLE_CAP, IOEVENTFD, IRQ_LEVEL, IRQFD, MEMORY_REGION, PIT_CONFIG } from "./layout.ts";

/** A memory slot, as `KvmVm.slots` shows it. */
export interface SlotInfo {
  /** The slot's number. */
  readonly slot: number;
  /** The guest-physical addresses it covers, in bytes. */
  readonly range: MemoryRange;
  /** The host address behind the first of them. */
  readonly hva: number;
  /** Whether the guest may write; where it may not, a write is an MMIO exit. */
  readonly writable: boolean;
}

/** What a guest write must look like to signal an eventfd. */
export interface IoEventOptions {
  /** The guest-physical address or port. */
  address: number;
  /** The width of the write in bytes: 1, 2, 4 or 8; 0 for any. */
  length: number;
  /** Whether `address` is a port. `false` when left out. */
  port?: boolean;
  /** The value that has to be written. Any, when left out. */
  value?: bigint;
}

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
}

interface Slot extends SlotInfo {
  /** What keeps the host addresses reserved; `undefined` for memory that is not of a `VaMapper`. */
  readonly reservation: Reservation | undefined;
}

interface Pin {
  readonly end: number;
  readonly pieces: readonly HostPiece[];
}

interface HostPiece {
  readonly hva: number;
  readonly length: number;
  readonly writable: boolean;
}

const TWO_32 = 2 ** 32;

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
  #slots = new Map<number, Slot>(); // by first GPA
  #freeSlots: number[] = [];
  #nextSlot = 0;
  #pins = new Map<number, Pin>(); // by first GPA
  #lastReservation: Reservation | undefined;
  #vcpus = new Set<KvmVcpu>();
  #vcpuShared = false;
  #region: Uint32Array<ArrayBuffer> = new Uint32Array(MEMORY_REGION.size / 4);
  #owner: VcpuOwner = {
    shared: () => this.#vcpuShared = true,
    gone: (vcpu) => this.#vcpus.delete(vcpu),
  };

  private constructor(fd: number, setup: VmSetup) {
    this.#fd = fd;
    this.#runSize = setup.runSize;
    this.name = setup.name;
    this.capacity = setup.capacity;
    this.zapsAllOnSlotDelete = setup.zapsAllOnSlotDelete;
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
    if (this.#disposed) throw new DisposedError(this.name);
    return this.#fd;
  }

  /** The memory slots, in the order of their guest-physical addresses. */
  get slots(): readonly SlotInfo[] {
    return [...this.#slots.values()].sort((a, b) => a.range.start - b.range.start)
      .map(({ slot, range, hva, writable }) => ({ slot, range, hva, writable }));
  }

  /**
   * Makes a memory slot: the guest sees the host memory from `hva` on at `range`.
   *
   * @throws {RangeError} If `range` is empty, or `hva` not a page-aligned user address with room for it.
   * @throws {OsError} EEXIST if a slot overlaps, EINVAL if there are no more slots or KVM knows no read-only memory.
   */
  mapRange(hva: number, range: MemoryRange, access: Access): void {
    const { fd } = this;
    checkAligned(hva, "Host address");
    const { start, length } = range;
    if (length === 0) throw new RangeError(`Range ${range} is empty`);
    if (hva + length > HVA_LIMIT) throw new RangeError(`Host range ${hex(hva)}+${hex(length)} is not in user space`);
    const slot = this.#freeSlots.at(-1) ?? this.#nextSlot;
    const failed = this.#setSlot(fd, slot, access.writable ? 0 : KVM_MEM_READONLY, start, length, hva);
    if (failed !== 0) {
      const why = failed === Errno.EEXIST
        ? "another slot overlaps it"
        : slot >= this.capacity
        ? `all ${this.capacity} slots are in use`
        : `slot ${slot} at host address ${hex(hva)}`;
      throw new OsError("KVM_SET_USER_MEMORY_REGION", failed, `cannot map ${range}: ${why}`);
    }
    if (slot === this.#nextSlot) this.#nextSlot++;
    else this.#freeSlots.pop();
    this.#slots.set(start, { slot, range, hva, writable: access.writable, reservation: this.#retain(hva, length) });
  }

  /**
   * Deletes a memory slot: exactly one that `mapRange` made.
   *
   * @throws {MappingError} If no slot covers exactly `range`.
   * @throws {OsError} If KVM refuses.
   */
  unmapRange(range: MemoryRange): void {
    const { fd } = this;
    const found = this.#slots.get(range.start);
    if (found === undefined || found.range.end !== range.end) {
      throw new MappingError(`${this.name} has no memory slot at exactly ${range}`, range);
    }
    this.#deleteSlot(fd, found);
    this.#slots.delete(range.start);
    this.#freeSlots.push(found.slot);
    found.reservation?.release();
  }

  /**
   * Brings the host memory behind `range` in, so that the guest's first touch does not wait for it.
   *
   * @throws {MappingError} If slots do not cover all of it.
   * @throws {OsError} If it cannot be brought in, as past the end of a file.
   */
  prefetchRange(range: MemoryRange): void {
    for (const { hva, length, writable } of this.#hostPieces(range)) {
      adviseHost(hva, length, writable ? MADV_POPULATE_WRITE : MADV_POPULATE_READ);
    }
  }

  /**
   * Brings the host memory behind `range` in and keeps it in until `unpinRange`, or until the VM is disposed. Pinning a
   * range again that is pinned renews the lock, which is needed after the memory behind it was replaced.
   *
   * @throws {MappingError} If slots do not cover all of it.
   * @throws {OsError} If the limit on locked memory is too low, or a part has no memory. Nothing new is pinned then.
   */
  pinRange(range: MemoryRange): void {
    const { start, end } = range;
    const pieces = this.#hostPieces(range);
    const pinned = this.#pins.get(start);
    if (pinned?.end === end && samePieces(pinned.pieces, pieces)) {
      for (const { hva, length } of pieces) relockPages(hva, length);
      return;
    }
    const done: HostPiece[] = [];
    try {
      for (const piece of pieces) {
        lockPages(piece.hva, piece.length);
        done.push(piece);
      }
    } catch (error) {
      for (const piece of done) unlockPages(piece.hva, piece.length);
      throw error;
    }
    if (pinned !== undefined) this.#unpin(start, pinned);
    this.#pins.set(start, { end, pieces });
  }

  /** Undoes `pinRange` of the same range. A range that is not pinned is left as it is. */
  unpinRange(range: MemoryRange): void {
    const pinned = this.#pins.get(range.start);
    if (pinned !== undefined && pinned.end === range.end) this.#unpin(range.start, pinned);
  }

  /**
   * Makes a virtual processor.
   *
   * @param id Its number, which is also its APIC id.
   * @throws {OsError} EEXIST if there is one with this id, EINVAL if the id is too high.
   */
  createVcpu(id: number): KvmVcpu {
    checkNumber(id, "vCPU id");
    const vcpuFd = ioctlValue(this.fd, "KVM_CREATE_VCPU", id, () => `vCPU ${id}`);
    const vcpu = KvmVcpu.own(vcpuFd, this.#runSize, this.#owner);
    this.#vcpus.add(vcpu);
    return vcpu;
  }

  /** Says where KVM may keep three pages for Intel's real mode: below 4 GiB, away from memory. */
  setTssAddress(gpa: number): void {
    checkAligned(gpa, "TSS address");
    ioctlValue(this.fd, "KVM_SET_TSS_ADDR", gpa, () => hex(gpa));
  }

  /** Says where KVM may keep one page of identity mapping for Intel's real mode. Before the first vCPU. */
  setIdentityMapAddress(gpa: number): void {
    checkAligned(gpa, "Identity map address");
    const struct = new Uint8Array(8);
    new DataView(struct.buffer).setBigUint64(0, BigInt(gpa), true);
    ioctl(this.fd, "KVM_SET_IDENTITY_MAP_ADDR", struct, () => hex(gpa));
  }

  /** Makes the in-kernel interrupt controllers: two PICs, an I/O APIC, a local APIC per vCPU. Before the first vCPU. */
  createIrqchip(): void {
    ioctlValue(this.fd, "KVM_CREATE_IRQCHIP", 0);
  }

  /** Makes the in-kernel timer, with port 0x61 answered by KVM. After `createIrqchip`. */
  createPit2(): void {
    const struct = new Uint8Array(PIT_CONFIG.size);
    struct[PIT_CONFIG.flags] = KVM_PIT_SPEAKER_DUMMY;
    ioctl(this.fd, "KVM_CREATE_PIT2", struct);
  }

  /** Sets an interrupt line of the in-kernel controllers. */
  irqLine(irq: number, level: boolean): void {
    checkNumber(irq, "Interrupt line");
    const struct = new Uint8Array(IRQ_LEVEL.size);
    const view = new DataView(struct.buffer);
    view.setUint32(IRQ_LEVEL.irq, irq, true);
    view.setUint32(IRQ_LEVEL.level, level ? 1 : 0, true);
    ioctl(this.fd, "KVM_IRQ_LINE", struct, () => `line ${irq}`);
  }

  /**
   * Makes guest writes signal an eventfd instead of leaving the guest. The result takes it back.
   *
   * @throws {OsError} EEXIST if the address has one already.
   */
  ioeventfd(eventFd: number, options: IoEventOptions): Disposable {
    checkNumber(options.address, "Address");
    const { fd } = this;
    const { address, length, port = false, value } = options;
    const set = (extra: number) => {
      const struct = new Uint8Array(IOEVENTFD.size);
      const view = new DataView(struct.buffer);
      view.setBigUint64(IOEVENTFD.datamatch, value ?? 0n, true);
      view.setBigUint64(IOEVENTFD.addr, BigInt(address), true);
      view.setUint32(IOEVENTFD.len, length, true);
      view.setInt32(IOEVENTFD.fd, eventFd, true);
      const flags = (port ? KVM_IOEVENTFD_FLAG_PIO : 0) | (value === undefined ? 0 : KVM_IOEVENTFD_FLAG_DATAMATCH);
      view.setUint32(IOEVENTFD.flags, flags | extra, true);
      ioctl(fd, "KVM_IOEVENTFD", struct, () => `${length} bytes at ${port ? "port " : ""}${hex(address)}`);
    };
    set(0);
    return this.#undo(() => set(KVM_IOEVENTFD_FLAG_DEASSIGN));
  }

  /**
   * Makes an eventfd raise an interrupt line of the in-kernel controllers. The result takes it back.
   *
   * @throws {OsError} EINVAL without `createIrqchip`.
   */
  irqfd(eventFd: number, irq: number): Disposable {
    checkNumber(irq, "Interrupt line");
    const { fd } = this;
    const set = (flags: number) => {
      const struct = new Uint8Array(IRQFD.size);
      const view = new DataView(struct.buffer);
      view.setUint32(IRQFD.fd, eventFd, true);
      view.setUint32(IRQFD.gsi, irq, true);
      view.setUint32(IRQFD.flags, flags, true);
      ioctl(fd, "KVM_IRQFD", struct, () => `line ${irq}`);
    };
    set(0);
    return this.#undo(() => set(KVM_IRQFD_FLAG_DEASSIGN));
  }

  /**
   * Turns on a capability of the VM: a `KvmCap` and up to four arguments.
   *
   * @throws {OsError} EINVAL if KVM does not have it.
   */
  enableCap(cap: number, args: readonly bigint[] = []): void {
    enableCap(this.fd, cap, args);
  }

  /** Deletes what a vCPU that is still around could reach, closes the VM, and lets go of the memory. */
  [Symbol.dispose](): void {
    if (this.#disposed) return;
    this.#disposed = true;
    const reachable = this.#vcpuShared || this.#vcpus.size > 0;
    for (const [start, pin] of this.#pins) this.#unpin(start, pin);
    for (const slot of this.#slots.values()) {
      // A slot that will not go keeps its addresses reserved for good: better that than a guest in V8's heap.
      if (reachable && this.#setSlot(this.#fd, slot.slot, 0, slot.range.start, 0, slot.hva) !== 0) {
        slot.reservation?.retain();
      }
    }
    libc().sys.close(this.#fd);
    for (const slot of this.#slots.values()) slot.reservation?.release();
    this.#slots.clear();
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
    // SAFETY: the struct has the size of the request; that the host memory stays is seen to above.
    return sys.ioctl(fd, REQUEST.KVM_SET_USER_MEMORY_REGION, region) === -1 ? errno[0] ?? 0 : 0;
  }

  #deleteSlot(fd: number, slot: Slot): void {
    const failed = this.#setSlot(fd, slot.slot, 0, slot.range.start, 0, slot.hva);
    if (failed !== 0) {
      throw new OsError("KVM_SET_USER_MEMORY_REGION", failed, `cannot unmap ${slot.range}, slot ${slot.slot}`);
    }
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

  /** The host memory behind a range of GPAs, slot by slot. */
  #hostPieces(range: MemoryRange): HostPiece[] {
    if (this.#disposed) throw new DisposedError(this.name);
    const exact = this.#slots.get(range.start);
    const slots = exact !== undefined && exact.range.end >= range.end
      ? [exact]
      : [...this.#slots.values()].filter((slot) => slot.range.overlaps(range))
        .sort((a, b) => a.range.start - b.range.start);
    const pieces: HostPiece[] = [];
    let at = range.start;
    for (const slot of slots) {
      if (slot.range.start > at) break;
      const end = Math.min(slot.range.end, range.end);
      pieces.push({ hva: slot.hva + at - slot.range.start, length: end - at, writable: slot.writable });
      at = end;
    }
    if (at < range.end) {
      throw new MappingError(`${this.name} has no memory slot at ${hex(at)}, map ${range} first`, range);
    }
    return pieces;
  }

  #unpin(start: number, pin: Pin): void {
    this.#pins.delete(start);
    for (const { hva, length } of pin.pieces) unlockPages(hva, length);
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

function samePieces(a: readonly HostPiece[], b: readonly HostPiece[]): boolean {
  return a.length === b.length && a.every((piece, i) => piece.hva === b[i]?.hva && piece.length === b[i]?.length);
}

/**
 * Turns on a capability of a VM.
 *
 * @throws {OsError} EINVAL if KVM does not have it.
 */
export function enableCap(fd: number, cap: number, args: readonly bigint[]): void {
  checkNumber(cap, "Capability");
  if (args.length > 4) throw new RangeError(`A capability takes at most 4 arguments, got ${args.length}`);
  const struct = new Uint8Array(ENABLE_CAP.size);
  const view = new DataView(struct.buffer);
  view.setUint32(ENABLE_CAP.cap, cap, true);
  args.forEach((arg, i) => view.setBigUint64(ENABLE_CAP.args + 8 * i, arg, true));
  ioctl(fd, "KVM_ENABLE_CAP", struct, () => `capability ${cap}`);
}
