/**
 * The state of a vCPU and of a virtual machine as plain data, and the check that it is what it says.
 *
 * Most parts are the kernel's own structs, byte for byte: they are its ABI, which stays.
 *
 * Why it is safe: it reads what a caller gives once, into objects of its own, and refuses what has another shape. What the
 * numbers mean is checked by the kernel when they are restored.
 *
 * @module
 */

import { MembackingError } from "../../src/core/errors.ts";
import { plainBytes } from "../os/plain_bytes.ts";
import { checkCpuid, type KvmCpuidEntry, type KvmMsr } from "./cpuid_msrs.ts";
import type { KvmExit } from "./exits.ts";
import { DEBUGREGS, LAPIC_STATE, PIT_STATE2, SREGS2, VCPU_EVENTS, XCRS, XSAVE } from "./layout.ts";
import { copyOf, unsigned, unsigned64 } from "./numbers.ts";
import { allRegs, givenRegs, type KvmRegs } from "./registers.ts";

/** The version of what `saveState` gives. It grows when a part is added; what was saved before is read all the same. */
export const STATE_VERSION = 1;

/**
 * The state of a vCPU: plain data that can be cloned, sent and stored (`encodeState`). Its vCPU is out of the guest
 * meanwhile, or the parts are of different moments.
 */
export interface VcpuState {
  /** Tells the two kinds of state apart. */
  readonly kind: "vcpu";
  /** The version of this layout, 1 now. */
  readonly version: number;
  /** What CPUID says. */
  readonly cpuid: readonly KvmCpuidEntry[];
  /** The extended control registers: `struct kvm_xcrs`. */
  readonly xcrs: Uint8Array<ArrayBuffer>;
  /** The special registers: `struct kvm_sregs2`. */
  readonly sregs: Uint8Array<ArrayBuffer>;
  /** The general registers. */
  readonly regs: KvmRegs;
  /** The x87, SSE and further vector registers: `struct kvm_xsave`, 4,096 bytes or more. */
  readonly xsave: Uint8Array<ArrayBuffer>;
  /** The model-specific registers that KVM counts as state. */
  readonly msrs: readonly KvmMsr[];
  /** The local interrupt controller: `struct kvm_lapic_state`; `null` where the VM has none in the kernel. */
  readonly lapic: Uint8Array<ArrayBuffer> | null;
  /** Exceptions and interrupts that are under way: `struct kvm_vcpu_events`. */
  readonly events: Uint8Array<ArrayBuffer>;
  /** Whether it runs, halts or waits to be started: a `KvmMpState`. */
  readonly mpState: number;
  /** The debug registers: `struct kvm_debugregs`. */
  readonly debugRegs: Uint8Array<ArrayBuffer>;
}

/** The state of a virtual machine besides its memory and its vCPUs: plain data, as `VcpuState`. */
export interface VmState {
  /** Tells the two kinds of state apart. */
  readonly kind: "vm";
  /** The version of this layout, 1 now. */
  readonly version: number;
  /** The two PICs and the I/O APIC, 512 bytes each; `null` where they are not in the kernel. */
  readonly irqchips: readonly Uint8Array<ArrayBuffer>[] | null;
  /** The timer: `struct kvm_pit_state2`; `null` where it is not in the kernel. */
  readonly pit: Uint8Array<ArrayBuffer> | null;
  /** What the VM's clock says, in nanoseconds. It goes on from here when it is restored. */
  readonly clock: bigint;
}

/** A model-specific register that has another value than the one that was to be restored. */
export interface MsrNotTaken {
  /** Its number. */
  readonly index: number;
  /** The value of the state. */
  readonly wanted: bigint;
  /** The value it has; `null` where this KVM does not know it. */
  readonly actual: bigint | null;
}

/** What came of a vCPU's state. */
export interface RestoreReport {
  /**
   * The registers that did not take, in the order of their numbers. Those that count time are among them only where their
   * old value went on.
   */
  readonly msrsNotTaken: readonly MsrNotTaken[];
}

/** Something is not the state of a vCPU or of a virtual machine, or not one that fits. */
export class StateError extends MembackingError {
  /** The class name, which is also what a stack trace shows. */
  override name = "StateError";
}

/** The exit under way when a state was to be saved has a second half, which the VMM has to handle first. */
export class UnfinishedExitError extends MembackingError {
  /** The class name, which is also what a stack trace shows. */
  override name = "UnfinishedExitError";
  /** What `run` would have returned. */
  readonly exit: KvmExit;

  /** Builds the error. */
  constructor(exit: KvmExit) {
    super(
      `The vCPU needs the VMM once more (${exit.kind}): handle the error's exit as if run() had returned it, then save`,
    );
    this.exit = exit;
  }
}

/** The task priority of a state. */
export function cr8Of({ sregs }: VcpuState): bigint {
  return new DataView(sregs.buffer).getBigUint64(SREGS2.cr8, true);
}

/** How many interrupt controllers a VM has, and how long the state of one is. */
export const IRQCHIPS = { count: 3, length: 512 } as const;
/** More than any CPU has: AMX takes it to 11 KiB. */
const MAX_XSAVE = 2 ** 20;
/** More MSRs than any KVM lists. */
const MAX_MSRS = 4096;

/**
 * A copy of `state` with everything checked.
 *
 * @throws {StateError} If it is no state of a vCPU; the cause, if there is one, says what is wrong with which part.
 */
export function checkVcpuState(state: VcpuState): VcpuState {
  return checking(state, "vcpu", () => {
    const { version, cpuid, xcrs, sregs, regs, xsave, msrs, lapic, events, mpState, debugRegs } = state;
    const given = givenRegs(regs);
    if (!allRegs(given)) throw new RangeError("regs is not complete");
    return {
      kind: "vcpu",
      version,
      cpuid: checkCpuid(cpuid),
      xcrs: bytes(xcrs, XCRS.size, "xcrs"),
      sregs: bytes(sregs, SREGS2.size, "sregs"),
      regs: given as KvmRegs,
      xsave: bytes(xsave, XSAVE.size, "xsave", MAX_XSAVE),
      msrs: copyOf(msrs, MAX_MSRS, "MSRs").map(({ index, data }) => ({
        index: unsigned(index, 32, "MSR index"),
        data: unsigned64(data, "MSR value"),
      })),
      lapic: lapic === null ? null : bytes(lapic, LAPIC_STATE.size, "lapic"),
      events: bytes(events, VCPU_EVENTS.size, "events"),
      mpState: unsigned(mpState, 32, "mpState"),
      debugRegs: bytes(debugRegs, DEBUGREGS.size, "debugRegs"),
    };
  });
}

/**
 * A copy of `state` with everything checked.
 *
 * @throws {StateError} If it is no state of a virtual machine; the cause says what is wrong with which part.
 */
export function checkVmState(state: VmState): VmState {
  return checking(state, "vm", () => {
    const { version, irqchips, pit, clock } = state;
    const chips = irqchips === null ? null : copyOf(irqchips, IRQCHIPS.count, "irqchips");
    if (chips !== null && chips.length !== IRQCHIPS.count) throw new RangeError(`There are ${IRQCHIPS.count} irqchips`);
    return {
      kind: "vm",
      version,
      irqchips: chips === null ? null : chips.map((chip, i) => bytes(chip, IRQCHIPS.length, `irqchips[${i}]`)),
      pit: pit === null ? null : bytes(pit, PIT_STATE2.size, "pit"),
      clock: unsigned64(clock, "clock"),
    };
  });
}

const NAMES = { vcpu: "a vCPU", vm: "a virtual machine" } as const;

function checking<State extends { kind: string; version: number }>(
  state: State,
  kind: "vcpu" | "vm",
  check: () => State,
) {
  const what = `the state of ${NAMES[kind]}`;
  if (typeof state !== "object" || state === null || state.kind !== kind) throw new StateError(`This is not ${what}`);
  const { version } = state;
  if (!Number.isInteger(version) || version < 1) throw new StateError(`This is not ${what}: it has no version`);
  if (version > STATE_VERSION) {
    throw new StateError(
      `This is ${what} in version ${version}, and this package knows versions up to ${STATE_VERSION}`,
    );
  }
  try {
    return check();
  } catch (cause) {
    throw new StateError(`This is not ${what}: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
  }
}

function bytes(value: Uint8Array, length: number, what: string, most = length): Uint8Array<ArrayBuffer> {
  const plain = plainBytes(value);
  if (plain.length < length || plain.length > most) {
    throw new RangeError(`${what} has ${plain.length} bytes instead of ${length}${most > length ? " or more" : ""}`);
  }
  return plain.slice();
}
