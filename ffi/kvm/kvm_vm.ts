/**
 * A virtual machine: its memory, its vCPUs, interrupt lines and event descriptors.
 *
 * Why it is safe: the descriptor is this object's own, every struct has the size its request asks for, and what lets a
 * guest reach host memory is in `vm_memory.ts`.
 *
 * @module
 */

import { DisposedError } from "../../src/core/errors.ts";
import { hex } from "../../src/core/hex.ts";
import { checkAligned, type MemoryRange } from "../../src/core/memory_range.ts";
import type { MarkDirty, MarkDirtyBitmap, Partition } from "../../src/core/targets.ts";
import { libc } from "../os/libc.ts";
import { Errno } from "../os/os_error.ts";
import { reapAbandoned } from "./attachments.ts";
import { EventLinks } from "./event_links.ts";
import { ioctl, ioctlValue } from "./ioctl.ts";
import { type KvmVcpu, ownVcpu } from "./kvm_vcpu.ts";
import { unsigned } from "./numbers.ts";
import type { VcpuOwner } from "./shared_vcpu.ts";
import type { SlotInfo } from "./slot_book.ts";
import { checkVmState, type VmState } from "./state.ts";
import { type SlotAccess, VmMemory, type VmSetup } from "./vm_memory.ts";
import {
  checkIoEvent,
  createIrqchip,
  createPit2,
  enableCap,
  type IoEventOptions,
  setIoEvent,
  setIrqFd,
  setIrqLine,
  type VmWithIrqs,
} from "./vm_requests.ts";
import { readVm, writeVm } from "./vm_state.ts";

/** Makes a VM that takes over the descriptor of a new one: for `Kvm.createVm`, and no export of the package. */
export let ownVm: (fd: number, setup: VmSetup) => KvmVm;

/**
 * A KVM virtual machine. As a `Partition`, it keeps one memory slot per range.
 *
 * Disposing it closes it in any order with its vCPUs and with the memory behind it. A vCPU that still runs in another
 * thread then finds itself without memory.
 */
export class KvmVm implements Partition, Disposable {
  static {
    ownVm = (fd, setup) => new KvmVm(fd, setup);
  }

  /** Its name in messages. */
  readonly name: string;
  /** How many memory slots it can have. */
  readonly capacity: number;
  /**
   * Whether deleting any slot makes KVM drop all pages it has mapped for the guest, which then come back one fault at a
   * time: KVM's own choice unless `createVm({ zapAllOnSlotDelete: false })` could be granted.
   */
  readonly zapsAllOnSlotDelete: boolean;
  readonly #fd: number;
  readonly #memory: VmMemory;
  #hasIrqchip = false;
  #vcpus = new Set<object>();
  // Descriptors of vCPUs whose page could not be mapped, by id: KVM makes each id once.
  #spares = new Map<number, number>();
  #events = new EventLinks();
  // Whether someone else may keep the kernel's VM alive.
  #handedOut = false;
  readonly #owner: VcpuOwner;

  private constructor(fd: number, setup: VmSetup) {
    this.#fd = fd;
    this.#memory = new VmMemory(fd, setup);
    this.name = setup.name;
    this.capacity = setup.capacity;
    this.zapsAllOnSlotDelete = setup.zapsAllOnSlotDelete;
    this.#owner = {
      name: setup.name,
      disposed: false,
      shared: () => this.#handedOut = true,
      gone: (vcpu) => this.#vcpus.delete(vcpu),
    };
  }

  /** Whether it has been disposed. */
  get disposed(): boolean {
    return this.#owner.disposed;
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
    return this.#memory.slots;
  }

  /**
   * Makes a memory slot: the guest sees the host memory from `hva` on at `range`. With `logDirty`, KVM notes what the
   * guest writes there from the first moment on, for `takeDirty`.
   *
   * @throws {RangeError} If `range` is empty, or `hva` not a page-aligned user address with room for it.
   * @throws {OsError} EEXIST if a slot overlaps, EINVAL if there are no more slots, the CPU has no addresses that high, or
   * KVM knows no read-only memory.
   * @throws {MembackingError} If this KVM cannot log written pages.
   */
  mapRange(hva: number, range: MemoryRange, access: SlotAccess): void {
    this.#live().mapRange(hva, range, access);
  }

  /**
   * Deletes a memory slot: exactly one that `mapRange` made. What its log has is kept for `takeDirty`.
   *
   * @throws {MappingError} If no slot covers exactly `range`.
   * @throws {OsError} If KVM refuses.
   */
  unmapRange(range: MemoryRange): void {
    this.#live().unmapRange(range);
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
    this.#live().setDirtyLog(range, on);
  }

  /**
   * Tells `mark` what the guest has written in `range` since it was asked last: the first GPA and the end of each run of
   * pages, in bytes; or `markBitmap`, where there is one and KVM says it by a bitmap. Slots that do not log have nothing to
   * tell, and those that are gone what they had when they went, also once the VM is disposed.
   *
   * `mark` may look at guest memory and run vCPUs. To take a slot away, to turn its log on or off, to ask again and to
   * dispose the VM throws a `MembackingError` there.
   *
   * @throws {OsError} If KVM refuses. What has been told by then is not told again, or told twice.
   */
  takeDirty(range: MemoryRange, mark: MarkDirty, markBitmap?: MarkDirtyBitmap): void {
    this.#memory.takeDirty(range, mark, markBitmap);
  }

  /**
   * Brings the host memory behind `range` in, so that the guest's first touch does not wait for it.
   *
   * @throws {MappingError} If slots do not cover all of it.
   * @throws {OsError} If it cannot be brought in, as past the end of a file.
   */
  prefetchRange(range: MemoryRange, copyOnWrite: boolean = false): void {
    this.#live().prefetchRange(range, copyOnWrite);
  }

  /**
   * Brings the host memory behind `range` in and keeps it in until `unpinRange`, or until the VM is disposed. Pinning
   * what is pinned renews the lock, which is needed after the memory behind it was replaced.
   *
   * @throws {MappingError} If slots do not cover all of it.
   * @throws {OsError} If the limit on locked memory is too low, or a part has no memory. Nothing new is pinned then.
   */
  pinRange(range: MemoryRange): void {
    this.#live().pinRange(range);
  }

  /** Undoes `pinRange` for whatever of `range` is pinned. */
  unpinRange(range: MemoryRange): void {
    this.#memory.unpinRange(range);
  }

  /**
   * Makes a virtual processor.
   *
   * @param id Its number, which is also its APIC id.
   * @throws {OsError} EEXIST if there is or was one with this id, EINVAL if the id is too high. After a failure for want
   * of something else (descriptors, mappings) the id can be tried again.
   */
  createVcpu(id: number): KvmVcpu {
    const fd = this.#checked();
    unsigned(id, 32, "vCPU id");
    reapAbandoned();
    const vcpuFd = this.#spares.get(id) ??
      ioctlValue(
        fd,
        "KVM_CREATE_VCPU",
        id,
        (code) => code === Errno.EEXIST ? `vCPU ${id}: ${this.name} has had one with this id` : `vCPU ${id}`,
      );
    this.#spares.set(id, vcpuFd);
    const vcpu = ownVcpu(vcpuFd, this.#owner, () => this.#memory.vcpuMade(vcpuFd));
    this.#spares.delete(id);
    this.#vcpus.add(vcpu);
    return vcpu;
  }

  /** Says where KVM may keep three pages for Intel's real mode: below 4 GiB, away from memory. */
  setTssAddress(gpa: number): void {
    checkAligned(gpa, "TSS address");
    ioctlValue(this.#checked(), "KVM_SET_TSS_ADDR", gpa, () => `${hex(gpa)}: three pages below 4 GiB`);
  }

  /** Says where KVM may keep one page of identity mapping for Intel's real mode. Before the first vCPU. */
  setIdentityMapAddress(gpa: number): void {
    checkAligned(gpa, "Identity map address");
    const struct = new Uint8Array(8);
    new DataView(struct.buffer).setBigUint64(0, BigInt(gpa), true);
    ioctl(
      this.#checked(),
      "KVM_SET_IDENTITY_MAP_ADDR",
      struct,
      (code) => code === Errno.EINVAL ? `${hex(gpa)}: set it before the first vCPU` : hex(gpa),
    );
  }

  /** Makes the in-kernel interrupt controllers: two PICs, an I/O APIC, a local APIC per vCPU. Before the first vCPU. */
  createIrqchip(): void {
    createIrqchip(this.#checked());
    this.#hasIrqchip = true;
  }

  /** Makes the in-kernel timer, with port 0x61 answered by KVM. After `createIrqchip`. */
  createPit2(): void {
    createPit2(this.#withIrqs());
  }

  /**
   * Sets an interrupt line of the in-kernel controllers.
   *
   * @throws {OsError} ENXIO without `createIrqchip`.
   */
  irqLine(irq: number, level: boolean): void {
    setIrqLine(this.#withIrqs(), irq, level);
  }

  /**
   * Makes guest writes signal an eventfd instead of leaving the guest. The result takes it back. The eventfd may be closed
   * before that.
   *
   * @throws {OsError} EEXIST if the address has one already.
   *
   * @example A doorbell
   * ```ts ignore
   * using event = new EventFd();
   * using _bell = vm.ioeventfd(event.fd, { address: 0xd000_0000, length: 4 });
   * while (await event.wait()) serveQueue(); // each time the guest writes there, which it does without leaving
   * ```
   */
  ioeventfd(eventFd: number, options: IoEventOptions): Disposable {
    const fd = this.#checked();
    const wanted = checkIoEvent(options);
    return this.#events.add(eventFd, (event, remove) => setIoEvent(fd, event, wanted, remove));
  }

  /**
   * Makes an eventfd raise an interrupt line of the in-kernel controllers. The result takes it back. The eventfd may be
   * closed before that.
   *
   * @throws {OsError} EINVAL without `createIrqchip`.
   */
  irqfd(eventFd: number, irq: number): Disposable {
    const vm = this.#withIrqs();
    unsigned(irq, 32, "Interrupt line");
    return this.#events.add(eventFd, (event, remove) => setIrqFd(vm, event, irq, remove));
  }

  /**
   * The state of the interrupt controllers, the timer and the clock, as plain data. Hold the vCPUs out of the guest
   * meanwhile, and save them as well: `KvmVcpu.saveState`.
   */
  saveState(): VmState {
    return readVm(this.#checked());
  }

  /**
   * Puts back what `saveState` gave, of this or another VM that was made alike. Restore its vCPUs first.
   *
   * @throws {StateError} If it is no state of a VM, or of one that was made otherwise; nothing has changed then.
   * @throws {OsError} If KVM refuses a part; restore it again or dispose the VM then.
   */
  restoreState(state: VmState): void {
    const fd = this.#checked();
    writeVm(fd, checkVmState(state));
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
    if (this.#owner.disposed) return;
    this.#memory.checkIdle();
    this.#owner.disposed = true;
    const isReachable = this.#handedOut || this.#vcpus.size > 0;
    this.#events.clear(isReachable);
    for (const fd of this.#spares.values()) libc().sys.close(fd);
    this.#spares.clear();
    this.#memory.clear(isReachable, () => libc().sys.close(this.#fd));
  }

  #checked(): number {
    if (this.#owner.disposed) throw new DisposedError(this.name);
    return this.#fd;
  }

  #live(): VmMemory {
    this.#checked();
    return this.#memory;
  }

  #withIrqs(): VmWithIrqs {
    return { fd: this.#checked(), hasIrqchip: this.#hasIrqchip };
  }
}
