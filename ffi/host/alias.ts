/**
 * A second mapping of parts of files at addresses of its own, for looking at guest memory that the first mapping does
 * not allow stores to.
 *
 * Why it is safe: the addresses are this mapping's alone, and nothing gets them afterwards. Read-only parts are mapped MAP_PRIVATE:
 * a store makes a copy of the page that only this mapping sees. The owner keeps the files from being truncated under
 * it, and revokes the view before disposing.
 *
 * @module
 */

import { LimitError } from "../../src/core/errors.ts";
import { freshAddresses } from "./fresh_addresses.ts";
import { retireAddresses } from "../os/address_space.ts";
import { libc } from "../os/libc.ts";
import { fileOf, type Mappable } from "../files/mappable.ts";
import { noteUse, spareMappings } from "./mapping_budget.ts";
import { MADV_DONTDUMP, MADV_DONTFORK, MAP_FIXED, MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE } from "../os/mman.ts";
import { adviseHost } from "../os/advise.ts";
import { unwrap } from "../os/os_error.ts";
import { hostView } from "../os/view.ts";

/** One part of an alias, in bytes. */
export interface AliasPart {
  /** The first GPA. */
  readonly start: number;
  /** One past the last. */
  readonly end: number;
  /** The file. */
  readonly mappable: Mappable;
  /** Where in the file it begins. */
  readonly fileOffset: number;
  /** Whether stores reach the file. */
  readonly writable: boolean;
}

/** Parts of files mapped one behind the other. */
export class Alias implements Disposable {
  /** The bytes of all parts. */
  readonly buffer: ArrayBuffer;
  readonly #address: number;
  readonly #length: number;
  readonly #mappings: number;
  #disposed = false;

  /**
   * Maps `parts`, which are in order and without gaps. Between two parts lies a multiple of the page size of both.
   *
   * @throws {OsError} If a part cannot be mapped; nothing is left behind then.
   * @throws {LimitError} If the process has no kernel mappings left for it.
   */
  constructor(parts: readonly AliasPart[]) {
    const start = parts[0]?.start ?? 0;
    const end = parts.at(-1)?.end ?? 0;
    this.#mappings = parts.length + 1;
    const spare = spareMappings();
    if (this.#mappings > spare) {
      throw new LimitError("host mappings", spare, this.#mappings, "lock fewer ranges of read-only memory at a time");
    }
    // A hugetlb file is mapped in whole pages, at addresses that agree with the GPAs modulo their size.
    const pageSize = parts.reduce((most, { mappable }) => Math.max(most, mappable.pageSize), 4096);
    const first = start - start % pageSize;
    this.#length = Math.ceil((end - first) / pageSize) * pageSize;
    this.#address = freshAddresses(this.#length, pageSize);
    try {
      for (const part of parts) {
        const { mappable, fileOffset, writable } = part;
        const from = part.start - part.start % mappable.pageSize;
        const length = Math.ceil((part.end - from) / mappable.pageSize) * mappable.pageSize;
        const at = this.#address + from - first;
        const offset = fileOffset - (part.start - from);
        const flags = (writable ? MAP_SHARED : MAP_PRIVATE) | MAP_FIXED;
        const { sys, errno } = libc();
        unwrap(
          // SAFETY: inside the range reserved above.
          sys.mmap(BigInt(at), BigInt(length), PROT_READ | PROT_WRITE, flags, fileOf(mappable).fd, BigInt(offset)),
          errno[0],
          "mmap",
          () => "for a second view of guest memory",
        );
      }
      // It is guest memory, which core dumps and forks do not get.
      adviseHost(this.#address, this.#length, MADV_DONTDUMP);
      adviseHost(this.#address, this.#length, MADV_DONTFORK);
      this.buffer = hostView(this.#address + start - first, end - start);
    } catch (error) {
      retireAddresses(this.#address, this.#length);
      throw error;
    }
    noteUse(this.#mappings);
  }

  /** Unmaps; the view has been revoked by then. */
  [Symbol.dispose](): void {
    if (this.#disposed) return;
    this.#disposed = true;
    retireAddresses(this.#address, this.#length);
    noteUse(-this.#mappings);
  }
}
