/**
 * The requests of /dev/kvm, computed as the C header computes them, and a call for those that are not in a hot path.
 *
 * Why it is safe: a request number holds the size of its struct, and every buffer handed over here has at least that
 * size; the two flexible ones (CPUID leaves, MSRs) begin with the count of entries that fit.
 *
 * @module
 */

import { libc } from "../os/libc.ts";
import { unwrap } from "../os/os_error.ts";
import {
  CLEAR_DIRTY_LOG,
  CPUID2,
  DIRTY_LOG,
  ENABLE_CAP,
  FPU,
  INTERRUPT,
  IOEVENTFD,
  IRQ_LEVEL,
  IRQFD,
  MEMORY_REGION,
  MP_STATE,
  MSRS,
  PIT_CONFIG,
  REGS,
  SREGS,
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
  KVM_IRQ_LINE: iow(0x61, IRQ_LEVEL.size),
  KVM_IRQFD: iow(0x76, IRQFD.size),
  KVM_CREATE_PIT2: iow(0x77, PIT_CONFIG.size),
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
  KVM_SET_CPUID2: iow(0x90, CPUID2.size),
  KVM_GET_MP_STATE: ior(0x98, MP_STATE.size),
  KVM_SET_MP_STATE: iow(0x99, MP_STATE.size),
} as const;

/** The name of a request. */
export type RequestName = keyof typeof REQUEST;

/**
 * Makes a request whose argument is a struct.
 *
 * @throws {OsError} If it fails, with the request's name as the system call.
 */
export function ioctl(fd: number, name: RequestName, struct: Uint8Array<ArrayBuffer>, detail?: () => string): number {
  const { sys, errno } = libc();
  // SAFETY: the struct is at least as large as the request number says; see the top of the file.
  return unwrap(sys.ioctl(fd, REQUEST[name], struct), errno[0], name, detail);
}

/**
 * Makes a request whose argument is a number, 0 where it takes none.
 *
 * @throws {OsError} If it fails, with the request's name as the system call.
 */
export function ioctlValue(fd: number, name: RequestName, value: number, detail?: () => string): number {
  const { sys, errno } = libc();
  // SAFETY: these requests take no pointer.
  return unwrap(sys.ioctlValue(fd, REQUEST[name], BigInt(value)), errno[0], name, detail);
}
