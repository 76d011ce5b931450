/**
 * What guest memory is made of: memfds and files.
 *
 * Why it is safe: a `Mappable` owns its descriptor, so nobody else closes it or puts another file in its place.
 * Reads and writes go through pread and pwrite with the caller's own buffers, bounds checked; a hugetlb file, which
 * knows no pwrite, is written through a mapping of its own that is gone when `write` returns.
 *
 * @module
 */

import { DisposedError } from "../../src/core/errors.ts";
import { hex } from "../../src/core/hex.ts";
import { checkAligned, checkNumber, PAGE_SIZE } from "../../src/core/memory_range.ts";
import { FileMapping } from "../os/address_space.ts";
import { cString, libc } from "../os/libc.ts";
import {
  F_ADD_SEALS,
  F_DUPFD_CLOEXEC,
  F_SEAL_GROW,
  F_SEAL_SEAL,
  F_SEAL_SHRINK,
  MFD_ALLOW_SEALING,
  MFD_CLOEXEC,
  MFD_HUGE_SHIFT,
  MFD_HUGETLB,
  O_CLOEXEC,
  O_NONBLOCK,
  O_RDONLY,
  O_RDWR,
  PROT_READ,
  PROT_WRITE,
} from "../os/mman.ts";
import { applyPolicy } from "./memory_policy.ts";
import { OpenFile } from "./open_file.ts";
import { Errno, OsError, unwrap } from "../os/os_error.ts";
import { plainBytes } from "../os/plain_bytes.ts";
import { writeProcessMemory } from "../os/process_memory.ts";

/** How a memfd is made. */
export interface MemfdOptions {
  /**
   * The size of the hugetlb pages to use, in bytes: 2 MiB or 1 GiB, as far as the host has a pool of them. All pages
   * are taken from the pool at once. Left out: ordinary 4 KiB pages, taken when first touched.
   */
  hugepageSize?: number;
  /**
   * The host NUMA node that hugetlb pages are taken from, 0 to 1023. Ordinary pages are taken when first touched, and
   * so follow the policy of the mapping they are touched through.
   */
  hostNumaNode?: number;
  /**
   * Whether its size is sealed, `true` when left out: then no one who gets hold of the descriptor can shorten the file
   * under a mapping (touching it would be SIGBUS), or seal it against writing.
   */
  seal?: boolean;
}

/** How a file is opened. */
export interface OpenOptions {
  /** Whether it is opened for writing too, `false` when left out. */
  write?: boolean;
}

/** The length of the longest memfd name the kernel takes, in bytes. */
const MAX_NAME = 249;

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

  private constructor(file: OpenFile) {
    this.#file = file;
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
    const { hugepageSize, hostNumaNode, seal = true } = options;
    const cName = cString(name);
    if (cName.length - 1 > MAX_NAME) throw new RangeError(`A memfd name has at most ${MAX_NAME} bytes`);
    if (hugepageSize !== undefined) checkHugepageSize(hugepageSize);
    checkAligned(size, "Size", hugepageSize ?? PAGE_SIZE);
    if (size === 0) throw new RangeError("Size must not be 0");

    const { sys, errno } = libc();
    const flags = MFD_CLOEXEC | MFD_ALLOW_SEALING |
      (hugepageSize === undefined ? 0 : MFD_HUGETLB | (Math.log2(hugepageSize) << MFD_HUGE_SHIFT));
    const fd = unwrap(
      sys.memfd_create(cName, flags),
      errno[0],
      "memfd_create",
      () => hugepageSize === undefined ? `memfd "${name}"` : `the host may have no huge pages of ${hex(hugepageSize)}`,
    );
    try {
      const what = () => `memfd "${name}" of ${hex(size)} bytes`;
      unwrap(sys.ftruncate(fd, BigInt(size)), errno[0], "ftruncate", what);
      if (hugepageSize !== undefined) {
        if (hostNumaNode !== undefined) bindFile(fd, size, hugepageSize, hostNumaNode);
        // Takes the pages out of the pool. Without it a missing page would be a SIGBUS at first touch.
        unwrap(sys.fallocate(fd, 0, 0n, BigInt(size)), errno[0], "fallocate", () => poolHint(size, hugepageSize));
      }
      if (seal) {
        unwrap(sys.fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL), errno[0], "fcntl", what);
      }
    } catch (error) {
      sys.close(fd);
      throw error;
    }
    const facts = seal ? { size, pageSize: hugepageSize ?? PAGE_SIZE } : undefined;
    return new Mappable(new OpenFile(fd, `memfd "${name}"`, false, facts));
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
    const { write = false } = options;
    const { sys, errno } = libc();
    // O_NONBLOCK so that opening a pipe returns at once, to be refused; on a file it does nothing.
    const flags = (write ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK;
    const fd = unwrap(sys.open(cString(path), flags, 0), errno[0], "open", () => `"${path}"`);
    return Mappable.#probed(new OpenFile(fd, `"${path}"`));
  }

  /**
   * Takes a file that is open already, such as one that another process sent. The descriptor is duplicated, and stays
   * the caller's to close.
   *
   * Besides what `open` takes, anonymous files that have a size and can be mapped are accepted, such as a dma-buf.
   *
   * @throws {OsError} If `fd` is not open (EBADF), or of a kind that cannot back guest memory (ENODEV, EACCES).
   */
  static fromFd(fd: number): Mappable {
    checkNumber(fd, "File descriptor");
    if (fd > 0x7fff_ffff) throw new RangeError(`${fd} is not a file descriptor`);
    const { sys, errno } = libc();
    const own = unwrap(sys.fcntl(fd, F_DUPFD_CLOEXEC, 0), errno[0], "fcntl", () => `file descriptor ${fd}`);
    return Mappable.#probed(new OpenFile(own, `file descriptor ${fd}`));
  }

  /**
   * A handle of a file that another thread of this process has open and keeps open while this handle lives. Nothing is
   * closed here, so nothing leaks if this thread is stopped at any moment.
   *
   * @internal
   */
  static borrow(fd: number, label: string): Mappable {
    return new Mappable(new OpenFile(fd, label, true));
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

  /**
   * What clones of one mappable have in common: handles of one file have the same object here.
   *
   * @internal For comparing and keying; the package's own layers alone look inside.
   * @throws {DisposedError} After dispose.
   */
  get file(): OpenFile {
    if (this.#disposed || this.#file.revoked) throw new DisposedError(`Mappable ${this.#file.label}`);
    return this.#file;
  }

  /**
   * The file descriptor, which stays this object's to close.
   *
   * @throws {DisposedError} After dispose, as every other member does too.
   */
  get fd(): number {
    return this.file.fd;
  }

  /** The size in bytes. Cached where seals forbid it to change, otherwise asked from the kernel each time. */
  get size(): number {
    return this.file.size;
  }

  /** The unit of mapping in bytes: 4096, or the huge page size. Ranges and file offsets must be multiples of it. */
  get pageSize(): number {
    return this.file.pageSize;
  }

  /** Whether it can be mapped for writing: opened for it, and without a seal against it. */
  get writable(): boolean {
    return this.file.writable;
  }

  /**
   * Whether someone may shorten the file while it is mapped: always, unless it is sealed against shrinking.
   *
   * @internal
   */
  get truncatable(): boolean {
    return this.file.truncatable;
  }

  /**
   * Whether mapping it may fail after what was mapped there before is gone: hugetlb, and file systems and kinds of
   * files that are not known to be steady.
   *
   * @internal
   */
  get mayFailLate(): boolean {
    return this.file.mayFailLate;
  }

  /**
   * Reads bytes `[offset, offset + into.length)` of the file into `into`, all of them.
   *
   * @throws {RangeError} If that goes past the end.
   * @throws {OsError} If reading fails.
   */
  read(offset: number, into: Uint8Array): void {
    const { file } = this;
    const plain = checkTransfer(file, offset, into);
    const { sys, errno } = libc();
    for (let done = 0; done < plain.length;) {
      const rest = done === 0 ? plain : plain.subarray(done);
      const count = unwrap(
        // SAFETY: the kernel writes at most the length of the buffer it is given.
        sys.pread(file.fd, rest, BigInt(rest.length), BigInt(offset + done)),
        errno[0],
        "pread",
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
    const { file } = this;
    const plain = checkTransfer(file, offset, bytes);
    if (file.hugetlb) return writeMapped(file, offset, plain);
    const { sys, errno } = libc();
    for (let done = 0; done < plain.length;) {
      const rest = done === 0 ? plain : plain.subarray(done);
      const count = unwrap(
        // SAFETY: the kernel reads at most the length of the buffer it is given.
        sys.pwrite(file.fd, rest, BigInt(rest.length), BigInt(offset + done)),
        errno[0],
        "pwrite",
        () => `${file.label} at offset ${hex(offset + done)}`,
      );
      if (count === 0) throw file.shortTransfer(offset + done);
      done += count;
    }
  }

  /** Another handle of the same file, to be disposed on its own. */
  clone(): Mappable {
    return new Mappable(this.file.retain());
  }

  /** Gives the handle up. The descriptor is closed with the last one; mappings of the file stay as they are. */
  [Symbol.dispose](): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#file.release();
  }
}

function checkHugepageSize(size: number): void {
  checkNumber(size, "Huge page size");
  if (size <= PAGE_SIZE || !Number.isInteger(Math.log2(size))) {
    throw new RangeError(`Huge page size ${hex(size)} is not a power of two above ${hex(PAGE_SIZE)}`);
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

/** Says which NUMA node the pages of a file come from. The policy stays with the file when the mapping goes. */
function bindFile(fd: number, size: number, hugepageSize: number, hostNumaNode: number): void {
  try {
    using mapping = new FileMapping(fd, 0, size, PROT_READ | PROT_WRITE, hugepageSize);
    applyPolicy(mapping.address, size, { hostNumaNode });
  } catch (cause) {
    if (!(cause instanceof OsError) || cause.errno !== Errno.ENOMEM) throw cause;
    throw new OsError("mmap", cause.errno, poolHint(size, hugepageSize), { cause });
  }
}

function poolHint(size: number, hugepageSize: number): string {
  const pool = hugepageSize === 2 ** 21
    ? "/proc/sys/vm/nr_hugepages"
    : `/sys/kernel/mm/hugepages/hugepages-${hugepageSize / 1024}kB/nr_hugepages`;
  return `the pool has fewer than ${size / hugepageSize} free huge pages of ${hex(hugepageSize)}, ` +
    `raise the number in ${pool}`;
}
