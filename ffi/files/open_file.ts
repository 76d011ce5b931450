/**
 * One open file that can be mapped: its descriptor, counted references to it, and what was learned about it.
 *
 * Why it is safe: the descriptor is this object's own (made here, or duplicated by the caller) and is closed once, when
 * the last reference goes. The structs the kernel fills have the sizes of x86-64 Linux, which do not change.
 *
 * @module
 */

import { MembackingError } from "../../src/core/errors.ts";
import { hex } from "../../src/core/hex.ts";
import { PAGE_SIZE } from "../../src/core/memory_range.ts";
import { FileMapping } from "../os/address_space.ts";
import { cString, libc } from "../os/libc.ts";
import {
  F_GET_SEALS,
  F_GETFL,
  F_SEAL_FUTURE_WRITE,
  F_SEAL_GROW,
  F_SEAL_SEAL,
  F_SEAL_SHRINK,
  F_SEAL_WRITE,
  O_ACCMODE,
  O_RDWR,
  O_WRONLY,
  PROT_READ,
  PROT_WRITE,
} from "../os/mman.ts";
import { Errno, OsError, unwrap } from "../os/os_error.ts";
import { outcome, uninterrupted } from "../os/uninterrupted.ts";

/** The part of `struct statx` that is read, as byte offsets. */
export const STATX = { size: 256, stx_uid: 20, stx_gid: 24, stx_mode: 28, stx_size: 40 } as const;

/** The part of `struct statfs` that is read, as byte offsets. */
export const STATFS = { size: 120, f_type: 0, f_bsize: 8 } as const;

/** What `statx` is asked for: what `stat` tells. */
export const STATX_BASIC_STATS = 0x7ff;
const AT_EMPTY_PATH = 0x1000;

const HUGETLBFS_MAGIC = 0x958458f6;

// File systems whose mmap, once it has worked for a file, cannot fail but for want of memory: tmpfs (and with it every
// memfd), ext2/3/4, xfs, btrfs. Others, such as FUSE or a network, may change their mind.
const STEADY_FILE_SYSTEMS: ReadonlySet<number> = new Set([0x01021994, 0xef53, 0x58465342, 0x9123683e]);

const S_IFMT = 0o170000;
const S_IFREG = 0o100000;
const KINDS: Readonly<Record<number, string>> = {
  0o010000: "a pipe",
  0o020000: "a character device",
  0o040000: "a directory",
  0o060000: "a block device",
  0o120000: "a symbolic link",
  0o140000: "a socket",
};

const WRITE_SEALS = F_SEAL_WRITE | F_SEAL_FUTURE_WRITE;
/** A file that knows no seals can never get any, which is what F_SEAL_SEAL says. */
const NO_SEALS = F_SEAL_SEAL;
const SIZE_SEALS = F_SEAL_SHRINK | F_SEAL_GROW;

/** A memfd open for writing, sealed against resizing and further seals. */
export interface SealedMemfd {
  /** Its size in bytes. */
  readonly size: number;
  /** Its page size in bytes; more than 4096 for hugetlb. */
  readonly pageSize: number;
}

/** Where a descriptor comes from, and what its user knows of it. */
export interface Origin {
  /**
   * Another thread owns the descriptor and keeps it open at least until `afterRelease` is called: it is never closed
   * here. `false` when left out.
   */
  readonly borrowed?: boolean;
  /** Whether someone else may have the file open as well: `true` for all but a memfd that was made here. */
  readonly shared: boolean;
  /** Whether the user vouches that nobody truncates it or punches holes into it. */
  readonly fixedSize?: boolean;
  /** Of a memfd that was made just now the maker knows all there is to ask. */
  readonly facts?: SealedMemfd;
}

/** Wants to know before others can get at the file, and may refuse by throwing. Must call `proceed` otherwise. */
export interface HandOutWatcher {
  /** The descriptor is handed out when `proceed` returns, and not before. */
  handOut(file: OpenFile, proceed: () => void): void;
}

/** What all clones of one `Mappable` share. Two handles are of one file exactly if they share this object. */
export class OpenFile {
  /** The descriptor. */
  readonly fd: number;
  /** What messages call it, such as `memfd "ram"`. */
  readonly label: string;
  /** The contents, where it only stands in for a file; `null` for real ones. */
  get bytes(): ArrayBuffer | null {
    return null;
  }
  /** The unit it is mapped in, in bytes: 4096, or the page size of the hugetlb file system it is on. */
  readonly pageSize: number;
  /** Whether it lives on a hugetlb file system (hugetlb memfds do). */
  readonly hugetlb: boolean;
  /** Whether it can be sealed: memfds can, unless that is sealed. */
  readonly sealable: boolean;
  /** Whether mapping it may fail after the kernel has already taken away what was there before. */
  readonly mayFailLate: boolean;
  #references = 1;
  #freezes = 0;
  #revoked = false;
  #afterRelease: (() => void) | undefined;
  readonly #borrowed: boolean;
  readonly #vouched: boolean;
  readonly #canShrink: boolean;
  #handedOut: boolean;
  readonly #watchers = new Set<HandOutWatcher>();
  #openForWriting: boolean;
  #fixedSize: number | undefined;
  #fixedSeals: number | undefined;

  /**
   * Takes over `fd`, and closes it if the file turns out to be unusable, unless it is borrowed.
   *
   * @throws {OsError} If the file is not of a kind that can be mapped, or was opened without the right to read.
   */
  constructor(fd: number, label: string, { borrowed = false, shared, fixedSize = false, facts }: Origin) {
    this.fd = fd;
    this.label = label;
    this.#borrowed = borrowed;
    this.#vouched = fixedSize;
    this.#handedOut = shared;
    if (facts !== undefined) {
      this.#openForWriting = true;
      this.#fixedSize = facts.size;
      this.#fixedSeals = SIZE_SEALS | F_SEAL_SEAL;
      this.hugetlb = this.mayFailLate = facts.pageSize > PAGE_SIZE;
      this.pageSize = facts.pageSize;
      this.sealable = true;
      this.#canShrink = false;
      return;
    }
    try {
      this.#openForWriting = accessMode(fd, label) === O_RDWR;
      const size = regularFileSize(fd, label);
      const { type, blockSize } = fileSystem(fd, label);
      this.hugetlb = type === HUGETLBFS_MAGIC;
      this.pageSize = this.hugetlb ? blockSize : PAGE_SIZE;
      this.mayFailLate = this.hugetlb || !STEADY_FILE_SYSTEMS.has(type);
      const known = libc().sys.fcntl(fd, F_GET_SEALS, 0);
      const seals = known === -1 ? NO_SEALS : known;
      this.sealable = (seals & F_SEAL_SEAL) === 0;
      if ((seals & F_SEAL_SEAL) !== 0) this.#fixedSeals = seals;
      if (fixedSize || (seals & SIZE_SEALS) === SIZE_SEALS) this.#fixedSize = size;
      this.#canShrink = (seals & F_SEAL_SHRINK) === 0;
    } catch (error) {
      if (!borrowed) libc().sys.close(fd);
      throw error;
    }
  }

  /**
   * Whether memory of it may go away under a mapping, after which touching the mapping is SIGBUS: someone may truncate
   * it, or, of hugetlb, punch a hole while the pool of huge pages is empty. Then it is read and written by the kernel,
   * and cannot be locked.
   */
  get truncatable(): boolean {
    return !this.#vouched && (this.#canShrink || (this.hugetlb && this.#handedOut));
  }

  /** Whether the user has vouched that nobody truncates it or punches holes into it. */
  get vouched(): boolean {
    return this.#vouched;
  }

  /** Whether somebody else may have it: it came from outside, or its descriptor was handed out. */
  get handedOut(): boolean {
    return this.#handedOut;
  }

  /**
   * The descriptor, for somebody else: it may be sent anywhere from now on.
   *
   * @throws Whatever a watcher throws that does not allow it; it has not been handed out then.
   */
  handOut(): number {
    if (this.isFrozen) {
      throw new MembackingError(
        `The descriptor of ${this.label} cannot be handed out while a frozen guest, a template or a clone needs it as it is`,
      );
    }
    if (!this.#handedOut) {
      const allow = () => void (this.#handedOut = true);
      [...this.#watchers].reduce<() => void>((proceed, watcher) => () => watcher.handOut(this, proceed), allow)();
    }
    return this.fd;
  }

  /** Says that others have the descriptor, where nobody can mind: no memory of it shows, or it was handed out before. */
  markHandedOut(): void {
    this.#handedOut = true;
  }

  /** Tells `watcher` before the descriptor is handed out for the first time, until `unwatch`. */
  watch(watcher: HandOutWatcher): void {
    this.#watchers.add(watcher);
  }

  /** Tells `watcher` no longer. */
  unwatch(watcher: HandOutWatcher): void {
    this.#watchers.delete(watcher);
  }

  /** Why memory of it cannot be locked, and what to do about it; of use where `truncatable` is true. */
  get whyUnsteady(): string {
    if (!this.#canShrink) {
      return `the descriptor of ${this.label} was handed out, and whoever has it may punch holes into huge pages: ` +
        "make it with fixedSize: true if nobody will";
    }
    const seal = this.sealable ? "seal it with F_SEAL_SHRINK, or " : "";
    const how = this.label.startsWith("memfd") ? "make" : "open";
    return `someone may truncate ${this.label}: ${seal}${how} it with fixedSize: true if nobody will`;
  }

  /** Whether its owner has taken it back, so that the descriptor may be another file's by now. */
  get revoked(): boolean {
    return this.#revoked;
  }

  /** Says that the owner of a borrowed descriptor takes it back. */
  revoke(): void {
    this.#revoked = true;
  }

  /** Calls `act` once the last holder has let go. */
  afterRelease(act: () => void): void {
    this.#afterRelease = act;
  }

  /** The size in bytes, now: asked from the kernel each time unless seals forbid it to change. */
  get size(): number {
    return this.#fixedSize ?? regularFileSize(this.fd, this.label);
  }

  /** Whether it can be mapped for writing: opened for reading and writing, and no seal against writing. */
  get writable(): boolean {
    return this.#openForWriting && this.#freezes === 0 &&
      ((this.#fixedSeals ?? readSeals(this.fd)) & WRITE_SEALS) === 0;
  }

  /**
   * Maps one page for a moment, to learn now rather than later whether the file can be mapped at all.
   *
   * @throws {OsError} If it cannot.
   */
  probe(): void {
    if (this.hugetlb) return; // It can, and a page of it may be scarce.
    try {
      using _mapping = new FileMapping(this.fd, 0, PAGE_SIZE, this.writable ? PROT_READ | PROT_WRITE : PROT_READ);
    } catch (cause) {
      if (!(cause instanceof OsError)) throw cause;
      throw new OsError("mmap", cause.errno, `${this.label} cannot be mapped into memory`, { cause });
    }
  }

  /** Whether it can be written, were it not for seals and for those who need it as it is. */
  get isOpenForWriting(): boolean {
    return this.#openForWriting;
  }

  /** How many hold it. */
  get references(): number {
    return this.#references;
  }

  /** Whether somebody needs it as it is. */
  get isFrozen(): boolean {
    return this.#freezes > 0;
  }

  /**
   * Throws while somebody needs it as it is.
   *
   * @throws {MembackingError} Saying who.
   */
  checkNotFrozen(): void {
    if (!this.isFrozen) return;
    throw new MembackingError(
      `${this.label} cannot be written while a frozen guest, a template or a clone needs it as it is`,
    );
  }

  /** Keeps it as it is until the result is disposed: it cannot be written or handed out. */
  freeze(): Disposable {
    this.#freezes++;
    let frozen = true;
    return {
      [Symbol.dispose]: () => {
        if (frozen) this.#freezes--;
        frozen = false;
      },
    };
  }

  /** Counts one more holder. */
  retain(): this {
    this.#references++;
    return this;
  }

  /** Counts one holder less; the last one closes the descriptor. */
  release(): void {
    if (--this.#references > 0) return;
    // The result does not matter: on Linux the descriptor is gone even where close reports an error.
    if (!this.#borrowed) libc().sys.close(this.fd);
    this.#afterRelease?.();
  }

  /** Throws unless `[offset, offset + length)` lies within the file. */
  checkBounds(offset: number, length: number): void {
    const { size } = this;
    if (offset + length > size) {
      throw new RangeError(
        `${hex(length)} bytes at offset ${hex(offset)} go past the end of ${this.label}, which has ${hex(size)} bytes`,
      );
    }
  }

  /** Throws if the file ends before the page that `offset + length` ends, as when someone has made it shorter. */
  checkReaches(offset: number, length: number): void {
    const { size } = this;
    if (size + PAGE_SIZE - 1 < offset + length) throw this.shortTransfer(size);
  }

  /** An error for a transfer that ended before it was whole, as when someone shortens the file meanwhile. */
  shortTransfer(offset: number): MembackingError {
    return new MembackingError(`${this.label} ended at offset ${hex(offset)} while it was being accessed`);
  }
}

/** The access mode `fd` was opened with. */
function accessMode(fd: number, label: string): number {
  const { sys, errno } = libc();
  const mode = unwrap(sys.fcntl(fd, F_GETFL, 0), errno[0], "fcntl", () => label) & O_ACCMODE;
  if (mode === O_WRONLY) {
    throw new OsError("mmap", Errno.EACCES, `${label} is open for writing only, mapping it needs reading too`);
  }
  return mode;
}

/** The size of a file of a kind that memory can be made of: a regular one, or one without a kind, such as a dma-buf. */
function regularFileSize(fd: number, label: string): number {
  const { sys, errno } = libc();
  const bytes = new Uint8Array(STATX.size);
  // SAFETY: statx fills one struct statx, for which there is room.
  const path = cString("");
  uninterrupted(
    "statx",
    () => outcome(sys.statx(fd, path, AT_EMPTY_PATH, STATX_BASIC_STATS, bytes), errno[0]),
    () => label,
  );
  const view = new DataView(bytes.buffer);
  const kind = view.getUint16(STATX.stx_mode, true) & S_IFMT;
  if (kind !== S_IFREG && kind !== 0) {
    throw new OsError(
      "mmap",
      Errno.ENODEV,
      `${label} is ${KINDS[kind] ?? "of an unknown kind"}, and only files and memfds can back guest memory`,
    );
  }
  return Number(view.getBigUint64(STATX.stx_size, true));
}

function fileSystem(fd: number, label: string): { type: number; blockSize: number } {
  const { sys, errno } = libc();
  const bytes = new Uint8Array(STATFS.size);
  // SAFETY: fstatfs fills one struct statfs, for which there is room.
  uninterrupted("fstatfs", () => outcome(sys.fstatfs(fd, bytes), errno[0]), () => label);
  const view = new DataView(bytes.buffer);
  return { type: view.getUint32(STATFS.f_type, true), blockSize: Number(view.getBigInt64(STATFS.f_bsize, true)) };
}

/** The seals of a file that knows seals. */
function readSeals(fd: number): number {
  const seals = libc().sys.fcntl(fd, F_GET_SEALS, 0);
  return seals === -1 ? NO_SEALS : seals;
}
