/**
 * The host side of guest memory: a reserved address range, and the mappings inside it.
 *
 * Why it is safe: every call here that replaces something names a range inside the reservation, which is checked, and
 * uses MAP_FIXED (or mprotect), never munmap: an address that was given up could be taken by V8 or libc, and would then
 * belong to the guest. Where a failed call has left a hole nevertheless, the hole is plugged before anything else runs.
 * Nothing is ever mapped executable: guests do not need it, since they run from their own page tables.
 *
 * @module
 */

import { DisposedError } from "../../src/core/errors.ts";
import { hex } from "../../src/core/hex.ts";
import { checkNumber } from "../../src/core/memory_range.ts";
import type { HostMemory, MemoryPolicy, VaTarget } from "../../src/core/targets.ts";
import { adviseHost } from "../os/advise.ts";
import { FileMapping, RESERVE_FLAGS } from "../os/address_space.ts";
import { libc } from "../os/libc.ts";
import { noteNoEffect, plugHole } from "./failures.ts";
import { makeRoom, spareMappings } from "./mapping_budget.ts";
import { fileOf, type Mappable } from "../files/mappable.ts";
import { applyPolicy } from "../files/memory_policy.ts";
import {
  MADV_DONTNEED,
  MADV_POPULATE_READ,
  MADV_POPULATE_WRITE,
  MAP_FIXED,
  MAP_NORESERVE,
  MAP_PRIVATE,
  MAP_SHARED,
  MREMAP_FIXED,
  MREMAP_MAYMOVE,
  PROT_NONE,
  PROT_READ,
  PROT_WRITE,
} from "../os/mman.ts";
import { OsError } from "../os/os_error.ts";
import { lockPages, unlockPages } from "./page_locks.ts";
import { Reservation } from "./reservation.ts";
import { hostView } from "../os/view.ts";
import { word64 } from "../os/word64.ts";

/** The size of an x86-64 large page: reservations are aligned to it, so that THP and hugetlb can be used in them. */
const LARGE_PAGE = 2 ** 21;

const READ_WRITE = PROT_READ | PROT_WRITE;
const READ_ONLY = PROT_READ;
const SHARED_HERE = MAP_SHARED | MAP_FIXED;
const COPY_HERE = MAP_PRIVATE | MAP_NORESERVE | MAP_FIXED;
const NOTHING_HERE = RESERVE_FLAGS | MAP_FIXED;

/**
 * A reserved range of host addresses and the mappings in it, GPA x at `base + x`: what a region manager acts on. Unsafe
 * in the hands of others, who get a `VaMapper`.
 */
export class HostAddresses implements VaTarget<Mappable>, Disposable {
  /** The host address of GPA 0. */
  readonly base: number;
  /** The length of the reservation in bytes. */
  readonly length: number;
  #reservation: Reservation;
  #disposed = false;

  private constructor(reservation: Reservation) {
    this.#reservation = reservation;
    this.base = reservation.base;
    this.length = reservation.length;
    // Whoever follows the memory map goes by these numbers.
    Object.freeze(this);
  }

  /** Reserves `length` bytes of host addresses, as `VaMapper.reserve` describes. */
  static reserve(length: number, options: { alignment?: number } = {}): HostAddresses {
    const { alignment = LARGE_PAGE } = options;
    checkNumber(alignment, "Alignment");
    // What is aligned to more is aligned to less.
    const isSmall = alignment >= 1 && alignment < LARGE_PAGE && Number.isInteger(Math.log2(alignment));
    return new HostAddresses(new Reservation(length, isSmall ? LARGE_PAGE : alignment));
  }

  /** Whether it has been disposed. Its holders go on using it. */
  get disposed(): boolean {
    return this.#disposed;
  }

  /**
   * Keeps the addresses reserved until the result is disposed, beyond the life of this handle.
   *
   * @throws {DisposedError} If this handle has been disposed.
   */
  retain(): Disposable {
    if (this.#disposed) throw new DisposedError("VaMapper");
    const reservation = this.#reservation.retain();
    let held = true;
    return {
      [Symbol.dispose]() {
        if (held) reservation.release();
        held = false;
      },
    };
  }

  /**
   * Replaces `[start, end)` by a part of `mappable` from `fileOffset` on, or by fresh private memory for `null`. With
   * `copyOnWrite`, what is written is the mapping's own and the file, which must stay as long as it is, stays as it is.
   *
   * @throws {OsError} If the kernel refuses; the range may then hold the old mapping, the new one or nothing.
   * @throws {ReservationLostError} If the range is lost for good.
   */
  map(
    start: number,
    end: number,
    mappable: Mappable | null,
    fileOffset: number,
    writable: boolean,
    policy: MemoryPolicy | undefined,
    copyOnWrite: boolean = false,
  ): void {
    this.#check(start, end);
    const prot = writable ? READ_WRITE : READ_ONLY;
    let flags = NOTHING_HERE;
    let fd = -1;
    if (mappable !== null) {
      const file = fileOf(mappable);
      flags = copyOnWrite ? COPY_HERE : SHARED_HERE;
      if (file.mayFailLate) return this.#mapAside(start, end, mappable, fileOffset, prot, policy, flags);
      fd = file.fd;
    }
    checkNumber(fileOffset, "File offset");
    const { sys, errno } = libc();
    const at = word64(this.base + start);
    const length = word64(end - start);
    // SAFETY: inside the reservation, as checked above.
    const failed = sys.mmap(at, length, prot, flags, fd, word64(fileOffset)) === -1 ? errno[0] : undefined;
    if (failed !== undefined) this.#fail("mmap", failed, start, end);
    if (policy !== undefined) applyPolicy(this.base + start, end - start, policy);
  }

  /** As `map`, but made at other addresses first, so that what can fail does so while the old mapping is still there. */
  #mapAside(
    start: number,
    end: number,
    mappable: Mappable,
    fileOffset: number,
    prot: number,
    policy: MemoryPolicy | undefined,
    flags: number,
  ): void {
    const { pageSize } = mappable;
    const length = end - start;
    if ((this.base + start) % pageSize !== 0 || length % pageSize !== 0 || fileOffset % pageSize !== 0) {
      // The kernel would round the length up, and replace what lies behind the range.
      throw new RangeError(
        `${hex(length)} bytes at ${hex(start)} from file offset ${hex(fileOffset)} are not whole pages of ` +
          `${hex(pageSize)}; align the reservation, the range and the offset to that`,
      );
    }
    using aside = mapAlone(mappable, fileOffset, length, prot, policy, flags);
    const { sys, errno } = libc();
    const size = BigInt(length);
    const to = BigInt(this.base + start);
    // SAFETY: from addresses of our own, into the reservation, as checked by the caller.
    const failed = sys.mremap(BigInt(aside.address), size, size, MREMAP_MAYMOVE | MREMAP_FIXED, to) === -1
      ? errno[0]
      : undefined;
    if (failed !== undefined) this.#fail("mremap", failed, start, end);
    aside.forget();
  }

  /**
   * Changes the protection of what is mapped at `[start, end)`, all of which has the other one.
   *
   * @throws {OsError} If the kernel refuses, as it does where a file is not open for writing (EACCES).
   */
  protect(start: number, end: number, writable: boolean): void {
    this.#check(start, end);
    const { sys, errno } = libc();
    const at = word64(this.base + start);
    const size = word64(end - start);
    const [prot, before] = writable ? [READ_WRITE, READ_ONLY] : [READ_ONLY, READ_WRITE];
    // SAFETY: inside the reservation.
    const failed = sys.mprotect(at, size, prot) === -1 ? errno[0] : undefined;
    if (failed === undefined) return;
    const error = new OsError("mprotect", failed, `guest memory at ${hex(start)}-${hex(end)}`);
    // It may have got part of the way, and going back needs no mapping more than there are.
    if (sys.mprotect(at, size, before) === 0) noteNoEffect(error);
    throw error;
  }

  /**
   * Gives `[start, end)` back to the reservation: no access, no memory.
   *
   * @throws {OsError} If the kernel refuses, which it does where this would need more mappings than it allows.
   * @throws {ReservationLostError} If the range is lost for good.
   */
  remove(start: number, end: number): void {
    this.#check(start, end);
    const { sys, errno } = libc();
    const at = word64(this.base + start);
    const length = word64(end - start);
    // SAFETY: inside the reservation.
    const failed = sys.mmap(at, length, PROT_NONE, NOTHING_HERE, -1, 0n) === -1 ? errno[0] : undefined;
    if (failed !== undefined) this.#fail("mmap", failed, start, end);
  }

  /**
   * Takes memory that is in no file from `[start, end)` to addresses where guests do not see it: the offsets of `memory`
   * from `offset` on. An empty mapping stays, for something else to be mapped over.
   *
   * @throws {OsError} If the kernel refuses. What has been taken there stays there, and is left alone the next time.
   */
  park(start: number, end: number, memory: HostMemory, offset: number): void {
    this.#check(start, end);
    this.#reservation.parking.park(this.base + start, end - start, memory, offset);
  }

  /**
   * Brings back to `[start, end)` what is parked of `memory` from `offset` on. What is not parked is there already, and
   * only protected as it is to be.
   *
   * @throws {OsError} If the kernel refuses. What has come back stays, and is left alone the next time.
   * @throws {ReservationLostError} If the range is lost for good.
   */
  restore(start: number, end: number, memory: HostMemory, offset: number, writable: boolean): void {
    this.#check(start, end);
    try {
      this.#reservation.parking.restore(this.base + start, end - start, memory, offset);
    } catch (error) {
      plugHole(this.base, start, end, error);
      throw error;
    }
    const { sys, errno } = libc();
    const prot = writable ? READ_WRITE : READ_ONLY;
    // SAFETY: inside the reservation.
    const failed = sys.mprotect(word64(this.base + start), word64(end - start), prot) === -1 ? errno[0] : undefined;
    if (failed !== undefined) throw new OsError("mprotect", failed, `guest memory at ${hex(start)}-${hex(end)}`);
  }

  /** The host address at which offset `offset` of `memory` is parked, `undefined` where it is not. */
  parkedAt(memory: HostMemory, offset: number): number | undefined {
    return this.#reservation.parking.addressOf(memory, offset);
  }

  /**
   * Gives up what is parked at the offsets `[start, end)` of `memory`.
   *
   * @throws {OsError} If the kernel refuses.
   */
  discard(memory: HostMemory, start: number, end: number): void {
    this.#reservation.parking.discard(memory, start, end);
  }

  /** How many more kernel mappings may be made in this process, by all reservations together. */
  get spareMappings(): number {
    return spareMappings();
  }

  /**
   * Gives up kernel mappings that were kept for it, so that a request can be undone at the kernel's limit too, and
   * takes them again when the result is disposed.
   */
  makeRoom(): Disposable {
    return makeRoom();
  }

  /**
   * Says that nothing else may ever get the addresses of `[start, end)`: someone may still write there.
   */
  keepReserved(start: number, end: number): void {
    this.#check(start, end);
    this.#reservation.keep(start, end);
  }

  /**
   * Says how many kernel mappings this reservation consists of now, for `spareMappings`.
   */
  noteMappings(count: number): void {
    this.#reservation.mappings = count;
  }

  /**
   * Brings the memory of `[start, end)` in ahead of use.
   *
   * @throws {OsError} EINVAL if the protection does not allow the access, ENOMEM over a hole, EFAULT past the end of the
   * file.
   */
  populate(start: number, end: number, writable: boolean): void {
    this.advise(start, end, writable ? MADV_POPULATE_WRITE : MADV_POPULATE_READ);
  }

  /**
   * Gives the pages of private memory at `[start, end)` back: it reads as zeros afterwards.
   *
   * @throws {OsError} EINVAL if it is locked.
   */
  empty(start: number, end: number): void {
    this.advise(start, end, MADV_DONTNEED);
  }

  /**
   * Calls madvise for `[start, end)`.
   *
   * @throws {OsError} As madvise(2) does.
   */
  advise(start: number, end: number, advice: number): void {
    this.#check(start, end);
    adviseHost(this.base + start, end - start, advice);
  }

  /**
   * Holds the memory of `[start, end)` in place (mlock) until `unlockPages` was called as often.
   *
   * @throws {OsError} As `lockPages` of page_locks.ts does.
   */
  lockPages(start: number, end: number): void {
    this.#check(start, end);
    lockPages(this.base + start, end - start);
  }

  /** Undoes one `lockPages`. */
  unlockPages(start: number, end: number): void {
    this.#check(start, end);
    unlockPages(this.base + start, end - start);
  }

  /**
   * The bytes of `[start, end)` themselves, without a copy. The caller revokes the buffer (`revokeView`) before the
   * mapping changes under it.
   */
  view(start: number, end: number): ArrayBuffer {
    this.#check(start, end);
    return hostView(this.base + start, end - start);
  }

  /** Gives the handle up; the addresses go with their last holder. */
  [Symbol.dispose](): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#reservation.release();
  }

  #check(start: number, end: number): void {
    if (this.#reservation.released) throw new DisposedError("VaMapper");
    // Written so that NaN fails it too. Alignment is the kernel's to check, at no cost; fractions it would not see.
    if (start >= 0 && start < end && end <= this.length && Number.isInteger(start) && Number.isInteger(end)) return;
    throw new RangeError(
      `${hex(start)}-${hex(end)} is not a range inside a reservation of ${hex(this.length)} bytes`,
    );
  }

  /** Reports that a replacing call failed, after making sure that it left no hole. */
  #fail(syscall: string, code: number, start: number, end: number): never {
    const error = new OsError(syscall, code, `guest memory at ${hex(start)}-${hex(end)}`);
    // What the kernel takes away before it fails, it leaves as a gap.
    if (!plugHole(this.base, start, end, error)) noteNoEffect(error);
    throw error;
  }
}

/** Maps a part of a file outside of the reservation. */
function mapAlone(
  mappable: Mappable,
  fileOffset: number,
  length: number,
  prot: number,
  policy: MemoryPolicy | undefined,
  flags: number,
): FileMapping {
  try {
    using stack = new DisposableStack();
    const aside = stack.use(new FileMapping(fileOf(mappable).fd, fileOffset, length, prot, mappable.pageSize, flags));
    if (policy !== undefined) applyPolicy(aside.address, length, policy);
    stack.move();
    return aside;
  } catch (error) {
    if (error instanceof Error) noteNoEffect(error);
    throw error;
  }
}
