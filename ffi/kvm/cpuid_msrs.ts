/**
 * CPUID leaves and model-specific registers, which KVM takes as lists: a count, then entries.
 *
 * Why it is safe: it reads and writes buffers of its own, through `DataView`, which checks bounds.
 *
 * @module
 */

import { CPUID2, CPUID_ENTRY2, MSR_ENTRY, MSRS } from "./layout.ts";

/** A model-specific register. */
export interface KvmMsr {
  /** Its number. */
  index: number;
  /** Its value. */
  data: bigint;
}

/** A CPUID leaf (`struct kvm_cpuid_entry2`). */
export interface KvmCpuidEntry {
  /** The leaf: EAX before the instruction. */
  function: number;
  /** The subleaf: ECX before the instruction. */
  index: number;
  /** `KvmCpuidFlag` bits: whether the subleaf counts. */
  flags: number;
  /** EAX after it. */
  eax: number;
  /** EBX after it. */
  ebx: number;
  /** ECX after it. */
  ecx: number;
  /** EDX after it. */
  edx: number;
}

/** The struct of MSRs: count and entries. */
export function encodeMsrs(msrs: readonly KvmMsr[]): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(MSRS.size + msrs.length * MSR_ENTRY.size);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  view.setUint32(MSRS.nmsrs, msrs.length, true);
  msrs.forEach(({ index, data }, i) => {
    const at = MSRS.entries + i * MSR_ENTRY.size;
    view.setUint32(at + MSR_ENTRY.index, index, true);
    view.setBigUint64(at + MSR_ENTRY.data, data, true);
  });
  return bytes;
}

/** The first `count` MSRs of their struct. */
export function decodeMsrs(bytes: Uint8Array, count: number): KvmMsr[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return Array.from({ length: count }, (_, i) => {
    const at = MSRS.entries + i * MSR_ENTRY.size;
    return { index: view.getUint32(at + MSR_ENTRY.index, true), data: view.getBigUint64(at + MSR_ENTRY.data, true) };
  });
}

const CPUID_FIELDS = ["function", "index", "flags", "eax", "ebx", "ecx", "edx"] as const;

/** A struct of CPUID leaves with room for `count` of them. */
export function emptyCpuid(count: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(CPUID2.size + count * CPUID_ENTRY2.size);
  new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength).setUint32(CPUID2.nent, count, true);
  return bytes;
}

/** The struct of CPUID leaves. */
export function encodeCpuid(entries: readonly KvmCpuidEntry[]): Uint8Array<ArrayBuffer> {
  const bytes = emptyCpuid(entries.length);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  entries.forEach((entry, i) => {
    const at = CPUID2.entries + i * CPUID_ENTRY2.size;
    for (const name of CPUID_FIELDS) view.setUint32(at + CPUID_ENTRY2[name], entry[name], true);
  });
  return bytes;
}

/** The CPUID leaves of their struct. */
export function decodeCpuid(bytes: Uint8Array): KvmCpuidEntry[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return Array.from({ length: view.getUint32(CPUID2.nent, true) }, (_, i) => {
    const at = CPUID2.entries + i * CPUID_ENTRY2.size;
    const entry = {} as KvmCpuidEntry; // every field is set below
    for (const name of CPUID_FIELDS) entry[name] = view.getUint32(at + CPUID_ENTRY2[name], true);
    return entry;
  });
}
