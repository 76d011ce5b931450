/**
 * Reading the state of a virtual machine out of KVM, and putting one into it: interrupt controllers, timer, clock.
 *
 * Why it is safe: every struct has the size its request asks for.
 *
 * @module
 */

import { Errno, OsError } from "../os/os_error.ts";
import { ioctl, type RequestName } from "./ioctl.ts";
import { CLOCK_DATA, IRQCHIP, PIT_STATE2 } from "./layout.ts";
import { IRQCHIPS, STATE_VERSION, StateError, type VmState } from "./state.ts";

/** The state of the VM `fd`, whose vCPUs are out of the guest. */
export function readVm(fd: number): VmState {
  const clock = new Uint8Array(CLOCK_DATA.size);
  ioctl(fd, "KVM_GET_CLOCK", clock);
  return {
    kind: "vm",
    version: STATE_VERSION,
    irqchips: getIrqchips(fd),
    pit: getIfThere(fd, "KVM_GET_PIT2", new Uint8Array(PIT_STATE2.size)),
    clock: new DataView(clock.buffer).getBigUint64(CLOCK_DATA.clock, true),
  };
}

/** Puts a state that has been checked into the VM `fd`, whose vCPUs are out of the guest. */
export function writeVm(fd: number, { irqchips, pit, clock }: VmState): void {
  agree("interrupt controllers", "createIrqchip", getIrqchips(fd), irqchips);
  agree("a timer", "createPit2", getIfThere(fd, "KVM_GET_PIT2", new Uint8Array(PIT_STATE2.size)), pit);
  irqchips?.forEach((chip, i) => ioctl(fd, "KVM_SET_IRQCHIP", irqchip(i, chip), () => `interrupt controller ${i}`));
  if (pit !== null) ioctl(fd, "KVM_SET_PIT2", pit, () => "timer");
  const struct = new Uint8Array(CLOCK_DATA.size);
  new DataView(struct.buffer).setBigUint64(CLOCK_DATA.clock, clock, true);
  ioctl(fd, "KVM_SET_CLOCK", struct);
}

function agree(what: string, how: string, has: unknown, saved: unknown): void {
  if (saved === null && has !== null) {
    throw new StateError(`This VM has ${what} in the kernel, and the state is of one without`);
  }
  if (saved !== null && has === null) {
    throw new StateError(`The state is of a VM with ${what} in the kernel, call ${how} first`);
  }
}

function getIrqchips(fd: number): Uint8Array<ArrayBuffer>[] | null {
  const chips: Uint8Array<ArrayBuffer>[] = [];
  for (let i = 0; i < IRQCHIPS.count; i++) {
    const struct = getIfThere(fd, "KVM_GET_IRQCHIP", irqchip(i));
    if (struct === null) return null;
    chips.push(struct.slice(IRQCHIP.chip));
  }
  return chips;
}

function irqchip(id: number, chip?: Uint8Array<ArrayBuffer>): Uint8Array<ArrayBuffer> {
  const struct = new Uint8Array(IRQCHIP.size);
  new DataView(struct.buffer).setUint32(IRQCHIP.chip_id, id, true);
  if (chip !== undefined) struct.set(chip, IRQCHIP.chip);
  return struct;
}

function getIfThere(fd: number, name: RequestName, struct: Uint8Array<ArrayBuffer>): Uint8Array<ArrayBuffer> | null {
  try {
    ioctl(fd, name, struct);
    return struct;
  } catch (error) {
    if (error instanceof OsError && error.errno === Errno.ENXIO) return null;
    throw error;
  }
}
