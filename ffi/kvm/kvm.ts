/**
 * /dev/kvm.
 *
 * Why it is safe: the descriptor is this object's own and is handed to no one; its requests take numbers, or a buffer
 * that begins with the number of entries it has room for.
 *
 * @module
 */

import { DisposedError, MembackingError } from "../../src/core/errors.ts";
import { cString, libc } from "../os/libc.ts";
import { O_CLOEXEC, O_NONBLOCK, O_RDWR } from "../os/mman.ts";
import { KVM_API_VERSION, KVM_X86_QUIRK_SLOT_ZAP_ALL, KvmCap } from "./constants.ts";
import type { KvmCpuidEntry } from "./cpuid_msrs.ts";
import { hostFacts, supportedCpuid } from "./host_facts.ts";
import { ioctlValue } from "./ioctl.ts";
import { DirtyRings } from "./dirty_ring.ts";
import type { DirtySource } from "./dirty_source.ts";
import { type KvmVm, ownVm } from "./kvm_vm.ts";
import { unsigned } from "./numbers.ts";
import { DEVICE, openError } from "./open_error.ts";
import { checkRingEntries } from "./ring_reader.ts";
import { enableCap } from "./vm_requests.ts";

/** How a VM is made. */
export interface CreateVmOptions {
  /** Its name in messages, "KVM VM" when left out. */
  name?: string;
  /**
   * Whether deleting a memory slot makes KVM drop everything it has mapped for the guest, as it does by itself; `true`
   * when left out. With `false`, and a KVM that can (`KvmVm.zapsAllOnSlotDelete` says so), only the pages of that slot
   * go. With 512 MiB in use, deleting an unrelated slot was measured at 6.3 ms plus 94 ms of faults until everything
   * was back, against 0.18 ms.
   */
  zapAllOnSlotDelete?: boolean;
  /**
   * How KVM notes what the guest writes once somebody tracks it. `"bitmap"`, when left out: a bit for each page of each
   * slot, found at a cost that grows a little with memory. `"ring"`: a ring of pages for each vCPU, of which only what was
   * written costs; a vCPU whose ring is full stops until it has been harvested, which `run` does by itself.
   */
  dirtyLog?: "bitmap" | "ring";
  /** How many pages a ring holds, a power of two; as many as KVM allows, up to 65,536, when left out. */
  dirtyRingEntries?: number;
}

/**
 * The Kernel-based Virtual Machine of the host.
 *
 * @example Usage
 * ```ts ignore
 * import { GuestMemoryManager, MemoryRange } from "membacking";
 * import { Kvm } from "membacking/kvm";
 *
 * using guest = GuestMemoryManager.create({ maxAddress: 2 ** 32, ram: [{ ranges: [MemoryRange.of(0, 2 ** 24)] }] });
 * using kvm = Kvm.open();
 * using vm = kvm.createVm();
 * using _memory = guest.attachPartition(vm);
 * using vcpu = vm.createVcpu(0);
 *
 * // Real-mode code at 0x1000: mov al, 42; out 0x10, al; hlt
 * guest.memory.write(0x1000, new Uint8Array([0xb0, 42, 0xe6, 0x10, 0xf4]));
 * const { cs } = vcpu.getSregs();
 * vcpu.setSregs({ cs: { ...cs, base: 0n, selector: 0 } });
 * vcpu.setRegs({ rip: 0x1000n });
 * const exit = vcpu.run();
 * console.assert(exit.kind === "io" && exit.port === 0x10 && exit.value === 42);
 * ```
 */
export class Kvm implements Disposable {
  #facts: { readonly capacity: number; readonly quirks: number } | undefined;
  #fd: number;
  #disposed = false;

  private constructor(fd: number) {
    this.#fd = fd;
  }

  /**
   * Opens KVM. No Deno permission is needed besides `--allow-ffi`.
   *
   * @throws {OsError} If the device is missing (ENOENT), not permitted (EACCES) or not KVM (ENOTTY). The message says
   * what to do.
   * @throws {MembackingError} If it is a KVM of another version.
   */
  static open(path: string = DEVICE): Kvm {
    const { sys, errno } = libc();
    // Opening never waits; O_NONBLOCK is for a path that names something else, such as a pipe.
    const fd = sys.open(cString(path), O_RDWR | O_CLOEXEC | O_NONBLOCK, 0);
    if (fd === -1) throw openError(path, errno[0] ?? 0);
    try {
      const version = ioctlValue(fd, "KVM_GET_API_VERSION", 0, () => `"${path}" is not KVM`);
      if (version !== KVM_API_VERSION) {
        throw new MembackingError(`"${path}" is KVM version ${version}, and this package needs ${KVM_API_VERSION}`);
      }
    } catch (error) {
      sys.close(fd);
      throw error;
    }
    return new Kvm(fd);
  }

  /** What KVM says about a `KvmCap`: 0 if it does not have it, otherwise 1, a number or a set of flags. */
  checkExtension(cap: number): number {
    return ioctlValue(this.#checked(), "KVM_CHECK_EXTENSION", unsigned(cap, 32, "Capability"));
  }

  /**
   * Makes a virtual machine without memory and without vCPUs. It does not depend on this object any more.
   *
   * @throws {OsError} If the kernel has no room for it.
   * @throws {MembackingError} If a dirty ring is asked for and this KVM has none; the message says what is missing.
   * @throws {RangeError} If `dirtyRingEntries` is no power of two.
   */
  createVm(options: CreateVmOptions = {}): KvmVm {
    const { name = "KVM VM", zapAllOnSlotDelete = true, dirtyLog = "bitmap", dirtyRingEntries } = options;
    if (dirtyLog !== "bitmap" && dirtyLog !== "ring") {
      throw new TypeError(`dirtyLog must be "bitmap" or "ring", got ${JSON.stringify(dirtyLog)}`);
    }
    if (dirtyRingEntries !== undefined) checkRingEntries(dirtyRingEntries);
    const { addressBits } = hostFacts(this.#checked());
    // What KVM can do does not change while it is open.
    const { capacity, quirks } = this.#facts ??= {
      capacity: this.checkExtension(KvmCap.NR_MEMSLOTS),
      quirks: this.checkExtension(KvmCap.DISABLE_QUIRKS2),
    };
    const fd = ioctlValue(this.#fd, "KVM_CREATE_VM", 0);
    let zapsAllOnSlotDelete = true;
    let dirty: DirtySource | undefined;
    try {
      if (dirtyLog === "ring") dirty = DirtyRings.enable(fd, dirtyRingEntries);
      if (!zapAllOnSlotDelete && (quirks & KVM_X86_QUIRK_SLOT_ZAP_ALL) !== 0) {
        enableCap(fd, KvmCap.DISABLE_QUIRKS2, [BigInt(KVM_X86_QUIRK_SLOT_ZAP_ALL)]);
        zapsAllOnSlotDelete = false;
      }
    } catch (error) {
      libc().sys.close(fd);
      throw error;
    }
    return ownVm(fd, {
      name,
      capacity,
      addressBits,
      zapsAllOnSlotDelete,
      ...(dirty === undefined ? {} : { dirty }),
    });
  }

  /**
   * The CPUID leaves a guest can be given here, for `KvmVcpu.setCpuid2`. What numbers the processor (APIC ID, core and
   * node) is 0 in them: with several vCPUs, each wants its own there.
   */
  getSupportedCpuid(): KvmCpuidEntry[] {
    return supportedCpuid(this.#checked());
  }

  /** Closes it. Its virtual machines go on. */
  [Symbol.dispose](): void {
    if (this.#disposed) return;
    this.#disposed = true;
    libc().sys.close(this.#fd);
  }

  #checked(): number {
    if (this.#disposed) throw new DisposedError("Kvm");
    return this.#fd;
  }
}
