/**
 * Requests to a virtual machine that are a struct and nothing else: interrupts, eventfds, capabilities.
 *
 * Why it is safe: each struct is made here, with the size of its request, and holds no address of host memory.
 *
 * @module
 */

import { Errno } from "../os/os_error.ts";
import { hex } from "../../src/core/hex.ts";
import { checkNumber } from "../../src/core/memory_range.ts";
import {
  KVM_IOEVENTFD_FLAG_DATAMATCH,
  KVM_IOEVENTFD_FLAG_DEASSIGN,
  KVM_IOEVENTFD_FLAG_PIO,
  KVM_IRQFD_FLAG_DEASSIGN,
  KVM_PIT_SPEAKER_DUMMY,
} from "./constants.ts";
import { ioctl, ioctlValue } from "./ioctl.ts";
import { ENABLE_CAP, IOEVENTFD, IRQ_LEVEL, IRQFD, PIT_CONFIG } from "./layout.ts";
import { copyOf, unsigned, unsigned64 } from "./numbers.ts";

/** The highest I/O port. */
const MAX_PORT = 0xffff;
const CREATE_IRQCHIP = "create the irqchip first (KvmVm.createIrqchip)";

/** A VM, and whether it has interrupt controllers in the kernel. */
export interface VmWithIrqs {
  /** Its descriptor. */
  readonly fd: number;
  /** Whether `createIrqchip` was called. */
  readonly hasIrqchip: boolean;
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

/**
 * What `ioeventfd` is to do, read once and checked.
 *
 * @throws {TypeError | RangeError} If a number does not fit.
 */
export function checkIoEvent({ address, length, port = false, value }: IoEventOptions): IoEventOptions {
  checkNumber(address, "Address");
  unsigned(length, 32, "Length");
  if (port && address > MAX_PORT) throw new RangeError(`Port ${hex(address)} is beyond ${hex(MAX_PORT)}`);
  return { address, length, port, ...value === undefined ? {} : { value: unsigned64(value, "Value") } };
}

/** Makes guest writes signal `eventFd`, or with `remove` leave the guest again. The options have been checked. */
export function setIoEvent(vmFd: number, eventFd: number, options: IoEventOptions, remove: boolean): void {
  const { address, length, port = false, value } = options;
  const struct = new Uint8Array(IOEVENTFD.size);
  const view = new DataView(struct.buffer);
  view.setBigUint64(IOEVENTFD.datamatch, value ?? 0n, true);
  view.setBigUint64(IOEVENTFD.addr, BigInt(address), true);
  view.setUint32(IOEVENTFD.len, length, true);
  view.setInt32(IOEVENTFD.fd, eventFd, true);
  const flags = (port ? KVM_IOEVENTFD_FLAG_PIO : 0) |
    (value === undefined ? 0 : KVM_IOEVENTFD_FLAG_DATAMATCH) |
    (remove ? KVM_IOEVENTFD_FLAG_DEASSIGN : 0);
  view.setUint32(IOEVENTFD.flags, flags, true);
  ioctl(vmFd, "KVM_IOEVENTFD", struct, (code) => {
    const where = `${length} bytes at ${port ? "port " : ""}${hex(address)}`;
    return code === Errno.EEXIST
      ? `${where}: there is an eventfd for that already, dispose it first`
      : code === Errno.EINVAL
      ? `${where}: the length is 1, 2, 4 or 8, or 0 without a value, and the descriptor an eventfd`
      : where;
  });
}

/** Makes `eventFd` raise an interrupt line, which has been checked, or with `remove` not any more. */
export function setIrqFd(vm: VmWithIrqs, eventFd: number, irq: number, remove: boolean): void {
  const struct = new Uint8Array(IRQFD.size);
  const view = new DataView(struct.buffer);
  view.setInt32(IRQFD.fd, eventFd, true);
  view.setUint32(IRQFD.gsi, irq, true);
  view.setUint32(IRQFD.flags, remove ? KVM_IRQFD_FLAG_DEASSIGN : 0, true);
  ioctl(
    vm.fd,
    "KVM_IRQFD",
    struct,
    (code) =>
      code === Errno.EINVAL && !vm.hasIrqchip
        ? `line ${irq}: ${CREATE_IRQCHIP}`
        : code === Errno.EINVAL
        ? `line ${irq}: the descriptor must be an eventfd`
        : code === Errno.EBUSY
        ? `line ${irq}: this eventfd raises a line already, dispose that first`
        : `line ${irq}`,
  );
}

/** Sets an interrupt line. */
export function setIrqLine(vm: VmWithIrqs, irq: number, level: boolean): void {
  const struct = new Uint8Array(IRQ_LEVEL.size);
  const view = new DataView(struct.buffer);
  view.setUint32(IRQ_LEVEL.irq, unsigned(irq, 32, "Interrupt line"), true);
  view.setUint32(IRQ_LEVEL.level, level ? 1 : 0, true);
  ioctl(
    vm.fd,
    "KVM_IRQ_LINE",
    struct,
    (code) => code === Errno.ENXIO && !vm.hasIrqchip ? `line ${irq}: ${CREATE_IRQCHIP}` : `line ${irq}`,
  );
}

/** Makes the in-kernel interrupt controllers. */
export function createIrqchip(vmFd: number): void {
  ioctlValue(
    vmFd,
    "KVM_CREATE_IRQCHIP",
    0,
    (code) =>
      code === Errno.EEXIST
        ? "this VM has interrupt controllers already"
        : code === Errno.EINVAL
        ? "create the irqchip before the first vCPU"
        : "interrupt controllers",
  );
}

/** Makes the in-kernel timer. */
export function createPit2(vm: VmWithIrqs): void {
  const struct = new Uint8Array(PIT_CONFIG.size);
  struct[PIT_CONFIG.flags] = KVM_PIT_SPEAKER_DUMMY;
  ioctl(
    vm.fd,
    "KVM_CREATE_PIT2",
    struct,
    (code) => code === Errno.EEXIST ? "this VM has a timer already" : !vm.hasIrqchip ? CREATE_IRQCHIP : "timer",
  );
}

/** Turns on a capability. */
export function enableCap(vmFd: number, cap: number, args: readonly bigint[]): void {
  const struct = new Uint8Array(ENABLE_CAP.size);
  const view = new DataView(struct.buffer);
  view.setUint32(ENABLE_CAP.cap, unsigned(cap, 32, "Capability"), true);
  copyOf(args, 4, "arguments of a capability").forEach((arg, i) =>
    view.setBigUint64(ENABLE_CAP.args + 8 * i, unsigned64(arg, "Argument"), true)
  );
  ioctl(
    vmFd,
    "KVM_ENABLE_CAP",
    struct,
    (code) =>
      code === Errno.EINVAL
        ? `this KVM does not have capability ${cap}, or not with these arguments`
        : `capability ${cap}`,
  );
}
