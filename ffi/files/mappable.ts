/**
 * What guest memory is made of: memfds and files.
 *
 * Why it is safe: a `Mappable` owns its descriptor, so nobody else closes it or puts another file in its place.
 * Reads and writes go through pread and pwrite with the caller's own buffers, bounds checked; a hugetlb file, which
 * knows no pwrite, is written through a mapping of its own that is gone when `write` returns.
 *
 * @module
 */

import { checkBoolean } from "../../src/core/check_boolean.ts";
import { DisposedError } from "../../src/core/errors.ts";
import { hex } from "../../src/core/hex.ts";
import { checkNumber } from "../../src/core/memory_range.ts";
import { FileMapping } from "../os/address_space.ts";
import { cString, libc } from "../os/libc.ts";
import { F_DUPFD_CLOEXEC, O_CLOEXEC, O_NONBLOCK, O_RDONLY, O_RDWR, PROT_READ, PROT_WRITE } from "../os/mman.ts";
import { unwrap } from "../os/os_error.ts";
import { plainBytes } from "../os/plain_bytes.ts";
import { writeProcessMemory } from "../os/process_memory.ts";
import { outcome, uninterrupted } from "../os/uninterrupted.ts";
import { makeMemfd, type MemfdOptions } from "./memfd.ts";
import { OpenFile } from "./open_file.ts";
import { StandInFile } from "./stand_in_file.ts";

/** How a file is opened. */
export interface OpenOptions {
  /** Whether it is opened for writing too, `false` when left out. */
  write?: boolean;
  /**
   * Vouches that nobody truncates the file or punches holes into it while it is in use, `false` when left out. It is
   * then read and written in place instead of by system calls, can be locked, and can be mapped copy-on-write.
   *
   * The promise is yours to keep: if the file gets shorter all the same, the next access to what is gone, by an
   * accessor or through a lock, ends the process with SIGBUS, and a guest that touches it fails `KVM_RUN` with EFAULT.
   */
  fixedSize?: boolean;
}

/** How a descriptor is taken over. */
export type FromFdOptions = Pick<OpenOptions, "fixedSize">;

/**
 * What clones of one mappable have in common: handles of one file have the same object here.
 *
 * @throws {DisposedError} After dispose.
 */
export let fileOf: (mappable: Mappable) => OpenFile;

/**
 * A handle of a file that another thread of this process has open and keeps open while this handle lives. Nothing is
 * closed here, so nothing leaks if this thread is stopped at any moment.
 */
export let borrowMappable: (fd: number, label: string) => Mappable;

/** Makes what stands in for a memfd where there is no kernel to ask, for tests. */
export let standInMappable: (name: string, size: number, pageSize: number) => Mappable;

/** A handle of the same file for a region manager to hand around, for one mapping more: only `takeBack` disposes it. */
export let lend: (mappable: Mappable) => Mappable;

/** Gives a handle that was made by `lend` back for one mapping, with the last one for good. */
export let takeBack: (lent: Mappable) => void;

/**
 * An owned file descriptor that can be mapped into guest memory: a memfd, or a file.
 *
 * Clones share the descriptor, which is closed with the last of them. It is close-on-exec, so a child process does not
 * inherit it.
 *
 * @example Usage
 * ```ts
 * import { Mappable } from "membacking";
 *
 * using ram = Mappable.memfd("ram", 0x10000);
 * ram.write(0x1000, new Uint8Array([1, 2, 3]));
 * const back = new Uint8Array(3);
 * ram.read(0x1000, back);
 * console.assert(back[2] === 3);
 * ```
 */
export class Mappable implements Disposable {
  #file: OpenFile;
  #disposed = false;
  /** The handle that region managers show of this file: one for all mappings, there as long as one of them is. */
  #lent: Mappable | null = null;
  /** Whether this is such a handle, which users may not dispose, and for how many mappings it is there. */
  #isLent = false;
  #lends = 0;

  private constructor(file: OpenFile) {
    this.#file = file;
    // What it says of itself is what mappings are made by.
    Object.freeze(this);
  }

  static {
    fileOf = (mappable) => mappable.#open;
    borrowMappable = (fd, label) => new Mappable(new OpenFile(fd, label, { borrowed: true, shared: true }));
    standInMappable = (name, size, pageSize) => new Mappable(new StandInFile(name, size, pageSize));
    lend = (mappable) => {
      const lent = mappable.#lent ??= lentHandle(mappable.#open);
      lent.#file.retain();
      if (lent.#lends++ === 0) lent.#disposed = false;
      return lent;
    };
    const lentHandle = (file: OpenFile) => {
      const lent = new Mappable(file);
      lent.#isLent = true;
      return lent;
    };
    takeBack = (lent) => {
      if (--lent.#lends === 0) lent.#disposed = true;
      lent.#file.release();
    };
  }

  /**
   * Makes anonymous memory of `size` bytes that has a file descriptor. It reads as zeros.
   *
   * @param name What /proc shows, for debugging; need not be unique. At most 249 bytes.
   * @param size In bytes: a multiple of 4096, or of the huge page size.
   * @throws {OsError} If the kernel refuses, for huge pages with a message that names their pool.
   * @throws {RangeError} If a number is out of its range, or the name too long.
   */
  static memfd(name: string, size: number, options: MemfdOptions = {}): Mappable {
    return new Mappable(makeMemfd(name, size, options));
  }

  /**
   * Opens a regular file, which includes files in /dev/shm and on a hugetlb file system.
   *
   * Directories, devices, pipes and sockets are refused: their size says nothing about what can be mapped, so no access
   * could be checked against it.
   *
   * @throws {OsError} If the file cannot be opened, or is of a kind that cannot back guest memory (ENODEV).
   */
  static open(path: string, options: OpenOptions = {}): Mappable {
    const { write = false, fixedSize = false } = options;
    checkBoolean(write, "write");
    checkBoolean(fixedSize, "fixedSize");
    const { sys, errno } = libc();
    // O_NONBLOCK so that opening a pipe returns at once, to be refused; on a file it does nothing.
    const flags = (write ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK;
    const cPath = cString(path);
    const fd = uninterrupted("open", () => outcome(sys.open(cPath, flags, 0), errno[0]), () => `"${path}"`);
    return Mappable.#probed(new OpenFile(fd, `"${path}"`, { shared: true, fixedSize }));
  }

  /**
   * Takes a file that is open already, such as one that another process sent. The descriptor is duplicated, and stays
   * the caller's to close.
   *
   * Besides what `open` takes, anonymous files that have a size and can be mapped are accepted, such as a dma-buf.
   *
   * @throws {OsError} If `fd` is not open (EBADF), or of a kind that cannot back guest memory (ENODEV, EACCES).
   */
  static fromFd(fd: number, options: FromFdOptions = {}): Mappable {
    const { fixedSize = false } = options;
    checkBoolean(fixedSize, "fixedSize");
    checkNumber(fd, "File descriptor");
    if (fd > 0x7fff_ffff) throw new RangeError(`${fd} is not a file descriptor`);
    const { sys, errno } = libc();
    const own = unwrap(sys.fcntl(fd, F_DUPFD_CLOEXEC, 0), errno[0], "fcntl", () => `file descriptor ${fd}`);
    return Mappable.#probed(new OpenFile(own, `file descriptor ${fd}`, { shared: true, fixedSize }));
  }

  static #probed(file: OpenFile): Mappable {
    try {
      file.probe();
    } catch (error) {
      file.release();
      throw error;
    }
    return new Mappable(file);
  }

  get #open(): OpenFile {
    if (this.#disposed || this.#file.revoked) throw new DisposedError(`Mappable ${this.#file.label}`);
    return this.#file;
  }

  /**
   * The file descriptor, which stays this object's to close.
   *
   * Who asks for it may send it to others, who may punch holes into huge pages. So hugetlb memory whose descriptor was
   * asked for is read and written by system calls from then on and cannot be locked, unless it was made with
   * `fixedSize: true`.
   *
   * @throws {MemoryLockedError} If it is hugetlb memory that is locked, and was made without `fixedSize: true`.
   * @throws {DisposedError} After dispose, as every other member does too.
   */
  get fd(): number {
    return this.#open.handOut();
  }

  /** The size in bytes. Cached where seals forbid it to change, otherwise asked from the kernel each time. */
  get size(): number {
    return this.#open.size;
  }

  /** The unit of mapping in bytes: 4096, or the huge page size. Ranges and file offsets must be multiples of it. */
  get pageSize(): number {
    return this.#open.pageSize;
  }

  /** Whether it can be mapped for writing: opened for it, and without a seal against it. */
  get writable(): boolean {
    return this.#open.writable;
  }

  /**
   * Reads bytes `[offset, offset + into.length)` of the file into `into`, all of them.
   *
   * @throws {RangeError} If that goes past the end.
   * @throws {OsError} If reading fails.
   */
  read(offset: number, into: Uint8Array): void {
    const file = this.#open;
    const plain = checkTransfer(file, offset, into);
    if (file.bytes !== null) return plain.set(new Uint8Array(file.bytes, offset, plain.length));
    const { sys, errno } = libc();
    for (let done = 0; done < plain.length;) {
      const rest = done === 0 ? plain : plain.subarray(done);
      const [size, at] = [BigInt(rest.length), BigInt(offset + done)];
      const count = uninterrupted(
        "pread",
        // SAFETY: the kernel writes at most the length of the buffer it is given.
        () => outcome(sys.pread(file.fd, rest, size, at), errno[0]),
        () => `${file.label} at offset ${hex(offset + done)}`,
      );
      if (count === 0) throw file.shortTransfer(offset + done);
      done += count;
    }
  }

  /**
   * Writes `bytes` at `offset` of the file, all of them. The size never changes.
   *
   * @throws {RangeError} If that goes past the end.
   * @throws {OsError} If writing fails, as it does where `writable` is false.
   */
  write(offset: number, bytes: Uint8Array): void {
    const file = this.#open;
    const plain = checkTransfer(file, offset, bytes);
    file.checkNotFrozen();
    if (file.bytes !== null) return new Uint8Array(file.bytes).set(plain, offset);
    if (file.hugetlb) return writeMapped(file, offset, plain);
    const { sys, errno } = libc();
    for (let done = 0; done < plain.length;) {
      const rest = done === 0 ? plain : plain.subarray(done);
      const [size, at] = [BigInt(rest.length), BigInt(offset + done)];
      const count = uninterrupted(
        "pwrite",
        // SAFETY: the kernel reads at most the length of the buffer it is given.
        () => outcome(sys.pwrite(file.fd, rest, size, at), errno[0]),
        () => `${file.label} at offset ${hex(offset + done)}`,
      );
      if (count === 0) throw file.shortTransfer(offset + done);
      done += count;
    }
  }

  /** Another handle of the same file, to be disposed on its own. */
  clone(): Mappable {
    return new Mappable(this.#open.retain());
  }

  /**
   * Gives the handle up. The descriptor is closed with the last one; mappings of the file stay as they are.
   *
   * @throws {TypeError} If it is the handle of a region manager, as DMA targets and `GuestMemory.find` get it: clone it
   * to have one of your own.
   */
  [Symbol.dispose](): void {
    if (this.#disposed) return;
    if (this.#isLent) {
      throw new TypeError(
        `This handle of ${this.#file.label} is the region manager's to dispose, clone it to keep one`,
      );
    }
    this.#disposed = true;
    this.#file.release();
  }
}

/** The bytes to transfer as a plain array, once they are known to lie within the file. */
function checkTransfer(file: OpenFile, offset: number, bytes: Uint8Array): Uint8Array<ArrayBuffer> {
  checkNumber(offset, "Offset");
  const plain = plainBytes(bytes);
  file.checkBounds(offset, plain.length);
  return plain;
}

/** Writes through a mapping, by way of the kernel, since the file may have become too short by now. */
function writeMapped(file: OpenFile, offset: number, bytes: Uint8Array<ArrayBuffer>): void {
  if (bytes.length === 0) return;
  const start = offset - offset % file.pageSize;
  const end = Math.ceil((offset + bytes.length) / file.pageSize) * file.pageSize;
  using mapping = new FileMapping(file.fd, start, end - start, PROT_READ | PROT_WRITE, file.pageSize);
  writeProcessMemory(mapping.address + offset - start, bytes);
}
