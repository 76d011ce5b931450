/**
 * Fresh host addresses: reserving them, giving them back, and mapping something for a moment.
 *
 * Why it is safe: the kernel chooses every address that is reserved here, so nothing that exists is replaced, and only
 * what was reserved here is unmapped. A view of a temporary mapping is revoked before the mapping goes.
 *
 * @module
 */

import { hex } from "../../src/core/hex.ts";
import { checkAligned, PAGE_SIZE } from "../../src/core/memory_range.ts";
import { libc } from "./libc.ts";
import { MAP_ANONYMOUS, MAP_FIXED, MAP_NORESERVE, MAP_PRIVATE, MAP_SHARED, PROT_NONE } from "./mman.ts";
import { Errno, OsError, unwrap } from "./os_error.ts";
import { hostView, revokeView } from "./view.ts";

/** One past the highest address of a user process on x86-64 Linux: 2^47. */
export const HVA_LIMIT = 2 ** 47;

const MAP_FAILED = 2n ** 64n - 1n;

/** The mmap flags of address space without memory behind it. */
export const RESERVE_FLAGS: number = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

/**
 * Reserves `length` bytes of address space, inaccessible and without memory, at a multiple of `alignment`.
 *
 * @throws {RangeError} If `length` is not a page-aligned number in 4096..2^47, or `alignment` not a power of two of at
 * least 4096.
 * @throws {OsError} If the kernel has no address range of that length left.
 */
export function reserveAddresses(length: number, alignment: number): number {
  checkAligned(length, "Length");
  checkAligned(alignment, "Alignment");
  if (length === 0 || length > HVA_LIMIT) {
    throw new RangeError(`Length ${hex(length)} is not in 0x1000..${hex(HVA_LIMIT)}`);
  }
  if (alignment === 0 || !Number.isInteger(Math.log2(alignment)) || alignment > HVA_LIMIT) {
    throw new RangeError(`Alignment ${hex(alignment)} is not a power of two in 0x1000..${hex(HVA_LIMIT)}`);
  }
  const total = length + alignment - PAGE_SIZE;
  const { sys } = libc();
  // SAFETY: a new mapping at an address of the kernel's choice.
  const result = sys.mmapFresh(0n, BigInt(total), PROT_NONE, RESERVE_FLAGS, -1, 0n);
  if (result === MAP_FAILED) {
    // A bigint was allocated in between, so errno is not to be trusted; ENOMEM is the one error this call can have.
    throw new OsError("mmap", Errno.ENOMEM, `no ${hex(total)} bytes of address space are left`);
  }
  const from = Number(result);
  const start = Math.ceil(from / alignment) * alignment;
  if (start > from) releaseAddresses(from, start - from);
  if (from + total > start + length) releaseAddresses(start + length, from + total - start - length);
  return start;
}

/**
 * Unmaps `[address, address + length)`, which must be the caller's and unused by anyone.
 *
 * @throws {OsError} If the kernel refuses, which it does where cutting a mapping needs one more than it allows.
 */
export function releaseAddresses(address: number, length: number): void {
  const { sys, errno } = libc();
  // SAFETY: the caller owns the range, and says that nothing uses it.
  unwrap(sys.munmap(BigInt(address), BigInt(length)), errno[0], "munmap", () => `${hex(length)} at ${hex(address)}`);
}

/**
 * Takes the memory of `[address, address + length)` away and keeps the addresses inaccessible for good, so that nothing
 * else of the process ever lives there: whoever still writes there gets EFAULT.
 *
 * @throws {OsError} If the kernel refuses.
 */
export function retireAddresses(address: number, length: number): void {
  const { sys, errno } = libc();
  unwrap(
    // SAFETY: the caller owns the range, and says that whoever uses it must not any more.
    sys.mmap(BigInt(address), BigInt(length), PROT_NONE, RESERVE_FLAGS | MAP_FIXED, -1, 0n),
    errno[0],
    "mmap",
    () => `${hex(length)} at ${hex(address)}`,
  );
}

/** A part of a file mapped on its own, away from guest memory, for as long as it is not disposed. */
export class FileMapping implements Disposable {
  /** Where it is mapped. */
  readonly address: number;
  /** Its length in bytes. */
  readonly length: number;
  #bytes: ArrayBuffer | undefined;
  #gone = false;

  /**
   * Maps `length` bytes of `fd` from `offset` on, with the protection `prot`: shared, unless `flags` say otherwise.
   *
   * The length and the offset are multiples of `pageSize`, the page size of the file.
   *
   * @throws {OsError} If the file cannot be mapped so.
   */
  constructor(
    fd: number,
    offset: number,
    length: number,
    prot: number,
    pageSize: number = PAGE_SIZE,
    flags: number = MAP_SHARED,
  ) {
    this.address = reserveAddresses(length, pageSize);
    this.length = length;
    const { sys, errno } = libc();
    try {
      unwrap(
        // SAFETY: replaces the range reserved just above, which nobody else knows of.
        sys.mmap(BigInt(this.address), BigInt(length), prot, flags | MAP_FIXED, fd, BigInt(offset)),
        errno[0],
        "mmap",
      );
    } catch (error) {
      releaseAddresses(this.address, length);
      throw error;
    }
  }

  /** The mapped bytes. Detached (length 0) once the mapping is disposed. */
  get bytes(): ArrayBuffer {
    return this.#bytes ??= hostView(this.address, this.length);
  }

  /** Says that the range has been moved elsewhere by mremap, so that dispose leaves these addresses alone. */
  forget(): void {
    this.#gone = true;
  }

  /** Revokes the view and unmaps. */
  [Symbol.dispose](): void {
    if (this.#gone) return;
    this.#gone = true;
    if (this.#bytes !== undefined) revokeView(this.#bytes);
    releaseAddresses(this.address, this.length);
  }
}
