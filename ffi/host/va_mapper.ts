/**
 * Host addresses for guest memory, as users hold them.
 *
 * Why it is safe: a user can reserve addresses and let go of them. What is mapped there is the business of the region
 * manager alone, which gets at it by `hostOf`.
 *
 * @module
 */

import type { VaTarget } from "../../src/core/targets.ts";
import type { Mappable } from "../files/mappable.ts";
import { HostAddresses } from "./host_addresses.ts";

/** How a reservation is made. */
export interface ReserveOptions {
  /** A power of two in bytes: the largest page size to be used. 2 MiB when it is less or left out. */
  alignment?: number;
}

/** The addresses behind a `VaMapper`; another target is its own. */
export function hostOf(va: VaMapper | VaTarget<Mappable>): VaTarget<Mappable> {
  return va instanceof VaMapper ? addressesOf(va) : va;
}

let addressesOf: (va: VaMapper) => HostAddresses;

/**
 * A reserved range of host addresses in which guest memory is mapped: GPA x lives at `base + x`.
 *
 * One `VaMapper` serves one `RegionManager`. Disposing it takes it away from new users; the addresses themselves stay
 * reserved until the manager and every virtual machine with memory slots over them are gone as well, in any order.
 *
 * @example Usage
 * ```ts
 * import { VaMapper } from "membacking";
 *
 * using va = VaMapper.reserve(0x1_0000_0000); // 4 GiB of addresses, no memory yet
 * console.assert(va.base % 0x20_0000 === 0);
 * ```
 */
export class VaMapper implements Disposable {
  static {
    addressesOf = (va) => va.#host;
  }

  readonly #host: HostAddresses;

  private constructor(host: HostAddresses) {
    this.#host = host;
    // Whoever follows the memory map goes by its numbers.
    Object.freeze(this);
  }

  /**
   * Reserves `length` bytes of host addresses. It costs no memory, whatever the length.
   *
   * @param length In bytes: a multiple of 4096, at most 2^47. Hosts give out about half of that.
   * @throws {RangeError} If a number is out of its range.
   * @throws {OsError} ENOMEM if there is no free address range of that length.
   */
  static reserve(length: number, options: ReserveOptions = {}): VaMapper {
    return new VaMapper(HostAddresses.reserve(length, options));
  }

  /** The host address of GPA 0. */
  get base(): number {
    return this.#host.base;
  }

  /** The length of the reservation in bytes. */
  get length(): number {
    return this.#host.length;
  }

  /** Whether it has been disposed. Its holders go on using it. */
  get disposed(): boolean {
    return this.#host.disposed;
  }

  /** Gives the handle up; the addresses go with their last holder. */
  [Symbol.dispose](): void {
    this.#host[Symbol.dispose]();
  }
}
