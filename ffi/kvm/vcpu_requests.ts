/**
 * Requests to a vCPU that are a struct and nothing else: registers of all kinds, interrupts.
 *
 * Why it is safe: each struct is made here, with the size of its request, and holds no address of host memory.
 *
 * @module
 */

import { Errno } from "../os/os_error.ts";
import {
  checkCpuid,
  checkMsrs,
  decodeMsrs,
  encodeCpuid,
  encodeMsrs,
  type KvmCpuidEntry,
  type KvmMsr,
  msrsToRead,
} from "./cpuid_msrs.ts";
import { ioctl, type RequestName } from "./ioctl.ts";
import { FPU, INTERRUPT, MP_STATE, REGS, SREGS } from "./layout.ts";
import { unsigned } from "./numbers.ts";
import {
  allRegs,
  decodeFpu,
  decodeRegs,
  decodeSregs,
  encodeFpu,
  encodeRegs,
  encodeSregs,
  givenRegs,
  type KvmFpu,
  type KvmRegs,
  type KvmSregs,
} from "./registers.ts";

function get(fd: number, name: RequestName, size: number): Uint8Array<ArrayBuffer> {
  const struct = new Uint8Array(size);
  ioctl(fd, name, struct);
  return struct;
}

/** Injects an external interrupt. */
export function interrupt(fd: number, vector: number): void {
  if (!Number.isInteger(vector) || vector < 0 || vector > 255) {
    throw new RangeError(`${vector} is no vector in 0..255`);
  }
  const struct = new Uint8Array(INTERRUPT.size);
  struct[INTERRUPT.irq] = vector;
  ioctl(
    fd,
    "KVM_INTERRUPT",
    struct,
    (code) =>
      code === Errno.ENXIO
        ? `vector ${vector}: this VM has interrupt controllers in the kernel, use KvmVm.irqLine or irqfd`
        : `vector ${vector}`,
  );
}

/** The general registers. */
export function getRegs(fd: number): KvmRegs {
  return decodeRegs(get(fd, "KVM_GET_REGS", REGS.size));
}

/** Sets the general registers that are given. */
export function setRegs(fd: number, regs: Partial<KvmRegs>): void {
  const given = givenRegs(regs);
  const struct = allRegs(given) ? new Uint8Array(REGS.size) : get(fd, "KVM_GET_REGS", REGS.size);
  encodeRegs(struct, given);
  ioctl(fd, "KVM_SET_REGS", struct);
}

/** The special registers. */
export function getSregs(fd: number): KvmSregs {
  return decodeSregs(get(fd, "KVM_GET_SREGS", SREGS.size));
}

/** Sets the special registers that are given. */
export function setSregs(fd: number, sregs: Partial<KvmSregs>): void {
  const struct = get(fd, "KVM_GET_SREGS", SREGS.size);
  encodeSregs(struct, sregs);
  ioctl(fd, "KVM_SET_SREGS", struct);
}

/** The x87 and SSE registers. */
export function getFpu(fd: number): KvmFpu {
  return decodeFpu(get(fd, "KVM_GET_FPU", FPU.size));
}

/** Sets the x87 and SSE registers. */
export function setFpu(fd: number, fpu: KvmFpu): void {
  ioctl(fd, "KVM_SET_FPU", encodeFpu(fpu));
}

/** Model-specific registers. */
export function getMsrs(fd: number, indices: readonly number[]): KvmMsr[] {
  const msrs = msrsToRead(indices);
  const struct = encodeMsrs(msrs);
  const count = ioctl(fd, "KVM_GET_MSRS", struct);
  refuseUnknown(msrs[count]);
  return decodeMsrs(struct, count);
}

/** Sets model-specific registers. */
export function setMsrs(fd: number, msrs: readonly KvmMsr[]): void {
  const checked = checkMsrs(msrs);
  refuseUnknown(checked[ioctl(fd, "KVM_SET_MSRS", encodeMsrs(checked))]);
}

/** Sets what the CPUID instruction says. */
export function setCpuid2(fd: number, entries: readonly KvmCpuidEntry[]): void {
  ioctl(fd, "KVM_SET_CPUID2", encodeCpuid(checkCpuid(entries)));
}

/** Whether the vCPU runs, halts or waits. */
export function getMpState(fd: number): number {
  return get(fd, "KVM_GET_MP_STATE", MP_STATE.size)[MP_STATE.mp_state] ?? 0;
}

/** Sets that. */
export function setMpState(fd: number, state: number): void {
  const struct = new Uint8Array(MP_STATE.size);
  new DataView(struct.buffer).setUint32(MP_STATE.mp_state, unsigned(state, 32, "State"), true);
  ioctl(fd, "KVM_SET_MP_STATE", struct, () => `state ${state}`);
}

function refuseUnknown(msr: KvmMsr | undefined): void {
  if (msr !== undefined) throw new RangeError(`KVM does not take MSR 0x${msr.index.toString(16)} with this value`);
}
