/**
 * The requests of /dev/kvm, computed as the C header computes them, and the calls that make them. This is where requests
 * that a signal interrupts are repeated; `KVM_RUN` alone goes another way (`KvmVcpu.run`).
 *
 * Why it is safe: a request number holds the size of its struct, and a buffer handed over here is refused if it is
 * shorter; the flexible ones (CPUID leaves, MSRs) begin with the count of entries that fit, written by the code that has
 * just made room for them.
 *
 * @module
 */

import { libc } from "../os/libc.ts";
import { Errno } from "../os/os_error.ts";
import { lengthOf } from "../os/plain_bytes.ts";
import { outcome, uninterrupted } from "../os/uninterrupted.ts";
import {
  CLEAR_DIRTY_LOG,
  CLOCK_DATA,
  CPUID2,
  DEBUGREGS,
  DIRTY_LOG,
  ENABLE_CAP,
  FPU,
  INTERRUPT,
  IOEVENTFD,
  IRQ_LEVEL,
  IRQCHIP,
  IRQFD,
  LAPIC_STATE,
  MEMORY_REGION,
  MP_STATE,
  MSR_LIST,
  MSRS,
  PIT_CONFIG,
  PIT_STATE2,
  REGS,
  SREGS,
  SREGS2,
  VCPU_EVENTS,
  XCRS,
  XSAVE,
} from "./layout.ts";

// <asm-generic/ioctl.h>: direction in bits 30-31, size in 16-29, type in 8-15, number in 0-7.
const KVMIO = 0xae;

function request(direction: number, number: number, size: number): number {
  return ((direction << 30) | (size << 16) | (KVMIO << 8) | number) >>> 0;
}

const io = (number: number) => request(0, number, 0);
const iow = (number: number, size: number) => request(1, number, size);
const ior = (number: number, size: number) => request(2, number, size);
const iowr = (number: number, size: number) => request(3, number, size);

/** Request numbers by the names of <linux/kvm.h>. */
export const REQUEST = {
  // Of /dev/kvm itself.
  KVM_GET_API_VERSION: io(0x00),
  KVM_CREATE_VM: io(0x01),
  KVM_GET_MSR_INDEX_LIST: iowr(0x02, MSR_LIST.size),
  KVM_CHECK_EXTENSION: io(0x03),
  KVM_GET_VCPU_MMAP_SIZE: io(0x04),
  KVM_GET_SUPPORTED_CPUID: iowr(0x05, CPUID2.size),
  // Of a virtual machine.
  KVM_CREATE_VCPU: io(0x41),
  KVM_GET_DIRTY_LOG: iow(0x42, DIRTY_LOG.size),
  KVM_CLEAR_DIRTY_LOG: iowr(0xc0, CLEAR_DIRTY_LOG.size),
  KVM_RESET_DIRTY_RINGS: io(0xc7),
  KVM_SET_USER_MEMORY_REGION: iow(0x46, MEMORY_REGION.size),
  KVM_SET_TSS_ADDR: io(0x47),
  KVM_SET_IDENTITY_MAP_ADDR: iow(0x48, 8),
  KVM_CREATE_IRQCHIP: io(0x60),
  KVM_GET_IRQCHIP: iowr(0x62, IRQCHIP.size),
  KVM_SET_IRQCHIP: ior(0x63, IRQCHIP.size), // the header has it so
  KVM_IRQ_LINE: iow(0x61, IRQ_LEVEL.size),
  KVM_IRQFD: iow(0x76, IRQFD.size),
  KVM_CREATE_PIT2: iow(0x77, PIT_CONFIG.size),
  KVM_SET_CLOCK: iow(0x7b, CLOCK_DATA.size),
  KVM_GET_CLOCK: ior(0x7c, CLOCK_DATA.size),
  KVM_GET_PIT2: ior(0x9f, PIT_STATE2.size),
  KVM_SET_PIT2: iow(0xa0, PIT_STATE2.size),
  KVM_IOEVENTFD: iow(0x79, IOEVENTFD.size),
  KVM_ENABLE_CAP: iow(0xa3, ENABLE_CAP.size),
  // Of a vCPU.
  KVM_RUN: io(0x80),
  KVM_GET_REGS: ior(0x81, REGS.size),
  KVM_SET_REGS: iow(0x82, REGS.size),
  KVM_GET_SREGS: ior(0x83, SREGS.size),
  KVM_SET_SREGS: iow(0x84, SREGS.size),
  KVM_INTERRUPT: iow(0x86, INTERRUPT.size),
  KVM_GET_MSRS: iowr(0x88, MSRS.size),
  KVM_SET_MSRS: iow(0x89, MSRS.size),
  KVM_GET_FPU: ior(0x8c, FPU.size),
  KVM_SET_FPU: iow(0x8d, FPU.size),
  KVM_GET_LAPIC: ior(0x8e, LAPIC_STATE.size),
  KVM_SET_LAPIC: iow(0x8f, LAPIC_STATE.size),
  KVM_GET_CPUID2: iowr(0x91, CPUID2.size),
  KVM_GET_VCPU_EVENTS: ior(0x9f, VCPU_EVENTS.size),
  KVM_SET_VCPU_EVENTS: iow(0xa0, VCPU_EVENTS.size),
  KVM_GET_DEBUGREGS: ior(0xa1, DEBUGREGS.size),
  KVM_SET_DEBUGREGS: iow(0xa2, DEBUGREGS.size),
  KVM_GET_XSAVE: ior(0xa4, XSAVE.size),
  KVM_SET_XSAVE: iow(0xa5, XSAVE.size),
  KVM_GET_XCRS: ior(0xa6, XCRS.size),
  KVM_SET_XCRS: iow(0xa7, XCRS.size),
  KVM_GET_SREGS2: ior(0xcc, SREGS2.size),
  KVM_SET_SREGS2: iow(0xcd, SREGS2.size),
  KVM_GET_XSAVE2: ior(0xcf, XSAVE.size),
  KVM_SET_CPUID2: iow(0x90, CPUID2.size),
  KVM_GET_MP_STATE: ior(0x98, MP_STATE.size),
  KVM_SET_MP_STATE: iow(0x99, MP_STATE.size),
} as const;

/** The name of a request. */
export type RequestName = keyof typeof REQUEST;

/** What to say about a failure, by its error number. */
export type Detail = (errno: number) => string;

/** The size of the struct a request takes, 0 where it takes none. */
const sizeOf = (request: number): number => (request >>> 16) & 0x3fff;

/**
 * Makes a request whose argument is a number or an address, again and again while signals interrupt it. Returns the
 * error number, 0 for success. Not for `KVM_RUN`, which signals are there to interrupt.
 */
export function ioctlErrno(fd: number, request: number, value: bigint): number {
  const { sys, errno } = libc();
  while (true) {
    // SAFETY: the caller's; see there.
    const failed = sys.ioctlValue(fd, request, value) === -1 ? errno[0] ?? 0 : 0;
    if (failed !== Errno.EINTR) return failed;
  }
}

/**
 * Makes a request whose argument is a struct, again and again while signals interrupt it.
 *
 * @param detail What is being asked for, or what to do about the error, whose number it is given.
 * @throws {OsError} If it fails, with the request's name as the system call.
 */
export function ioctl(fd: number, name: RequestName, struct: Uint8Array<ArrayBuffer>, detail?: Detail): number {
  const { sys, errno } = libc();
  const request = REQUEST[name];
  if (lengthOf(struct) < sizeOf(request)) throw new RangeError(`${name} takes ${sizeOf(request)} bytes`);
  // SAFETY: the struct is at least as large as the request number says, as was just seen.
  return uninterrupted(name, () => outcome(sys.ioctl(fd, request, struct), errno[0]), detail);
}

/**
 * Makes a request whose argument is a number, 0 where it takes none, again and again while signals interrupt it.
 *
 * @param detail As for `ioctl`.
 * @throws {OsError} If it fails, with the request's name as the system call.
 */
export function ioctlValue(fd: number, name: RequestName, value: number, detail?: Detail): number {
  const { sys, errno } = libc();
  const argument = BigInt(value);
  // SAFETY: these requests take no pointer.
  return uninterrupted(name, () => outcome(sys.ioctlValue(fd, REQUEST[name], argument), errno[0]), detail);
}
