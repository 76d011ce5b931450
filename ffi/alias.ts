/**
 * A second mapping of parts of files, one behind the other at addresses of its own, for looking at guest memory that
 * the first mapping does not allow stores to.
 *
 * Why it is safe: the addresses are reserved here and nobody else knows them. Read-only parts are mapped MAP_PRIVATE:
 * a store makes a copy of the page that only this mapping sees. The owner keeps the files from being truncated under
 * it, and revokes the view before disposing.
 *
 * @module
 */

import { releaseAddresses, reserveAddresses } from "./address_space.ts";
import { libc } from "./libc.ts";
import type { Mappable } from "./mappable.ts";
import { MAP_FIXED, MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE } from "./mman.ts";
import { unwrap } from "./os_error.ts";
import { hostView } from "./view.ts";

/** One part of an alias, in bytes. */
export interface AliasPart {
  /** The file. */
  readonly mappable: Mappable;
  /** Where in the file it begins. */
  readonly fileOffset: number;
  /** How long it is. */
  readonly length: number;
  /** Whether stores reach the file. */
  readonly writable: boolean;
}

/** Parts of files mapped one behind the other. */
export class Alias implements Disposable {
  /** The bytes of all parts. */
  readonly buffer: ArrayBuffer;
  readonly #address: number;
  readonly #length: number;
  #disposed = false;

  /**
   * Maps `parts` in order; each is a multiple of its file's page size.
   *
   * @throws {OsError} If a part cannot be mapped; nothing is left behind then.
   */
  constructor(parts: readonly AliasPart[]) {
    this.#length = parts.reduce((sum, { length }) => sum + length, 0);
    const alignment = parts.reduce((most, { mappable }) => Math.max(most, mappable.pageSize), 4096);
    this.#address = reserveAddresses(this.#length, alignment);
    try {
      let at = this.#address;
      for (const { mappable, fileOffset, length, writable } of parts) {
        const flags = (writable ? MAP_SHARED : MAP_PRIVATE) | MAP_FIXED;
        const { sys, errno } = libc();
        unwrap(
          // SAFETY: inside the range reserved above.
          sys.mmap(BigInt(at), BigInt(length), PROT_READ | PROT_WRITE, flags, mappable.fd, BigInt(fileOffset)),
          errno[0],
          "mmap",
          () => "for a second view of guest memory",
        );
        at += length;
      }
      this.buffer = hostView(this.#address, this.#length);
    } catch (error) {
      releaseAddresses(this.#address, this.#length);
      throw error;
    }
  }

  /** Unmaps; the view has been revoked by then. */
  [Symbol.dispose](): void {
    if (this.#disposed) return;
    this.#disposed = true;
    releaseAddresses(this.#address, this.#length);
  }
}
