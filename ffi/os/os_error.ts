/**
 * What a failed system call looks like.
 *
 * Why it is safe: no unsafe code here; this file turns numbers into errors.
 *
 * @module
 */

import { MembackingError } from "../../src/core/errors.ts";

/** The `errno` values this package compares with (Linux, x86-64). */
export const Errno = {
  EPERM: 1,
  ENOENT: 2,
  ESRCH: 3,
  EINTR: 4,
  EIO: 5,
  ENXIO: 6,
  EAGAIN: 11,
  ENOMEM: 12,
  EACCES: 13,
  EFAULT: 14,
  EBUSY: 16,
  EEXIST: 17,
  ENODEV: 19,
  ENOTDIR: 20,
  EINVAL: 22,
  ENOTTY: 25,
  ENOSPC: 28,
  EPIPE: 32,
  EPROTOTYPE: 91,
  ECONNRESET: 104,
  ETOOMANYREFS: 109,
  ETIMEDOUT: 110,
} as const satisfies Readonly<Record<string, number>>;

// Number -> name and meaning. The ones that the calls of this package can return; any other shows as its number.
const NAMES: Readonly<Record<number, readonly [code: string, meaning: string]>> = {
  1: ["EPERM", "operation not permitted"],
  2: ["ENOENT", "no such file or directory"],
  3: ["ESRCH", "no such process or thread"],
  4: ["EINTR", "interrupted by a signal"],
  5: ["EIO", "input/output error"],
  6: ["ENXIO", "no such device or address"],
  7: ["E2BIG", "argument list too long"],
  9: ["EBADF", "bad file descriptor"],
  11: ["EAGAIN", "temporarily unavailable"],
  12: ["ENOMEM", "out of memory, of mappings or of address space"],
  13: ["EACCES", "permission denied"],
  14: ["EFAULT", "bad address"],
  16: ["EBUSY", "busy"],
  17: ["EEXIST", "something is there already"],
  19: ["ENODEV", "no such device, or not possible with this kind of file"],
  20: ["ENOTDIR", "not a directory"],
  21: ["EISDIR", "is a directory"],
  22: ["EINVAL", "invalid argument"],
  23: ["ENFILE", "too many open files in the system"],
  24: ["EMFILE", "too many open files"],
  25: ["ENOTTY", "not a request this file understands"],
  26: ["ETXTBSY", "the file is being executed"],
  27: ["EFBIG", "file too large"],
  28: ["ENOSPC", "no space left"],
  29: ["ESPIPE", "not seekable"],
  30: ["EROFS", "read-only file system"],
  32: ["EPIPE", "the other end is closed"],
  34: ["ERANGE", "out of range"],
  36: ["ENAMETOOLONG", "name too long"],
  38: ["ENOSYS", "not in this kernel"],
  40: ["ELOOP", "too many symbolic links"],
  75: ["EOVERFLOW", "value too large"],
  88: ["ENOTSOCK", "not a socket"],
  90: ["EMSGSIZE", "message too long"],
  91: ["EPROTOTYPE", "a socket of another type"],
  95: ["EOPNOTSUPP", "not supported"],
  104: ["ECONNRESET", "the other end has closed the connection"],
  106: ["EISCONN", "connected already"],
  107: ["ENOTCONN", "not connected"],
  109: ["ETOOMANYREFS", "too many file descriptors are on their way"],
  110: ["ETIMEDOUT", "timed out"],
  111: ["ECONNREFUSED", "nobody listens there"],
  122: ["EDQUOT", "quota exceeded"],
  133: ["EHWPOISON", "memory page has a hardware error"],
};

/** A system call failed. */
export class OsError extends MembackingError {
  /** The class name, which is also what a stack trace shows. */
  override name = "OsError";
  /** The system call, such as `mmap`, or for an ioctl its name, such as `KVM_CREATE_VM`. */
  readonly syscall: string;
  /** The kernel's error number. */
  readonly errno: number;
  /** The error number's name, such as `ENOMEM`; `errno <number>` for one without a name here. */
  readonly code: string;

  /** Builds the error; `detail` says what was being done, or what to do about it. */
  constructor(syscall: string, errno: number, detail?: string, options?: { cause?: unknown }) {
    const [code, meaning] = NAMES[errno] ?? [`errno ${errno}`, undefined];
    const what = `${syscall} failed with ${code}${meaning === undefined ? "" : ` (${meaning})`}`;
    super(detail === undefined ? what : `${what}: ${detail}`, options);
    this.syscall = syscall;
    this.errno = errno;
    this.code = code;
  }
}

/**
 * The result of a system call, or an `OsError` where it is -1.
 *
 * Takes `errno` as an argument so that it is read right after the call, before anything else can run:
 * `unwrap(sys.close(fd), errno[0], "close")`.
 *
 * @throws {OsError} If `result` is -1.
 */
export function unwrap(result: number, errno: number | undefined, syscall: string, detail?: () => string): number {
  if (result === -1) throw new OsError(syscall, errno ?? 0, detail?.());
  return result;
}
