/**
 * Requests to a virtual machine that are a struct and nothing else: interrupts, eventfds, capabilities.
 *
 * Why it is safe: each struct is made here, with the size of its request, and holds no address of host memory.
 *
 * @module
 */

import { hex } from "../../src/core/hex.ts";
import { checkNumber } from "../../src/core/memory_range.ts";
import {
  KVM_IOEVENTFD_FLAG_DATAMATCH,
  KVM_IOEVENTFD_FLAG_DEASSIGN,
  KVM_IOEVENTFD_FLAG_PIO,
  KVM_IRQFD_FLAG_DEASSIGN,
} from "./constants.ts";
import { ioctl } from "./ioctl.ts";
import { ENABLE_CAP, IOEVENTFD, IRQ_LEVEL, IRQFD } from "./layout.ts";

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

/** Makes guest writes signal `eventFd`, or with `remove` leave the guest again. */
export function setIoEvent(vmFd: number, eventFd: number, options: IoEventOptions, remove: boolean): void {
  const { address, length, port = false, value } = options;
  checkNumber(eventFd, "File descriptor");
  checkNumber(address, "Address");
  checkNumber(length, "Length");
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
  ioctl(vmFd, "KVM_IOEVENTFD", struct, () => `${length} bytes at ${port ? "port " : ""}${hex(address)}`);
}

/** Makes `eventFd` raise an interrupt line, or with `remove` not any more. */
export function setIrqFd(vmFd: number, eventFd: number, irq: number, remove: boolean): void {
  checkNumber(eventFd, "File descriptor");
  checkNumber(irq, "Interrupt line");
  const struct = new Uint8Array(IRQFD.size);
  const view = new DataView(struct.buffer);
  view.setUint32(IRQFD.fd, eventFd, true);
  view.setUint32(IRQFD.gsi, irq, true);
  view.setUint32(IRQFD.flags, remove ? KVM_IRQFD_FLAG_DEASSIGN : 0, true);
  ioctl(vmFd, "KVM_IRQFD", struct, () => `line ${irq}`);
}

/** Sets an interrupt line. */
export function setIrqLine(vmFd: number, irq: number, level: boolean): void {
  checkNumber(irq, "Interrupt line");
  const struct = new Uint8Array(IRQ_LEVEL.size);
  const view = new DataView(struct.buffer);
  view.setUint32(IRQ_LEVEL.irq, irq, true);
  view.setUint32(IRQ_LEVEL.level, level ? 1 : 0, true);
  ioctl(vmFd, "KVM_IRQ_LINE", struct, () => `line ${irq}`);
}

/** Turns on a capability. */
export function enableCap(vmFd: number, cap: number, args: readonly bigint[]): void {
  checkNumber(cap, "Capability");
  if (args.length > 4) throw new RangeError(`A capability takes at most 4 arguments, got ${args.length}`);
  const struct = new Uint8Array(ENABLE_CAP.size);
  const view = new DataView(struct.buffer);
  view.setUint32(ENABLE_CAP.cap, cap, true);
  args.forEach((arg, i) => view.setBigUint64(ENABLE_CAP.args + 8 * i, arg, true));
  ioctl(vmFd, "KVM_ENABLE_CAP", struct, () => `capability ${cap}`);
}
