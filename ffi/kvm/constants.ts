/**
 * Numbers of the KVM API that a VMM needs by name.
 *
 * Why it is safe: constants only, compared with the C header by a test.
 *
 * @module
 */

/** Capabilities, for `checkExtension` and `enableCap`: `KVM_CAP_*` of <linux/kvm.h>. */
export const KvmCap = {
  IRQCHIP: 0,
  USER_MEMORY: 3,
  SET_TSS_ADDR: 4,
  EXT_CPUID: 7,
  NR_VCPUS: 9,
  NR_MEMSLOTS: 10,
  MP_STATE: 14,
  SYNC_MMU: 16,
  IRQFD: 32,
  PIT2: 33,
  IOEVENTFD: 36,
  SET_IDENTITY_MAP_ADDR: 37,
  MAX_VCPUS: 66,
  READONLY_MEM: 81,
  ENABLE_CAP_VM: 98,
  MAX_VCPU_ID: 128,
  IMMEDIATE_EXIT: 136,
  MANUAL_DIRTY_LOG_PROTECT2: 168,
  DIRTY_LOG_RING: 192,
  SREGS2: 200,
  XSAVE2: 208,
  DISABLE_QUIRKS2: 213,
  DIRTY_LOG_RING_ACQ_REL: 223,
  USER_MEMORY2: 231,
  MEMORY_FAULT_INFO: 232,
  MEMORY_ATTRIBUTES: 233,
  GUEST_MEMFD: 234,
  PRE_FAULT_MEMORY: 236,
} as const satisfies Readonly<Record<string, number>>;

/** Why `KVM_RUN` returned: `KVM_EXIT_*` of <linux/kvm.h>. `KvmVcpu.run` turns the common ones into a `KvmExit`. */
export const KvmExitReason = {
  UNKNOWN: 0,
  IO: 2,
  DEBUG: 4,
  HLT: 5,
  MMIO: 6,
  IRQ_WINDOW_OPEN: 7,
  SHUTDOWN: 8,
  FAIL_ENTRY: 9,
  INTR: 10,
  INTERNAL_ERROR: 17,
  SYSTEM_EVENT: 24,
  DIRTY_RING_FULL: 31,
  MEMORY_FAULT: 39,
} as const satisfies Readonly<Record<string, number>>;

/** Whether a vCPU runs, for `KvmVcpu.mpState`: `KVM_MP_STATE_*` of <linux/kvm.h>. */
export const KvmMpState = {
  RUNNABLE: 0,
  UNINITIALIZED: 1,
  INIT_RECEIVED: 2,
  HALTED: 3,
  SIPI_RECEIVED: 4,
} as const satisfies Readonly<Record<string, number>>;

/** Bits of a CPUID leaf's `flags`: `KVM_CPUID_FLAG_*` of <asm/kvm.h>. */
export const KvmCpuidFlag = {
  SIGNIFCANT_INDEX: 1,
} as const satisfies Readonly<Record<string, number>>;

/** The version every KVM has had since 2007. */
export const KVM_API_VERSION = 12;

/** Flag of a memory slot: the guest cannot write it, and a write becomes an MMIO exit. */
export const KVM_MEM_READONLY = 2;

/** Flag of a memory slot: KVM notes which pages the guest writes. */
export const KVM_MEM_LOG_DIRTY_PAGES = 1;

/** Flags of `MANUAL_DIRTY_LOG_PROTECT2`: reading the log does not clear it. */
export const KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE = 1;
/** A log that is switched on begins with all pages in it. */
export const KVM_DIRTY_LOG_INITIALLY_SET = 2;

/** Where in a vCPU's file its dirty ring begins, in pages. */
export const KVM_DIRTY_LOG_PAGE_OFFSET = 64;
/** Flag of `struct kvm_dirty_gfn`: KVM has filled it. */
export const KVM_DIRTY_GFN_F_DIRTY = 1;
/** It has been harvested. */
export const KVM_DIRTY_GFN_F_RESET = 2;

/** The quirk that makes KVM drop all its page tables when any slot is deleted: a bit of `DISABLE_QUIRKS2`. */
export const KVM_X86_QUIRK_SLOT_ZAP_ALL = 1 << 7;

/** `io.direction` of a port write. */
export const KVM_EXIT_IO_OUT = 1;

/** Flags of `struct kvm_ioeventfd`. */
export const KVM_IOEVENTFD_FLAG_DATAMATCH = 1;
/** The address is a port. */
export const KVM_IOEVENTFD_FLAG_PIO = 2;
/** Take it away again. */
export const KVM_IOEVENTFD_FLAG_DEASSIGN = 4;

/** Flag of `struct kvm_irqfd`: take it away again. */
export const KVM_IRQFD_FLAG_DEASSIGN = 1;

/** Flag of `struct kvm_pit_config`: KVM answers port 0x61 itself. */
export const KVM_PIT_SPEAKER_DUMMY = 1;
