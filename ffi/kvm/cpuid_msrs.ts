/**
 * CPUID leaves and model-specific registers, which KVM takes as lists: a count, then entries.
 *
 * Why it is safe: it reads and writes buffers of its own, through `DataView`, which checks bounds. A list of the
 * caller's is copied before anything is sized by it, so that the count in the struct is that of the entries there are.
 *
 * @module
 */

import { copyOf, unsigned, unsigned64 } from "./numbers.ts";
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

/** The most CPUID leaves KVM handles, and the most model-specific registers it takes at a time. */
export const MAX_ENTRIES = { cpuid: 256, msrs: 255 } as const;

/** MSRs of their own, with every number checked. */
export function checkMsrs(msrs: readonly KvmMsr[]): KvmMsr[] {
  return copyOf(msrs, MAX_ENTRIES.msrs, "MSRs").map(({ index, data }) => ({
    index: unsigned(index, 32, "MSR index"),
    data: unsigned64(data, "MSR value"),
  }));
}

/** Numbers of MSRs as MSRs to be read. */
export function msrsToRead(indices: readonly number[]): KvmMsr[] {
  return copyOf(indices, MAX_ENTRIES.msrs, "MSR indices").map((index) => ({
    index: unsigned(index, 32, "MSR index"),
    data: 0n,
  }));
}

/** The struct of MSRs that have been checked: count and entries. */
export function encodeMsrs(msrs: readonly KvmMsr[]): Uint8Array<ArrayBuffer> {
  const count = msrs.length;
  const bytes = new Uint8Array(MSRS.size + count * MSR_ENTRY.size);
  const view = new DataView(bytes.buffer);
  view.setUint32(MSRS.nmsrs, count, true);
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

/** CPUID leaves of their own, with every number checked. */
export function checkCpuid(entries: readonly KvmCpuidEntry[]): KvmCpuidEntry[] {
  return copyOf(entries, MAX_ENTRIES.cpuid, "CPUID leaves").map((entry) => {
    const copy = {} as KvmCpuidEntry; // every field is set below
    for (const name of CPUID_FIELDS) copy[name] = unsigned(entry[name], 32, `CPUID ${name}`);
    return copy;
  });
}

/** The struct of CPUID leaves that have been checked. */
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
