/**
 * Memory that processes share: a memfd of a fixed size, and this process's mapping of it.
 *
 * Why it is safe: the file is sealed against resizing, so that no process can have another's accesses end in SIGBUS, and
 * where only its maker shall write, against new mappings for writing. The mapping is this object's own and goes after
 * every view of it has been revoked.
 *
 * @module
 */

import { FileMapping } from "../os/address_space.ts";
import { libc } from "../os/libc.ts";
import {
  F_ADD_SEALS,
  F_SEAL_FUTURE_WRITE,
  F_SEAL_GROW,
  F_SEAL_SEAL,
  F_SEAL_SHRINK,
  PROT_READ,
  PROT_WRITE,
} from "../os/mman.ts";
import { unwrap } from "../os/os_error.ts";
import { fileOf, Mappable } from "./mappable.ts";

/** A file of shared memory, mapped here. */
export class SharedFile implements Disposable {
  /** Its bytes. Detached once it is disposed. */
  readonly bytes: ArrayBuffer;
  readonly #file: Mappable | null;
  readonly #mapping: FileMapping;

  private constructor(file: Mappable | null, mapping: FileMapping) {
    this.#file = file;
    this.#mapping = mapping;
    this.bytes = mapping.bytes;
  }

  /**
   * Makes `size` bytes of zeros, page-aligned; with `othersRead`, nobody else can map it for writing.
   *
   * @throws {OsError} If the process has too many open files, or no addresses are left.
   */
  static make(name: string, size: number, options: { othersRead: boolean }): SharedFile {
    using stack = new DisposableStack();
    const file = stack.use(Mappable.memfd(name, size, { seal: false }));
    const mapping = stack.use(new FileMapping(file.fd, 0, size, PROT_READ | PROT_WRITE));
    const { sys, errno } = libc();
    const seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL | (options.othersRead ? F_SEAL_FUTURE_WRITE : 0);
    unwrap(sys.fcntl(file.fd, F_ADD_SEALS, seals), errno[0], "fcntl", () => `memfd "${name}"`);
    stack.move();
    return new SharedFile(file, mapping);
  }

  /**
   * Maps one that another process made. The descriptor stays the caller's.
   *
   * @throws {OsError} If it cannot be mapped so.
   */
  static map(fd: number, size: number, options: { write: boolean }): SharedFile {
    using file = Mappable.fromFd(fd);
    const sealed = fileOf(file).size >= size && !fileOf(file).truncatable;
    if (!sealed) throw new RangeError("A file of shared memory is shorter than it has to be, or can become so");
    return new SharedFile(null, new FileMapping(fd, 0, size, options.write ? PROT_READ | PROT_WRITE : PROT_READ));
  }

  /** Its descriptor, to be sent to another process; for its maker alone. */
  get fd(): number {
    return this.#file?.fd ?? -1;
  }

  /** Revokes the bytes, unmaps and closes. */
  [Symbol.dispose](): void {
    this.#mapping[Symbol.dispose]();
    this.#file?.[Symbol.dispose]();
  }
}
