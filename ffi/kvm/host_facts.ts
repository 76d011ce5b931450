/**
 * What is the same for every virtual machine of this host, asked once per thread.
 *
 * Why it is safe: it makes requests of /dev/kvm that read, into buffers that say how much they hold.
 *
 * @module
 */

import { MembackingError } from "../../src/core/errors.ts";
import { cString, libc } from "../os/libc.ts";
import { O_CLOEXEC, O_RDWR } from "../os/mman.ts";
import { OsError } from "../os/os_error.ts";
import { outcome, uninterrupted } from "../os/uninterrupted.ts";
import { KvmCap } from "./constants.ts";
import { decodeCpuid, emptyCpuid, type KvmCpuidEntry, MAX_ENTRIES } from "./cpuid_msrs.ts";
import { ioctl, ioctlValue } from "./ioctl.ts";
import { MSR_LIST, XSAVE } from "./layout.ts";
import { DEVICE, openError } from "./open_error.ts";

/** What KVM can do on this host. */
export interface HostFacts {
  /** How many bits a guest-physical address has. */
  readonly addressBits: number;
  /** The model-specific registers that belong to the state of a vCPU. */
  readonly msrs: readonly number[];
  /** The length of `struct kvm_xsave` here, in bytes. */
  readonly xsaveSize: number;
  /** Whether that is asked for by `KVM_GET_XSAVE2`. */
  readonly hasXsave2: boolean;
}

/** The CPUID leaf that says how many bits an address has: EAX, bits 0 to 7. */
const ADDRESS_SIZES = 0x8000_0008;
const DEFAULT_ADDRESS_BITS = 36;
/**
 * Where CPUID numbers the processor that executes it: its APIC IDs, its core and its node. KVM hands on those of the
 * processor that it was asked on, in some versions, so that they would differ from one question to the next.
 */
const NUMBERS = [
  { function: 1, field: "ebx", mask: 0xff << 24 },
  { function: 0xb, field: "edx", mask: -1 },
  { function: 0x1f, field: "edx", mask: -1 },
  { function: 0x8000_001e, field: "eax", mask: -1 },
  { function: 0x8000_001e, field: "ebx", mask: 0xff },
  { function: 0x8000_001e, field: "ecx", mask: 0xff },
] as const;
/** More MSRs than any KVM lists. */
const MSR_ROOM = 4096;

let facts: HostFacts | undefined;

/** The facts, asked of `kvm`, a descriptor of /dev/kvm, if they are not known yet. */
export function hostFacts(kvm: number): HostFacts {
  return facts ??= ask(kvm);
}

/**
 * The facts in a thread that may not have opened KVM.
 *
 * @throws {OsError} If they are not known and /dev/kvm cannot be opened.
 */
export function knownFacts(): HostFacts {
  if (facts !== undefined) return facts;
  const { sys, errno } = libc();
  const path = cString(DEVICE);
  let kvm: number;
  try {
    kvm = uninterrupted("open", () => outcome(sys.open(path, O_RDWR | O_CLOEXEC, 0), errno[0]));
  } catch (error) {
    throw error instanceof OsError ? openError(DEVICE, error.errno) : error;
  }
  try {
    return hostFacts(kvm);
  } finally {
    sys.close(kvm);
  }
}

/** The CPUID leaves a guest can be given, with no processor's own numbers in them. */
export function supportedCpuid(kvm: number): KvmCpuidEntry[] {
  const struct = emptyCpuid(MAX_ENTRIES.cpuid);
  ioctl(kvm, "KVM_GET_SUPPORTED_CPUID", struct);
  const leaves = decodeCpuid(struct);
  for (const leaf of leaves) {
    for (const { field, mask } of NUMBERS.filter((number) => number.function === leaf.function)) {
      leaf[field] = (leaf[field] & ~mask) >>> 0;
    }
  }
  return leaves;
}

function ask(kvm: number): HostFacts {
  const sizes = supportedCpuid(kvm).find((leaf) => leaf.function === ADDRESS_SIZES);
  const xsaveSize = ioctlValue(kvm, "KVM_CHECK_EXTENSION", KvmCap.XSAVE2);
  return {
    addressBits: sizes === undefined ? DEFAULT_ADDRESS_BITS : sizes.eax & 0xff,
    msrs: listMsrs(kvm),
    xsaveSize: Math.max(XSAVE.size, xsaveSize),
    hasXsave2: xsaveSize > 0,
  };
}

function listMsrs(kvm: number): number[] {
  const struct = new Uint8Array(MSR_LIST.size + 4 * MSR_ROOM);
  const view = new DataView(struct.buffer);
  view.setUint32(MSR_LIST.nmsrs, MSR_ROOM, true);
  ioctl(kvm, "KVM_GET_MSR_INDEX_LIST", struct);
  const count = view.getUint32(MSR_LIST.nmsrs, true);
  if (count > MSR_ROOM) throw new MembackingError(`KVM lists ${count} MSRs`);
  return Array.from({ length: count }, (_, i) => view.getUint32(MSR_LIST.indices + 4 * i, true));
}
