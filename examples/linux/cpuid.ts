/**
 * What a processor says of itself.
 *
 * @module
 */

import type { KvmCpuidEntry } from "membacking/kvm";

const HYPERVISOR = 1 << 31;
const TSC_DEADLINE = 1 << 24;

/** What KVM can give a guest, made into processor `id` of `count` in one package. */
export function cpuidOf(supported: readonly KvmCpuidEntry[], id: number, count: number): KvmCpuidEntry[] {
  return supported.map((entry) => {
    switch (entry.function) {
      case 1:
        return {
          ...entry,
          ebx: (entry.ebx & 0xffff | count << 16 | id << 24) >>> 0,
          // KVM leaves out that this is a virtual machine, and that its APIC has a timer that follows the clock.
          ecx: (entry.ecx | HYPERVISOR | TSC_DEADLINE) >>> 0,
          edx: (entry.edx | (count > 1 ? 1 << 28 : 0)) >>> 0,
        };
      case 0xb:
        return { ...entry, edx: id };
      case 0x8000_0008:
        return { ...entry, ecx: (entry.ecx & ~0xffff | count - 1) >>> 0 };
      case 0x8000_001e:
        return { ...entry, eax: id, ebx: (entry.ebx & ~0xff | id) >>> 0 };
      default:
        return entry;
    }
  });
}
