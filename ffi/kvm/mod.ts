/**
 * KVM for VMMs on Deno: the device, virtual machines as partitions of guest memory, and virtual processors.
 *
 * Everything needs `--allow-ffi` and nothing else, and runs on x86-64 Linux.
 *
 * @module
 */

export { EventFd } from "../os/event_fd.ts";
export {
  KVM_IOEVENTFD_FLAG_DATAMATCH,
  KVM_IOEVENTFD_FLAG_DEASSIGN,
  KVM_IOEVENTFD_FLAG_PIO,
  KvmCap,
  KvmCpuidFlag,
  KvmExitReason,
  KvmMpState,
} from "./constants.ts";
export type { KvmCpuidEntry, KvmMsr } from "./cpuid_msrs.ts";
export type {
  KvmDirtyRingFullExit,
  KvmExit,
  KvmFailEntryExit,
  KvmFaultExit,
  KvmHltExit,
  KvmInternalErrorExit,
  KvmInterruptedExit,
  KvmIoExit,
  KvmIrqWindowOpenExit,
  KvmMmioExit,
  KvmShutdownExit,
  KvmSystemEventExit,
  KvmUnknownExit,
} from "./exits.ts";
export { currentThreadId, kickThread, SIGUSR1, SIGUSR2 } from "./kick.ts";
export { type CreateVmOptions, Kvm } from "./kvm.ts";
export { KvmVm } from "./kvm_vm.ts";
export { KvmVcpu } from "./kvm_vcpu.ts";
export type { KvmDtable, KvmFpu, KvmRegs, KvmSegment, KvmSregs } from "./registers.ts";
export type { SharedRing } from "./ring_reader.ts";
export type { SharedVcpu } from "./shared_vcpu.ts";
export type { SlotInfo } from "./slot_book.ts";
export type { SlotAccess } from "./vm_memory.ts";
export {
  type MsrNotTaken,
  type RestoreReport,
  StateError,
  UnfinishedExitError,
  type VcpuState,
  type VmState,
} from "./state.ts";
export { decodeState, encodeState } from "./state_codec.ts";
export type { IoEventOptions } from "./vm_requests.ts";
export {
  quiesceVcpus,
  type SharedVcpuControl,
  VcpuControl,
  type VcpuControlOptions,
  VcpuTimeoutError,
} from "./vcpu_control.ts";
export { VcpuRunner } from "./vcpu_runner.ts";
