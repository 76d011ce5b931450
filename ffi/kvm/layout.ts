/**
 * The structs of <linux/kvm.h> and <asm/kvm.h> that this package fills or reads, as sizes and field offsets in bytes.
 *
 * Why it is safe: constants only. A test compiles a C program against the header and compares every one of them.
 *
 * @module
 */

/** `struct kvm_userspace_memory_region`: a memory slot. */
export const MEMORY_REGION = {
  size: 32,
  slot: 0,
  flags: 4,
  guest_phys_addr: 8,
  memory_size: 16,
  userspace_addr: 24,
} as const;

/** `struct kvm_regs`: general registers, eight bytes each. */
export const REGS = {
  size: 144,
  rax: 0,
  rbx: 8,
  rcx: 16,
  rdx: 24,
  rsi: 32,
  rdi: 40,
  rsp: 48,
  rbp: 56,
  r8: 64,
  r9: 72,
  r10: 80,
  r11: 88,
  r12: 96,
  r13: 104,
  r14: 112,
  r15: 120,
  rip: 128,
  rflags: 136,
} as const;

/** `struct kvm_segment`: one segment register. */
export const SEGMENT = {
  size: 24,
  base: 0,
  limit: 8,
  selector: 12,
  type: 14,
  present: 15,
  dpl: 16,
  db: 17,
  s: 18,
  l: 19,
  g: 20,
  avl: 21,
  unusable: 22,
} as const;

/** `struct kvm_dtable`: where a descriptor table is. */
export const DTABLE = { size: 16, base: 0, limit: 8 } as const;

/** `struct kvm_sregs`: special registers. */
export const SREGS = {
  size: 312,
  cs: 0,
  ds: 24,
  es: 48,
  fs: 72,
  gs: 96,
  ss: 120,
  tr: 144,
  ldt: 168,
  gdt: 192,
  idt: 208,
  cr0: 224,
  cr2: 232,
  cr3: 240,
  cr4: 248,
  cr8: 256,
  efer: 264,
  apic_base: 272,
  interrupt_bitmap: 280,
} as const;

/** `struct kvm_fpu`: x87 and SSE registers. */
export const FPU = {
  size: 416,
  fpr: 0,
  fcw: 128,
  fsw: 130,
  ftwx: 132,
  last_opcode: 134,
  last_ip: 136,
  last_dp: 144,
  xmm: 152,
} as const;

/** `struct kvm_msrs`: a count, then entries. */
export const MSRS = { size: 8, nmsrs: 0, entries: 8 } as const;

/** `struct kvm_msr_entry`: one model-specific register. */
export const MSR_ENTRY = { size: 16, index: 0, data: 8 } as const;

/** `struct kvm_cpuid2`: a count, then entries. */
export const CPUID2 = { size: 8, nent: 0, entries: 8 } as const;

/** `struct kvm_cpuid_entry2`: one CPUID leaf. */
export const CPUID_ENTRY2 = {
  size: 40,
  function: 0,
  index: 4,
  flags: 8,
  eax: 12,
  ebx: 16,
  ecx: 20,
  edx: 24,
} as const;

/** `struct kvm_irq_level`: the state of an interrupt line. */
export const IRQ_LEVEL = { size: 8, irq: 0, level: 4 } as const;

/** `struct kvm_irqfd`: an eventfd that raises an interrupt. */
export const IRQFD = { size: 32, fd: 0, gsi: 4, flags: 8, resamplefd: 12 } as const;

/** `struct kvm_ioeventfd`: an eventfd that a guest write signals. */
export const IOEVENTFD = { size: 64, datamatch: 0, addr: 8, len: 16, fd: 20, flags: 24 } as const;

/** `struct kvm_pit_config`: the programmable interval timer. */
export const PIT_CONFIG = { size: 64, flags: 0 } as const;

/** `struct kvm_enable_cap`: a capability and its arguments. */
export const ENABLE_CAP = { size: 104, cap: 0, flags: 4, args: 8 } as const;

/** `struct kvm_dirty_log`: where a slot's bits are to be copied. */
export const DIRTY_LOG = { size: 16, slot: 0, dirty_bitmap: 8 } as const;

/** `struct kvm_clear_dirty_log`: which bits of a slot to clear. */
export const CLEAR_DIRTY_LOG = { size: 24, slot: 0, num_pages: 4, first_page: 8, dirty_bitmap: 16 } as const;

/** `struct kvm_dirty_gfn`: an entry of a dirty ring. */
export const DIRTY_GFN = { size: 16, flags: 0, slot: 4, offset: 8 } as const;

/** `struct kvm_mp_state`: whether a vCPU runs, halts or waits to be started. */
export const MP_STATE = { size: 4, mp_state: 0 } as const;

/** `struct kvm_interrupt`: an interrupt vector to inject. */
export const INTERRUPT = { size: 4, irq: 0 } as const;

/** The start of `struct kvm_run`, the page a vCPU shares with its VMM; everything from 32 on depends on the exit. */
export const RUN = {
  request_interrupt_window: 0,
  immediate_exit: 1,
  exit_reason: 8,
  ready_for_interrupt_injection: 12,
  if_flag: 13,
  flags: 14,
  cr8: 16,
  apic_base: 24,
  hw_hardware_exit_reason: 32,
  fail_entry_hardware_entry_failure_reason: 32,
  io_direction: 32,
  io_size: 33,
  io_port: 34,
  io_count: 36,
  io_data_offset: 40,
  mmio_phys_addr: 32,
  mmio_data: 40,
  mmio_len: 48,
  mmio_is_write: 52,
  internal_suberror: 32,
  internal_ndata: 36,
  internal_data: 40,
  system_event_type: 32,
  system_event_ndata: 36,
  system_event_data: 40,
  memory_fault_flags: 32,
  memory_fault_gpa: 40,
  memory_fault_size: 48,
} as const;

/** `struct kvm_msr_list`: a count, then the numbers of MSRs. */
export const MSR_LIST = { size: 4, nmsrs: 0, indices: 4 } as const;

/** `struct kvm_sregs2`: special registers, with what 32-bit paging keeps of its page tables. */
export const SREGS2 = { size: 320, cr8: 256, flags: 280, pdptrs: 288 } as const;

/** `struct kvm_xsave`: vector and floating-point registers; more follows where the CPU has tiles. */
export const XSAVE = { size: 4096, region: 0 } as const;

/** `struct kvm_xcrs`: extended control registers. */
export const XCRS = { size: 392, nr_xcrs: 0, flags: 4, xcrs: 8 } as const;

/** `struct kvm_lapic_state`: the registers of a local interrupt controller. */
export const LAPIC_STATE = { size: 1024, regs: 0 } as const;

/** `struct kvm_vcpu_events`: exceptions and interrupts that are under way. */
export const VCPU_EVENTS = { size: 64, flags: 20 } as const;

/** `struct kvm_debugregs`: debug registers. */
export const DEBUGREGS = { size: 128, db: 0, dr6: 32, dr7: 40, flags: 48 } as const;

/** `struct kvm_irqchip`: one of the interrupt controllers of a VM. */
export const IRQCHIP = { size: 520, chip_id: 0, chip: 8 } as const;

/** `struct kvm_pit_state2`: the programmable interval timer. */
export const PIT_STATE2 = { size: 112, channels: 0, flags: 72 } as const;

/** `struct kvm_clock_data`: what the clock of a VM says. */
export const CLOCK_DATA = { size: 48, clock: 0, flags: 8, realtime: 16, host_tsc: 24 } as const;
