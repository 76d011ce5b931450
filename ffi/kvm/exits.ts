/**
 * Why a vCPU came out of the guest.
 *
 * Why it is safe: types only.
 *
 * @module
 */

/** The guest accessed an I/O port. */
export interface KvmIoExit {
  /** Tells the exits apart. */
  readonly kind: "io";
  /** `"out"`: the guest wrote, and `data` holds what. `"in"`: it reads, and the VMM fills `data`. */
  readonly direction: "in" | "out";
  /** The port number. */
  readonly port: number;
  /** The width of one access in bytes: 1, 2 or 4. */
  readonly size: number;
  /** How many accesses in a row; more than 1 for string instructions. */
  readonly count: number;
  /** `size * count` bytes shared with the vCPU. */
  readonly data: Uint8Array<ArrayBuffer>;
  /**
   * The first access of `data` as a number of `size` bytes, little-endian: what the guest wrote, or, set, what it reads.
   * Setting it gives every access of a string instruction that value.
   *
   * @throws {RangeError} When it is set to what is no integer of `size` bytes without a sign.
   */
  value: number;
}

/** The guest accessed an address without memory, or wrote read-only memory. */
export interface KvmMmioExit {
  /** Tells the exits apart. */
  readonly kind: "mmio";
  /** The guest-physical address of the access. */
  readonly gpa: number;
  /** `true`: the guest wrote, and `data` holds what. `false`: it reads, and the VMM fills `data`. */
  readonly isWrite: boolean;
  /** The width of the access in bytes, 1 to 8. */
  readonly length: number;
  /** `length` bytes shared with the vCPU. */
  readonly data: Uint8Array<ArrayBuffer>;
  /**
   * `data` as one number, little-endian: what the guest wrote, or, set, what it reads. A number for up to 4 bytes and a
   * bigint for more; either can be set.
   *
   * @throws {RangeError} When it is set to what is no integer of `length` bytes without a sign.
   */
  value: number | bigint;
}

/** The guest halted. Not seen with an in-kernel interrupt controller, where KVM waits by itself. */
export interface KvmHltExit {
  /** Tells the exits apart. */
  readonly kind: "hlt";
}

/** The guest shut down, as on a triple fault. */
export interface KvmShutdownExit {
  /** Tells the exits apart. */
  readonly kind: "shutdown";
}

/** A signal or `immediateExit` ended the run. Nothing happened in the guest that needs an answer. */
export interface KvmInterruptedExit {
  /** Tells the exits apart. */
  readonly kind: "interrupted";
}

/** KVM could not go on, most often because its instruction emulator met something it does not know. */
export interface KvmInternalErrorExit {
  /** Tells the exits apart. */
  readonly kind: "internal-error";
  /** `KVM_INTERNAL_ERROR_*`: 1 is a failed emulation. */
  readonly suberror: number;
  /** What KVM says about it; the meaning depends on `suberror`. */
  readonly data: readonly bigint[];
}

/** The processor refused to enter the guest: the vCPU's state is invalid. */
export interface KvmFailEntryExit {
  /** Tells the exits apart. */
  readonly kind: "fail-entry";
  /** The hardware's reason. */
  readonly reason: bigint;
}

/** The guest can take an interrupt now; asked for by `requestInterruptWindow`. */
export interface KvmIrqWindowOpenExit {
  /** Tells the exits apart. */
  readonly kind: "irq-window-open";
}

/** The guest asked for something of the whole machine, such as a reset. */
export interface KvmSystemEventExit {
  /** Tells the exits apart. */
  readonly kind: "system-event";
  /** `KVM_SYSTEM_EVENT_*`: 1 shutdown, 2 reset, 3 crash. */
  readonly type: number;
  /** What comes with it. */
  readonly data: readonly bigint[];
}

/**
 * The guest touched memory of a slot whose host address has no accessible memory behind it: a hole in a region with
 * `holes: "fault"`, or a page past the end of its file. Running again retries the access.
 *
 * KVMs differ here. Code that runs natively comes out with this exit on all of them, in most cases without an address. An
 * instruction that KVM emulates (real mode on some hosts) may come out as an MMIO exit instead, and so may its store to
 * memory that the slot has writable and the host has not. A vCPU that has lost the memory it runs in ends with a shutdown
 * or an internal error, or not by itself: kick it.
 */
export interface KvmFaultExit {
  /** Tells the exits apart. */
  readonly kind: "fault";
  /** The guest-physical address, where KVM tells it (`KvmCap.MEMORY_FAULT_INFO`). */
  readonly gpa: number | undefined;
}

/** The ring of dirty pages has to be harvested before the vCPU can go on. */
export interface KvmDirtyRingFullExit {
  /** Tells the exits apart. */
  readonly kind: "dirty-ring-full";
}

/** An exit that this package has no type for. */
export interface KvmUnknownExit {
  /** Tells the exits apart. */
  readonly kind: "unknown";
  /** `KVM_EXIT_*`. */
  readonly reason: number;
}

/**
 * Why `KvmVcpu.run` returned, told apart by `kind`.
 *
 * To keep exits as cheap as in C, the object and its `data` are used again by the next `run`: copy what has to be kept.
 */
export type KvmExit =
  | KvmIoExit
  | KvmMmioExit
  | KvmHltExit
  | KvmShutdownExit
  | KvmInterruptedExit
  | KvmInternalErrorExit
  | KvmFailEntryExit
  | KvmIrqWindowOpenExit
  | KvmSystemEventExit
  | KvmFaultExit
  | KvmDirtyRingFullExit
  | KvmUnknownExit;
