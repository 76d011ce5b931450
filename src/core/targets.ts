/**
 * What the steps of a plan act on, as interfaces. They carry no Deno type, so the pure core can name them, `ffi/` can
 * implement them and tests can fake them.
 *
 * @module
 */

import type { MemoryRange } from "./memory_range.ts";

/** How a partition may access a range. KVM does not enforce `executable`; it is recorded and passed on. */
export interface Access {
  /** Whether the guest may write. */
  readonly writable: boolean;
  /** Whether the guest may execute. */
  readonly executable: boolean;
  /** Whether what the guest writes is to be noted from the first moment on, for `takeDirty`; not where left out. */
  readonly logDirty?: boolean;
}

/**
 * What guests run in, such as a KVM virtual machine. It is told which GPA ranges exist.
 *
 * A method that throws must leave the partition as it was. All ranges are GPAs of the partition, in bytes: the
 * region's GPA plus the offset given to `addPartition`.
 */
export interface Partition {
  /**
   * Makes `range` accessible to the guest, backed by host memory from the address `hva` on. If it throws, `unmapRange` of
   * the same range follows, since it is not known what it did first.
   */
  mapRange(hva: number, range: MemoryRange, access: Access): void;
  /**
   * Takes a range away again: exactly what one `mapRange` mapped. After a call that threw it may be asked to take away what
   * is not there, which should throw and do nothing.
   */
  unmapRange(range: MemoryRange): void;
  /** How many ranges the partition can hold (KVM: memory slots). Unlimited when left out. */
  readonly capacity?: number;
  /** Whether the partition is gone. Steps on a disposed partition do nothing. */
  readonly disposed?: boolean;
  /** A name for messages; "partition" when left out. */
  readonly name?: string;
  /**
   * Brings the memory of `range` in ahead of use. A failure is logged and fails nothing. With `copyOnWrite` it is to be read
   * and not written, since writing would copy all of a file.
   */
  prefetchRange?(range: MemoryRange, copyOnWrite: boolean): void;
  /** Pins the memory of `range` into host memory. A failure fails the request. */
  pinRange?(range: MemoryRange): void;
  /** Undoes `pinRange` for `range`. */
  unpinRange?(range: MemoryRange): void;
  /**
   * Begins or ends noting which pages of `range` the guest writes: exactly one range that `mapRange` mapped, which stays in
   * place. What was written before it begins is not reported, what is written after it returns is. Asking for what is
   * so already is no error.
   */
  setDirtyLog?(range: MemoryRange, on: boolean): void;
  /**
   * Tells `mark` what was written in `range` since it was asked last: the first GPA and the end of each run of pages, in
   * bytes. One whose own log is a bitmap may tell `markBitmap` instead, which takes it whole. A partition without it counts
   * as one that has written all that it may.
   */
  takeDirty?(range: MemoryRange, mark: MarkDirty, markBitmap?: MarkDirtyBitmap): void;
}

/** Is told that `[start, end)` was written, in bytes. */
export type MarkDirty = (start: number, end: number) => void;

/**
 * Is told which pages were written by a bitmap: bit `i` of word `w`, from the lowest on, is the page at
 * `start + 4096 * (32 * w + i)`. It keeps no reference to `words`, and leaves out what it has not asked for.
 */
export type MarkDirtyBitmap = (start: number, words: Uint32Array) => void;

/** How the host should treat the memory of one mapping. */
export interface MemoryPolicy {
  /** The NUMA node the pages come from (mbind, strict). Left out: the process's own policy. */
  readonly hostNumaNode?: number;
  /** Whether transparent huge pages are asked for (madvise). Left out: the system's own setting. */
  readonly transparentHugepages?: boolean;
  /** Whether core dumps of the process hold it; with `false`, MADV_DONTDUMP. Left out: they do. */
  readonly coreDump?: boolean;
  /** Whether a child process made by fork gets it; with `false`, MADV_DONTFORK. Left out: it does. */
  readonly fork?: boolean;
  /**
   * What /proc/self/smaps calls private memory, `[anon:NAME]`, where the kernel has names (PR_SET_VMA_ANON_NAME). At
   * most 79 printable ASCII characters, none of them `[`, `]`, `\\`, `$` or a backtick; others are left out.
   */
  readonly name?: string;
}

/** Bytes of memory: those of `buffer` from `offset` on. */
export interface HostBytes {
  /** What they are in. */
  readonly buffer: ArrayBuffer;
  /** Where in it they begin. */
  readonly offset: number;
}

/** Memory that is in no file: compared by identity. All its offsets are in `[start, end)`, in bytes. */
export interface HostMemory {
  /** The first offset. */
  readonly start: number;
  /** One past the last. */
  readonly end: number;
}

/**
 * The reserved host address range that guest memory is mapped into. GPA x lives at `base + x`.
 *
 * The arguments have been checked by the core: page-aligned, inside the reservation, the file long enough and of the
 * right mode. A method that throws may have done its work or not; the transaction restores either.
 */
export interface VaTarget<M> {
  /** The host address of GPA 0. */
  readonly base: number;
  /** The length of the reservation in bytes. */
  readonly length: number;
  /**
   * Replaces `[start, end)` by a part of `mappable` from `fileOffset` on, or by fresh private memory for `null`. With
   * `copyOnWrite`, what is written is the mapping's own and the file stays as it is.
   */
  map(
    start: number,
    end: number,
    mappable: M | null,
    fileOffset: number,
    writable: boolean,
    policy: MemoryPolicy | undefined,
    copyOnWrite: boolean,
  ): void;
  /** Changes the protection of what is mapped at `[start, end)`. */
  protect(start: number, end: number, writable: boolean): void;
  /** Gives `[start, end)` back to the reservation: no access, no backing. */
  remove(start: number, end: number): void;
  /**
   * Takes memory that is in no file from `[start, end)` to addresses of the target's own: those offsets of `memory` from
   * `offset` on. What was taken there before stays there. Something else is mapped at the range next.
   */
  park(start: number, end: number, memory: HostMemory, offset: number): void;
  /**
   * Brings back to `[start, end)` what is parked of `memory` from `offset` on, in place of what is there; what is not
   * parked is there already. All of it may be written afterwards, or none.
   */
  restore(start: number, end: number, memory: HostMemory, offset: number, writable: boolean): void;
  /** The host address at which offset `offset` of `memory` is parked. */
  parkedAt?(memory: HostMemory, offset: number): number | undefined;
  /** Gives up the parked memory at the offsets `[start, end)` of `memory`. */
  discard(memory: HostMemory, start: number, end: number): void;
  /** How many more kernel mappings (VMAs) may be made; no limit when left out. */
  readonly spareMappings?: number;
  /** Is called before a request is undone: makes kernel mappings available for it, until the result is disposed. */
  makeRoom?(): Disposable;
  /** Is told after each request how many kernel mappings the reservation consists of. */
  noteMappings?(count: number): void;
  /** Gives the pages of private memory at `[start, end)` back: it reads as zeros afterwards. */
  empty?(start: number, end: number): void;
  /** Brings the memory of `[start, end)` in ahead of use, for stores where it is writable. */
  populate?(start: number, end: number, writable: boolean): void;
  /** Whether nobody but those who retain it uses it any more: it goes as a whole with the last of them. */
  readonly disposed?: boolean;
  /** Keeps the addresses reserved until the result is disposed. */
  retain?(): Disposable;
  /** Where there is no memory at host addresses (no `view`): the bytes from `gpa` on, as far as its mapping reaches. */
  bytesAt?(gpa: number): HostBytes | undefined;
  /** Says that nothing else may ever get the addresses of `[start, end)`, also when the reservation is gone. */
  keepReserved?(start: number, end: number): void;
  /** The bytes of `[start, end)` themselves. Without it, guest memory cannot be accessed through the manager. */
  view?(start: number, end: number): ArrayBuffer;
}
