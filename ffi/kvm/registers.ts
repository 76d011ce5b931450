/**
 * Registers of a vCPU as plain objects, and their C structs.
 *
 * Why it is safe: it reads and writes buffers of its own, through `DataView`, which checks bounds, and puts into them
 * only numbers that fit.
 *
 * @module
 */

import { lengthOf, plainBytes } from "../os/plain_bytes.ts";
import { unsigned, unsigned64 } from "./numbers.ts";
import { DTABLE, FPU, REGS, SEGMENT, SREGS } from "./layout.ts";

const REG_NAMES = [
  ...["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"] as const,
  ...["r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags"] as const,
] as const;

/** The general registers (`struct kvm_regs`), 64 bits each. */
export interface KvmRegs {
  /** RAX. */
  rax: bigint;
  /** RBX. */
  rbx: bigint;
  /** RCX. */
  rcx: bigint;
  /** RDX. */
  rdx: bigint;
  /** RSI. */
  rsi: bigint;
  /** RDI. */
  rdi: bigint;
  /** RSP. */
  rsp: bigint;
  /** RBP. */
  rbp: bigint;
  /** R8. */
  r8: bigint;
  /** R9. */
  r9: bigint;
  /** R10. */
  r10: bigint;
  /** R11. */
  r11: bigint;
  /** R12. */
  r12: bigint;
  /** R13. */
  r13: bigint;
  /** R14. */
  r14: bigint;
  /** R15. */
  r15: bigint;
  /** The instruction pointer. */
  rip: bigint;
  /** The flags; bit 1 is always set. */
  rflags: bigint;
}

/** A segment register (`struct kvm_segment`). The one-bit fields are 0 or 1, as in C. */
export interface KvmSegment {
  /** The linear address it starts at. */
  base: bigint;
  /** The last valid offset, in bytes whatever `g` is. */
  limit: number;
  /** The selector. */
  selector: number;
  /** The four type bits of the descriptor. */
  type: number;
  /** Present. */
  present: number;
  /** The privilege level, 0 to 3. */
  dpl: number;
  /** Default operand size: 1 is 32 bits. */
  db: number;
  /** 1 for code and data, 0 for system segments. */
  s: number;
  /** 1 for 64-bit code. */
  l: number;
  /** Granularity of the limit in the descriptor: 1 is pages. */
  g: number;
  /** Available to software. */
  avl: number;
  /** Whether the register holds no segment. */
  unusable: number;
}

/** Where a descriptor table is (`struct kvm_dtable`). */
export interface KvmDtable {
  /** Its linear address. */
  base: bigint;
  /** Its length in bytes, minus 1. */
  limit: number;
}

/** The special registers (`struct kvm_sregs`). */
export interface KvmSregs {
  /** Code segment. */
  cs: KvmSegment;
  /** Data segment. */
  ds: KvmSegment;
  /** Extra segment. */
  es: KvmSegment;
  /** Extra segment with a base in 64-bit mode. */
  fs: KvmSegment;
  /** Extra segment with a base in 64-bit mode. */
  gs: KvmSegment;
  /** Stack segment. */
  ss: KvmSegment;
  /** Task register. */
  tr: KvmSegment;
  /** Local descriptor table. */
  ldt: KvmSegment;
  /** Global descriptor table. */
  gdt: KvmDtable;
  /** Interrupt descriptor table. */
  idt: KvmDtable;
  /** Control register 0: protected mode, paging. */
  cr0: bigint;
  /** Control register 2: address of the last page fault. */
  cr2: bigint;
  /** Control register 3: the page tables. */
  cr3: bigint;
  /** Control register 4: extensions. */
  cr4: bigint;
  /** Control register 8: task priority. */
  cr8: bigint;
  /** The EFER register: long mode. */
  efer: bigint;
  /** The APIC base register. */
  apicBase: bigint;
  /** Pending external interrupts, one bit per vector, four words. */
  interruptBitmap: bigint[];
}

/** The x87 and SSE registers (`struct kvm_fpu`). */
export interface KvmFpu {
  /** ST0 to ST7, 16 bytes each. */
  fpr: Uint8Array;
  /** Control word. */
  fcw: number;
  /** Status word. */
  fsw: number;
  /** Tag word, in the form of FXSAVE. */
  ftwx: number;
  /** The last opcode. */
  lastOpcode: number;
  /** Where the last instruction was. */
  lastIp: bigint;
  /** Where its operand was. */
  lastDp: bigint;
  /** XMM0 to XMM15, 16 bytes each. MXCSR is left out: KVM neither tells nor takes it this way. */
  xmm: Uint8Array;
}

const FPR_LENGTH = 128;
const XMM_LENGTH = 256;

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** Registers from their struct. */
export function decodeRegs(bytes: Uint8Array): KvmRegs {
  const view = viewOf(bytes);
  const regs = {} as KvmRegs; // every field is set below
  for (const name of REG_NAMES) regs[name] = view.getBigUint64(REGS[name], true);
  return regs;
}

/**
 * Those registers that are given, read once and checked.
 *
 * @throws {TypeError | RangeError} If one is no bigint of 64 bits.
 */
export function givenRegs(regs: Partial<KvmRegs>): Partial<KvmRegs> {
  const given: Partial<KvmRegs> = {};
  for (const name of REG_NAMES) {
    const value = regs[name];
    if (value !== undefined) given[name] = unsigned64(value, name);
  }
  return given;
}

/** Writes those registers that are given into their struct. */
export function encodeRegs(bytes: Uint8Array, regs: Partial<KvmRegs>): void {
  const view = viewOf(bytes);
  for (const name of REG_NAMES) {
    const value = regs[name];
    if (value !== undefined) view.setBigUint64(REGS[name], value, true);
  }
}

/** Whether no register is left out. */
export function allRegs(regs: Partial<KvmRegs>): boolean {
  return REG_NAMES.every((name) => regs[name] !== undefined);
}

const SEGMENT_NAMES = ["cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt"] as const;
const SEGMENT_BYTES = ["type", "present", "dpl", "db", "s", "l", "g", "avl", "unusable"] as const;
const DTABLE_NAMES = ["gdt", "idt"] as const;
const INTERRUPT_WORDS = 4;
const CONTROL_NAMES = ["cr0", "cr2", "cr3", "cr4", "cr8", "efer"] as const;

function decodeSegment(view: DataView, at: number): KvmSegment {
  const segment = {
    base: view.getBigUint64(at + SEGMENT.base, true),
    limit: view.getUint32(at + SEGMENT.limit, true),
    selector: view.getUint16(at + SEGMENT.selector, true),
  } as KvmSegment; // the rest is set below
  for (const name of SEGMENT_BYTES) segment[name] = view.getUint8(at + SEGMENT[name]);
  return segment;
}

// Field by field: this is done six times for each vCPU that is started.
function encodeSegment(view: DataView, at: number, segment: KvmSegment, of: string): void {
  const { base, limit, selector, type, present, dpl, db, s, l, g, avl, unusable } = segment;
  view.setBigUint64(at + SEGMENT.base, unsigned64(base, "base", of), true);
  view.setUint32(at + SEGMENT.limit, unsigned(limit, 32, "limit", of), true);
  view.setUint16(at + SEGMENT.selector, unsigned(selector, 16, "selector", of), true);
  view.setUint8(at + SEGMENT.type, unsigned(type, 8, "type", of));
  view.setUint8(at + SEGMENT.present, unsigned(present, 8, "present", of));
  view.setUint8(at + SEGMENT.dpl, unsigned(dpl, 8, "dpl", of));
  view.setUint8(at + SEGMENT.db, unsigned(db, 8, "db", of));
  view.setUint8(at + SEGMENT.s, unsigned(s, 8, "s", of));
  view.setUint8(at + SEGMENT.l, unsigned(l, 8, "l", of));
  view.setUint8(at + SEGMENT.g, unsigned(g, 8, "g", of));
  view.setUint8(at + SEGMENT.avl, unsigned(avl, 8, "avl", of));
  view.setUint8(at + SEGMENT.unusable, unsigned(unusable, 8, "unusable", of));
}

/** Special registers from their struct. */
export function decodeSregs(bytes: Uint8Array): KvmSregs {
  const view = viewOf(bytes);
  const sregs = {
    apicBase: view.getBigUint64(SREGS.apic_base, true),
    interruptBitmap: Array.from(
      { length: INTERRUPT_WORDS },
      (_, i) => view.getBigUint64(SREGS.interrupt_bitmap + 8 * i, true),
    ),
  } as KvmSregs; // the rest is set below
  for (const name of SEGMENT_NAMES) sregs[name] = decodeSegment(view, SREGS[name]);
  for (const name of DTABLE_NAMES) {
    const at = SREGS[name];
    sregs[name] = {
      base: view.getBigUint64(at + DTABLE.base, true),
      limit: view.getUint16(at + DTABLE.limit, true),
    };
  }
  for (const name of CONTROL_NAMES) sregs[name] = view.getBigUint64(SREGS[name], true);
  return sregs;
}

/**
 * Writes those special registers that are given into their struct.
 *
 * @throws {TypeError | RangeError} If one does not fit its field. The struct is used up then.
 */
export function encodeSregs(bytes: Uint8Array, sregs: Partial<KvmSregs>): void {
  const view = viewOf(bytes);
  for (const name of SEGMENT_NAMES) {
    const segment = sregs[name];
    if (segment !== undefined) encodeSegment(view, SREGS[name], segment, name);
  }
  for (const name of DTABLE_NAMES) {
    const table = sregs[name];
    if (table === undefined) continue;
    view.setBigUint64(SREGS[name] + DTABLE.base, unsigned64(table.base, `${name}.base`), true);
    view.setUint16(SREGS[name] + DTABLE.limit, unsigned(table.limit, 16, `${name}.limit`), true);
  }
  for (const name of CONTROL_NAMES) {
    const value = sregs[name];
    if (value !== undefined) view.setBigUint64(SREGS[name], unsigned64(value, name), true);
  }
  const { apicBase, interruptBitmap } = sregs;
  if (apicBase !== undefined) view.setBigUint64(SREGS.apic_base, unsigned64(apicBase, "apicBase"), true);
  if (interruptBitmap === undefined) return;
  for (let i = 0; i < INTERRUPT_WORDS; i++) {
    const word = unsigned64(interruptBitmap[i] ?? 0n, `interruptBitmap[${i}]`);
    view.setBigUint64(SREGS.interrupt_bitmap + 8 * i, word, true);
  }
}

/** Floating-point registers from their struct. */
export function decodeFpu(bytes: Uint8Array): KvmFpu {
  const view = viewOf(bytes);
  return {
    fpr: bytes.slice(FPU.fpr, FPU.fpr + FPR_LENGTH),
    fcw: view.getUint16(FPU.fcw, true),
    fsw: view.getUint16(FPU.fsw, true),
    ftwx: view.getUint8(FPU.ftwx),
    lastOpcode: view.getUint16(FPU.last_opcode, true),
    lastIp: view.getBigUint64(FPU.last_ip, true),
    lastDp: view.getBigUint64(FPU.last_dp, true),
    xmm: bytes.slice(FPU.xmm, FPU.xmm + XMM_LENGTH),
  };
}

/**
 * The struct of floating-point registers.
 *
 * @throws {TypeError | RangeError} If one does not fit its field.
 */
export function encodeFpu(fpu: KvmFpu): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(FPU.size);
  const view = viewOf(bytes);
  bytes.set(exactly(fpu.fpr, FPR_LENGTH, "fpr"), FPU.fpr);
  bytes.set(exactly(fpu.xmm, XMM_LENGTH, "xmm"), FPU.xmm);
  view.setUint16(FPU.fcw, unsigned(fpu.fcw, 16, "fcw"), true);
  view.setUint16(FPU.fsw, unsigned(fpu.fsw, 16, "fsw"), true);
  view.setUint8(FPU.ftwx, unsigned(fpu.ftwx, 8, "ftwx"));
  view.setUint16(FPU.last_opcode, unsigned(fpu.lastOpcode, 16, "lastOpcode"), true);
  view.setBigUint64(FPU.last_ip, unsigned64(fpu.lastIp, "lastIp"), true);
  view.setBigUint64(FPU.last_dp, unsigned64(fpu.lastDp, "lastDp"), true);
  return bytes;
}

function exactly(bytes: Uint8Array, length: number, what: string): Uint8Array {
  if (lengthOf(bytes) !== length) throw new RangeError(`${what} has ${length} bytes, got ${lengthOf(bytes)}`);
  return plainBytes(bytes);
}
