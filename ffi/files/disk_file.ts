/**
 * Files and directories of a snapshot: made, written from memory, synced, renamed and read back.
 *
 * Why it is safe: descriptors are this file's own and closed once. Bytes are moved between a file and memory that the
 * caller vouches for by its address, and never more than it names. Paths are C strings without NUL.
 *
 * @module
 */

import { PAGE_SIZE } from "../../src/core/memory_range.ts";
import type { Span } from "../../src/core/span.ts";
import { cString, libc } from "../os/libc.ts";
import { F_DUPFD_CLOEXEC, O_CLOEXEC, O_NONBLOCK, O_RDONLY, O_RDWR } from "../os/mman.ts";
import { Errno, OsError, unwrap } from "../os/os_error.ts";
import { outcome, uninterrupted } from "../os/uninterrupted.ts";
import { transferWhole } from "../os/whole_transfer.ts";
import { STATX } from "./open_file.ts";

const O_CREAT = 0o100;
const O_EXCL = 0o200;
const O_DIRECTORY = 0o200000;
const SYNC_FILE_RANGE_WRITE = 2;
const SEEK_DATA = 3;
const SEEK_HOLE = 4;
const AT_FDCWD = -100;
const AT_EMPTY_PATH = 0x1000;
const STATX_SIZE = 0x200;
const RENAME_NOREPLACE = 1;

/** A file of one's own, open until disposed. */
export class DiskFile implements Disposable {
  /** Where it is. */
  readonly path: string;
  readonly #fd: number;
  #closed = false;

  private constructor(path: string, fd: number) {
    this.path = path;
    this.#fd = fd;
  }

  /** Makes a new file, to be written and read. */
  static create(path: string): DiskFile {
    return new DiskFile(path, open(path, O_RDWR | O_CREAT | O_EXCL, 0o600));
  }

  /** Opens a file that is there, to be read. */
  static open(path: string): DiskFile {
    // Whatever is there instead of a file, such as a pipe, is not waited for.
    return new DiskFile(path, open(path, O_RDONLY | O_NONBLOCK, 0));
  }

  /** The same file once more, to be closed on its own. */
  clone(): DiskFile {
    const { sys, errno } = libc();
    const fd = unwrap(sys.fcntl(this.#fd, F_DUPFD_CLOEXEC, 0), errno[0], "fcntl", () => this.path);
    return new DiskFile(this.path, fd);
  }

  /** Its descriptor. */
  get fd(): number {
    return this.#fd;
  }

  /** Its length in bytes, now. */
  get size(): number {
    const { sys, errno } = libc();
    const bytes = new Uint8Array(STATX.size);
    // SAFETY: statx fills one struct statx, for which there is room.
    unwrap(sys.statx(this.#fd, cString(""), AT_EMPTY_PATH, STATX_SIZE, bytes), errno[0], "statx", () => this.path);
    return Number(new DataView(bytes.buffer).getBigUint64(STATX.stx_size, true));
  }

  /** Makes it `size` bytes long; what is new reads as zeros and takes no room. */
  resize(size: number): void {
    const { sys, errno } = libc();
    unwrap(sys.ftruncate(this.#fd, BigInt(size)), errno[0], "ftruncate", () => this.path);
  }

  /** Writes `length` bytes of memory from `address` on, which the caller has mapped for reading. */
  writeFrom(address: number, length: number, offset: number): void {
    const { sys, errno } = libc();
    this.#whole("pwrite", length, (done, size) => {
      // SAFETY: the caller vouches for the memory; the kernel answers EFAULT where it is not there.
      const count = sys.pwriteAt(this.#fd, BigInt(address + done), BigInt(size), BigInt(offset + done));
      return outcome(count, errno[0]);
    });
  }

  /** Reads `length` bytes into memory from `address` on, which the caller has mapped for writing. */
  readTo(address: number, length: number, offset: number): void {
    const { sys, errno } = libc();
    this.#whole("pread", length, (done, size) => {
      // SAFETY: the caller vouches for the memory; the kernel answers EFAULT where it is not there.
      const count = sys.preadAt(this.#fd, BigInt(address + done), BigInt(size), BigInt(offset + done));
      return outcome(count, errno[0]);
    });
  }

  /** Writes bytes. */
  write(bytes: Uint8Array<ArrayBuffer>, offset: number): void {
    const { sys, errno } = libc();
    this.#whole(
      "pwrite",
      bytes.length,
      (done, size) =>
        outcome(sys.pwrite(this.#fd, bytes.subarray(done), BigInt(size), BigInt(offset + done)), errno[0]),
    );
  }

  /** Reads `length` bytes. */
  read(length: number, offset: number): Uint8Array<ArrayBuffer> {
    const { sys, errno } = libc();
    const bytes = new Uint8Array(length);
    this.#whole(
      "pread",
      length,
      (done, size) => outcome(sys.pread(this.#fd, bytes.subarray(done), BigInt(size), BigInt(offset + done)), errno[0]),
    );
    return bytes;
  }

  /** Waits until everything written is on the disk. */
  sync(): void {
    sync(this.#fd, this.path);
  }

  /** Has the disk begin with what was written in `[start, end)`, so that `sync` has less to wait for. */
  beginSync(start: number, end: number): void {
    // Where it cannot be done nothing is lost: `sync` does it all, and says what goes wrong.
    libc().sys.sync_file_range(this.#fd, BigInt(start), BigInt(end - start), SYNC_FILE_RANGE_WRITE);
  }

  /** Closes it. Does nothing the second time. */
  [Symbol.dispose](): void {
    if (this.#closed) return;
    this.#closed = true;
    // The result does not matter: on Linux the descriptor is gone even where close reports an error.
    libc().sys.close(this.#fd);
  }

  #whole(syscall: string, length: number, call: (done: number, size: number) => number): void {
    transferWhole(syscall, length, call, {
      detail: () => this.path,
      ended: (done) => new OsError(syscall, Errno.EIO, `${this.path} ended after ${done} of ${length} bytes`),
    });
  }
}

/**
 * Where the next page of `[start, end)` of a file begins that is no hole; `end` where all of it is one. `start` is a multiple
 * of the page size. Of a file that does not say, all is taken for data.
 */
export function nextData(fd: number, start: number, end: number): number {
  const { sys, errno } = libc();
  const from = Number(sys.lseek(fd, BigInt(start), SEEK_DATA));
  if (from === -1) return errno[0] === Errno.ENXIO ? end : start; // ENXIO: nothing but holes from there on.
  // A file system may have smaller blocks than pages, and some files always say that they are at their beginning.
  return Math.min(end, Math.max(start, from - from % PAGE_SIZE));
}

/**
 * The next part of `[start, end)` of a file, whole pages, that may hold anything but zeros, `null` where there is none. To
 * a file system that knows no holes all is data.
 */
export function dataIn(fd: number, start: number, end: number): Span | null {
  if (start >= end) return null;
  const from = nextData(fd, start, end);
  if (from >= end) return null;
  const to = Number(libc().sys.lseek(fd, BigInt(from), SEEK_HOLE));
  // A file may end within a block.
  const last = Math.ceil(to / PAGE_SIZE) * PAGE_SIZE;
  return { start: Math.max(start, from), end: to <= from || last > end ? end : last };
}

const PATH_LENGTH = 4096;

/** A path that goes on meaning the same, wherever the process changes its working directory to. */
export function absolutePath(path: string): string {
  if (path.startsWith("/")) return path;
  const { sys, errno } = libc();
  const target = new Uint8Array(PATH_LENGTH);
  // SAFETY: the kernel writes at most the length of the buffer.
  const count = sys.readlink(cString("/proc/self/cwd"), target, BigInt(PATH_LENGTH));
  const length = unwrap(Number(count), errno[0], "readlink", () => "the working directory");
  return `${new TextDecoder().decode(target.subarray(0, length))}/${path}`;
}

/** Makes a directory. */
export function makeDirectory(path: string): void {
  const { sys, errno } = libc();
  unwrap(sys.mkdir(cString(path), 0o700), errno[0], "mkdir", () => path);
}

/** Whether there is something at `path`. */
export function exists(path: string): boolean {
  const { sys, errno } = libc();
  const bytes = new Uint8Array(STATX.size);
  // SAFETY: statx fills one struct statx, for which there is room.
  const result = sys.statx(AT_FDCWD, cString(path), 0, STATX_SIZE, bytes);
  if (result === 0) return true;
  if (errno[0] === Errno.ENOENT) return false;
  throw new OsError("statx", errno[0] ?? 0, path);
}

/**
 * Gives a directory its final name, which nothing may have yet, and waits until the disk has it. Where that fails it has
 * its old name.
 */
export function publishDirectory(from: string, to: string): void {
  withDirectory(from, (fd) => sync(fd, from));
  const parent = parentOf(to);
  // Opened before: a directory may be one to write to but not to read.
  withDirectory(parent, (fd) => {
    rename(from, to);
    try {
      sync(fd, parent);
    } catch (error) {
      rename(to, from);
      throw error;
    }
  });
}

/** Renames what is at `from` to `to`, where nothing may be yet. */
function rename(from: string, to: string): void {
  const { sys, errno } = libc();
  unwrap(
    sys.renameat2(AT_FDCWD, cString(from), AT_FDCWD, cString(to), RENAME_NOREPLACE),
    errno[0],
    "renameat2",
    () => `${from} to ${to}`,
  );
}

/** Removes a directory with the files named. What is not there is no error. */
export function removeDirectory(path: string, files: readonly string[]): void {
  const { sys } = libc();
  for (const file of files) sys.unlink(cString(`${path}/${file}`));
  sys.rmdir(cString(path));
}

function withDirectory(path: string, act: (fd: number) => void): void {
  const fd = open(path, O_RDONLY | O_DIRECTORY, 0);
  try {
    act(fd);
  } finally {
    libc().sys.close(fd);
  }
}

function parentOf(path: string): string {
  const trimmed = path.replace(/\/+$/, "");
  const slash = trimmed.lastIndexOf("/");
  return slash < 0 ? "." : slash === 0 ? "/" : trimmed.slice(0, slash);
}

function open(path: string, flags: number, mode: number): number {
  const { sys, errno } = libc();
  const text = cString(path);
  return uninterrupted("open", () => outcome(sys.open(text, flags | O_CLOEXEC, mode), errno[0]), () => path);
}

function sync(fd: number, path: string): void {
  const { sys, errno } = libc();
  uninterrupted("fsync", () => outcome(sys.fsync(fd), errno[0]), () => path);
}
