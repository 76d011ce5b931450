/**
 * Reading the state of a vCPU out of KVM, and putting one into it.
 *
 * Why it is safe: every struct has the size its request asks for, which for `struct kvm_xsave` is what this KVM says.
 *
 * @module
 */

import { Errno, OsError } from "../os/os_error.ts";
import {
  decodeCpuid,
  decodeMsrs,
  emptyCpuid,
  encodeCpuid,
  encodeMsrs,
  type KvmCpuidEntry,
  type KvmMsr,
  MAX_ENTRIES,
} from "./cpuid_msrs.ts";
import { type HostFacts, knownFacts } from "./host_facts.ts";
import { ioctl, type RequestName } from "./ioctl.ts";
import { DEBUGREGS, LAPIC_STATE, MP_STATE, REGS, SREGS2, VCPU_EVENTS, XCRS } from "./layout.ts";
import { decodeRegs, encodeRegs } from "./registers.ts";
import { type MsrNotTaken, type RestoreReport, STATE_VERSION, StateError, type VcpuState } from "./state.ts";

/** Registers that count on: IA32_TSC, and how long Hyper-V's guest has run, HV_X64_MSR_VP_RUNTIME. */
const COUNTERS: readonly number[] = [0x10, 0x4000_0010];
/** Hyper-V's counter of time since the guest began, which nobody sets. */
const HV_TIME_REF_COUNT = 0x4000_0020;
const CPUID_FIELDS = ["function", "index", "flags", "eax", "ebx", "ecx", "edx"] as const;
/** Bits of CPUID that KVM sets by CR4, XCR0 and IA32_APIC_BASE: OSXSAVE, APIC, MWAIT, OSPKE, the size of what XSAVE saves. */
const FOLLOWING = [
  { function: 1, field: "ecx", mask: 1 << 27 | 1 << 3 },
  { function: 1, field: "edx", mask: 1 << 9 },
  { function: 7, field: "ecx", mask: 1 << 4 },
  { function: 0xd, field: "ebx", mask: -1 },
] as const;
/** Set where the timer of the local interrupt controller is in that mode alone, which is restored after the MSRs. */
const IA32_TSC_DEADLINE = 0x6e0;

/** The state of the vCPU `fd`, which is out of the guest and has no exit under way. */
export function readVcpu(fd: number): VcpuState {
  const facts = knownFacts();
  const get = (name: RequestName, size: number) => {
    const struct = new Uint8Array(size);
    ioctl(fd, name, struct);
    return struct;
  };
  return {
    kind: "vcpu",
    version: STATE_VERSION,
    cpuid: getCpuid(fd),
    xcrs: get("KVM_GET_XCRS", XCRS.size),
    sregs: get("KVM_GET_SREGS2", SREGS2.size),
    regs: decodeRegs(get("KVM_GET_REGS", REGS.size)),
    xsave: get(facts.hasXsave2 ? "KVM_GET_XSAVE2" : "KVM_GET_XSAVE", facts.xsaveSize),
    msrs: readMsrs(fd, facts.msrs),
    lapic: getLapic(fd),
    events: get("KVM_GET_VCPU_EVENTS", VCPU_EVENTS.size),
    mpState: new DataView(get("KVM_GET_MP_STATE", MP_STATE.size).buffer).getUint32(MP_STATE.mp_state, true),
    debugRegs: get("KVM_GET_DEBUGREGS", DEBUGREGS.size),
  };
}

/** Puts a state that has been checked into the vCPU `fd`, which is out of the guest and has no exit under way. */
export function writeVcpu(fd: number, state: VcpuState): RestoreReport {
  const facts = knownFacts();
  const xsave = fittingXsave(state.xsave, facts);
  const hasLapic = getLapic(fd) !== null;
  if (hasLapic !== (state.lapic !== null)) {
    throw new StateError(
      hasLapic
        ? "This vCPU has an interrupt controller in the kernel, and the state is of one without"
        : "The state is of a vCPU with an interrupt controller in the kernel, call createIrqchip before the vCPU is made",
    );
  }
  const set = (name: RequestName, struct: Uint8Array<ArrayBuffer>) => ioctl(fd, name, struct, () => "vCPU state");
  const regs = new Uint8Array(REGS.size);
  encodeRegs(regs, state.regs);
  const mpState = new Uint8Array(MP_STATE.size);
  new DataView(mpState.buffer).setUint32(MP_STATE.mp_state, state.mpState, true);
  const counters = byIndex(readMsrs(fd, COUNTERS));

  // Each depends on those before it: which registers there are, then the modes, then the values.
  // One that has run keeps its CPUID for good, and KVM says EINVAL even to the same one again.
  if (!isSameCpuid(getCpuid(fd), state.cpuid)) set("KVM_SET_CPUID2", encodeCpuid(state.cpuid));
  // A CPU without XSAVE has none.
  if (new DataView(state.xcrs.buffer).getUint32(XCRS.nr_xcrs, true) > 0) set("KVM_SET_XCRS", state.xcrs);
  set("KVM_SET_SREGS2", state.sregs);
  set("KVM_SET_REGS", regs);
  set("KVM_SET_XSAVE", xsave);
  writeMsrs(fd, state.msrs);
  if (state.lapic !== null) {
    set("KVM_SET_LAPIC", state.lapic);
    writeMsrs(fd, state.msrs.filter(({ index }) => index === IA32_TSC_DEADLINE));
  }
  set("KVM_SET_VCPU_EVENTS", state.events);
  set("KVM_SET_MP_STATE", mpState);
  set("KVM_SET_DEBUGREGS", state.debugRegs);
  return { msrsNotTaken: compare(fd, state.msrs, counters) };
}

/** Those of the MSRs that can be read, with their values. */
function readMsrs(fd: number, indices: readonly number[]): KvmMsr[] {
  return inChunks(indices.map((index) => ({ index, data: 0n })), (chunk) => {
    const struct = encodeMsrs(chunk);
    return decodeMsrs(struct, ioctl(fd, "KVM_GET_MSRS", struct));
  });
}

/** Sets those of the MSRs that can be set. */
function writeMsrs(fd: number, msrs: readonly KvmMsr[]): void {
  inChunks(msrs, (chunk) => chunk.slice(0, ioctl(fd, "KVM_SET_MSRS", encodeMsrs(chunk))));
}

/** Hands `msrs` to `use`, as many at a time as KVM takes. What it stops at is left out. */
function inChunks(msrs: readonly KvmMsr[], use: (chunk: readonly KvmMsr[]) => readonly KvmMsr[]): KvmMsr[] {
  const all: KvmMsr[] = [];
  for (let at = 0; at < msrs.length;) {
    const chunk = msrs.slice(at, at + MAX_ENTRIES.msrs);
    const used = use(chunk);
    all.push(...used);
    at += used.length < chunk.length ? used.length + 1 : chunk.length;
  }
  return all;
}

function byIndex(msrs: readonly KvmMsr[]): ReadonlyMap<number, bigint> {
  return new Map(msrs.map(({ index, data }) => [index, data]));
}

/** Which MSRs have other values than they should. `before` is what those that count on said before. */
function compare(fd: number, wanted: readonly KvmMsr[], before: ReadonlyMap<number, bigint>): MsrNotTaken[] {
  const actual = byIndex(readMsrs(fd, wanted.map(({ index }) => index)));
  const away = (a: bigint, b: bigint) => a > b ? a - b : b - a;
  return wanted.flatMap(({ index, data }): MsrNotTaken[] => {
    const now = actual.get(index) ?? null;
    const was = before.get(index);
    if (index === HV_TIME_REF_COUNT) return [];
    // One that counts on is taken if it is nearer to what was wanted than to what it was.
    const isTaken = was !== undefined && now !== null ? away(now, data) <= away(now, was) : now === data;
    return isTaken ? [] : [{ index, wanted: data, actual: now }];
  }).sort((a, b) => a.index - b.index);
}

function getCpuid(fd: number): KvmCpuidEntry[] {
  const struct = emptyCpuid(MAX_ENTRIES.cpuid);
  ioctl(fd, "KVM_GET_CPUID2", struct);
  return decodeCpuid(struct);
}

/** Whether two are the same but for what follows other registers, which are restored too. */
function isSameCpuid(a: readonly KvmCpuidEntry[], b: readonly KvmCpuidEntry[]): boolean {
  return a.length === b.length && a.every((entry, i) => {
    const other = b[i];
    return other !== undefined && CPUID_FIELDS.every((field) => {
      const following = FOLLOWING.find((bits) => bits.function === entry.function && bits.field === field)?.mask ?? 0;
      return ((entry[field] ^ other[field]) & ~following) === 0;
    });
  });
}

function getLapic(fd: number): Uint8Array<ArrayBuffer> | null {
  const struct = new Uint8Array(LAPIC_STATE.size);
  try {
    ioctl(fd, "KVM_GET_LAPIC", struct);
    return struct;
  } catch (error) {
    if (error instanceof OsError && (error.errno === Errno.EINVAL || error.errno === Errno.ENXIO)) return null;
    throw error;
  }
}

function fittingXsave(saved: Uint8Array<ArrayBuffer>, { xsaveSize }: HostFacts): Uint8Array<ArrayBuffer> {
  if (saved.length > xsaveSize) {
    throw new StateError(
      `The vector registers of the state take ${saved.length} bytes, and this host has ${xsaveSize}`,
    );
  }
  const struct = new Uint8Array(xsaveSize);
  struct.set(saved);
  return struct;
}
