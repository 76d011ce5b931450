/**
 * Unix sockets that carry file descriptors: to other processes that share memory with this one.
 *
 * Why it is safe: the kernel gets one `struct msghdr` with one buffer and one control area, all of which belong to the
 * call and are kept alive until it returns, with the lengths they have. Descriptors that arrive are close-on-exec and
 * handed to the caller, who owns them; those that do not fit are closed by the kernel, and the caller is told.
 *
 * No call here waits, but for `waitFor`, which is given a time. A call that a signal interrupts is made again.
 *
 * @module
 */

import { DisposedError } from "../../src/core/errors.ts";
import { cString, libc } from "./libc.ts";
import { F_DUPFD_CLOEXEC, F_GETFL, O_CLOEXEC, O_NONBLOCK } from "./mman.ts";
import { Errno, OsError, unwrap } from "./os_error.ts";
import { lengthOf, plainBytes } from "./plain_bytes.ts";
import { Poll, pollOne } from "./poll.ts";
import { addressOf } from "./view.ts";

/** Whether a socket keeps the borders of messages ("seqpacket") or not ("stream"). */
export type SocketType = "stream" | "seqpacket";

/** Who sent a message, as the kernel vouches for it. */
export interface Credentials {
  /** The number of the process. */
  readonly pid: number;
  /** Its user. */
  readonly uid: number;
  /** Its group. */
  readonly gid: number;
}

/** What arrived. */
export interface Received {
  /** How many bytes; 0 where the other end has closed. */
  readonly length: number;
  /** The descriptors that came along; they are the caller's to close. */
  readonly fds: number[];
  /** Whether bytes or descriptors did not fit and are lost. */
  readonly truncated: boolean;
  /** Who sent it, where `passCredentials` asked for that. */
  readonly credentials: Credentials | null;
}

/** How many descriptors one message can carry: the kernel's SCM_MAX_FD. */
export const MAX_FDS = 253;

const AF_UNIX = 1;
const TYPES: Readonly<Record<SocketType, number>> = { stream: 1, seqpacket: 5 };
const SOL_SOCKET = 1;
const SO_TYPE = 3;
const SO_PASSCRED = 16;
const SO_RCVTIMEO = 20;
const SO_DOMAIN = 39;
const SCM_RIGHTS = 1;
const SCM_CREDENTIALS = 2;
const MSG_CTRUNC = 0x8;
const MSG_TRUNC = 0x20;
const MSG_DONTWAIT = 0x40;
const MSG_WAITALL = 0x100;
const MSG_NOSIGNAL = 0x4000;
const MSG_CMSG_CLOEXEC = 0x4000_0000;
const SHUT_WR = 1;
const SHUT_RDWR = 2;
const F_SETFD = 2;
const F_SETFL = 4;
const FD_CLOEXEC = 1;

/** The part of `struct sockaddr_un` there is: a family of two bytes and a path of at most 108 with its NUL. */
const MAX_PATH = 108;

/** Byte offsets in `struct msghdr` and `struct cmsghdr` of x86-64 Linux, and the size of `struct ucred`. */
const MSGHDR = { iov: 16, iovlen: 24, control: 32, controllen: 40, flags: 48, size: 56 } as const;
const CMSG = { level: 8, type: 12, data: 16 } as const;
const UCRED_SIZE = 12;

/** Room for the most descriptors a message can carry, and for who sent it. */
const CONTROL_SIZE = aligned(CMSG.data + 4 * MAX_FDS) + aligned(CMSG.data + UCRED_SIZE);

/** A connected Unix socket, which owns its descriptor. */
export class UnixSocket implements Disposable {
  readonly #fd: number;
  #disposed = false;
  // One of each for all calls: no two of a kind are under way at once.
  readonly #control = new DataView(new ArrayBuffer(CONTROL_SIZE));
  readonly #outgoing = new MessageHeader(this.#control);
  readonly #incoming = new MessageHeader(this.#control);
  #isPatient = false;

  private constructor(fd: number) {
    this.#fd = fd;
  }

  /** Takes over a descriptor that is open. */
  static own(fd: number): UnixSocket {
    return new UnixSocket(fd);
  }

  /**
   * A socket for a descriptor that somebody else has, such as an inherited one: it is duplicated, close-on-exec.
   *
   * @throws {OsError} If it is not open (EBADF).
   */
  static inherit(fd: number): UnixSocket {
    return new UnixSocket(duplicateFd(fd));
  }

  /**
   * Two sockets that are connected with each other.
   *
   * @throws {OsError} If the process has too many open files.
   */
  static pair(type: SocketType): [UnixSocket, UnixSocket] {
    const { sys, errno } = libc();
    const fds = new Int32Array(2);
    // SAFETY: the kernel writes two ints.
    unwrap(sys.socketpair(AF_UNIX, TYPES[type] | O_CLOEXEC, 0, fds), errno[0], "socketpair");
    return [new UnixSocket(fds[0] ?? -1), new UnixSocket(fds[1] ?? -1)];
  }

  /**
   * Connects to whoever listens at `path`; a leading "@" names an abstract address.
   *
   * @throws {RangeError} If the path is longer than the 107 bytes an address has room for.
   * @throws {OsError} If nobody listens there, or it may not be reached; EAGAIN where too many wait to be let in.
   */
  static connect(path: string, type: SocketType = "stream"): UnixSocket {
    const isAbstract = path.startsWith("@");
    const name = cString(path);
    if (name.length > MAX_PATH) throw new RangeError(`The path of a socket has at most ${MAX_PATH - 1} bytes`);
    if (isAbstract) name[0] = 0;
    const address = new Uint8Array(2 + (isAbstract ? name.length - 1 : name.length));
    address[0] = AF_UNIX;
    address.set(name.subarray(0, address.length - 2), 2);
    const { sys, errno } = libc();
    const fd = unwrap(sys.socket(AF_UNIX, TYPES[type] | O_CLOEXEC | O_NONBLOCK, 0), errno[0], "socket");
    try {
      // SAFETY: the kernel reads as many bytes as the address has.
      unwrap(sys.connect(fd, address, address.length), errno[0], "connect", () => `"${path}"`);
    } catch (error) {
      sys.close(fd);
      throw error;
    }
    return new UnixSocket(fd);
  }

  /**
   * The descriptor, which stays this object's to close.
   *
   * @throws {DisposedError} After dispose, as every other member does too.
   */
  get fd(): number {
    if (this.#disposed) throw new DisposedError("Socket");
    return this.#fd;
  }

  /** Whether it has been disposed. */
  get disposed(): boolean {
    return this.#disposed;
  }

  /**
   * Throws unless it is a Unix socket of that type: a descriptor from elsewhere may be anything.
   *
   * @throws {OsError} If it is another socket (EPROTOTYPE), or none (ENOTSOCK).
   */
  checkType(type: SocketType): void {
    const { sys, errno } = libc();
    const value = new Int32Array(1);
    const length = new Int32Array([4]);
    for (const [option, wanted] of [[SO_DOMAIN, AF_UNIX], [SO_TYPE, TYPES[type]]] as const) {
      // SAFETY: the kernel writes one int, for which there is room.
      unwrap(sys.getsockopt(this.fd, SOL_SOCKET, option, value, length), errno[0], "getsockopt");
      if (value[0] !== wanted) throw new OsError("getsockopt", Errno.EPROTOTYPE, `a Unix socket that is "${type}"`);
    }
  }

  /** Has every message that is received from now on say who sent it. */
  passCredentials(): void {
    const { sys, errno } = libc();
    // SAFETY: the kernel reads one int.
    unwrap(sys.setsockopt(this.fd, SOL_SOCKET, SO_PASSCRED, new Int32Array([1]), 4), errno[0], "setsockopt");
  }

  /** How long `receive` may wait, in milliseconds; above 0. Set once: until then it never waits. */
  set patience(milliseconds: number) {
    const { sys, errno } = libc();
    const flags = unwrap(sys.fcntl(this.fd, F_GETFL, 0), errno[0], "fcntl");
    unwrap(sys.fcntl(this.fd, F_SETFL, flags & ~O_NONBLOCK), errno[0], "fcntl");
    const seconds = Math.floor(milliseconds / 1000);
    const time = new BigInt64Array([BigInt(seconds), BigInt(Math.ceil((milliseconds - 1000 * seconds) * 1000))]);
    // SAFETY: the kernel reads one struct timeval.
    unwrap(
      sys.setsockopt(this.fd, SOL_SOCKET, SO_RCVTIMEO, new Int32Array(time.buffer), 16),
      errno[0],
      "setsockopt",
    );
    this.#isPatient = true;
  }

  /** Makes a child process inherit it, or not; it does not to begin with. */
  set inheritable(value: boolean) {
    const { sys, errno } = libc();
    unwrap(sys.fcntl(this.fd, F_SETFD, value ? 0 : FD_CLOEXEC), errno[0], "fcntl");
  }

  /**
   * Sends bytes, and duplicates of descriptors along with the first of them. Never waits.
   *
   * @param length How many of the bytes; all of them when left out. The same array again is sent faster.
   * @returns How many bytes went: all of them on a "seqpacket" socket. `null` where there is no room now.
   * @throws {OsError} EPIPE or ECONNRESET where the other end is closed, EMSGSIZE where a packet is too long.
   * @throws {RangeError} If there are more than `MAX_FDS` descriptors.
   */
  send(bytes: Uint8Array, fds: readonly number[] = [], length: number = lengthOf(bytes)): number | null {
    const { fd } = this;
    const header = this.#outgoing;
    if (!header.names(bytes)) header.name(plainBytes(bytes), bytes);
    if (fds.length > MAX_FDS) throw new RangeError(`A message carries ${MAX_FDS} file descriptors at most`);
    const control = fds.length === 0 ? 0 : CMSG.data + 4 * fds.length;
    if (control > 0) {
      this.#control.setUint32(0, control, true);
      this.#control.setUint32(4, 0, true);
      this.#control.setInt32(CMSG.level, SOL_SOCKET, true);
      this.#control.setInt32(CMSG.type, SCM_RIGHTS, true);
      fds.forEach((each, i) => this.#control.setInt32(CMSG.data + 4 * i, each, true));
    }
    header.prepare(length, aligned(control));
    const { sys, errno } = libc();
    while (true) {
      // SAFETY: as `prepare` says; the kernel reads all of it.
      const count = sys.sendmsg(fd, header.bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
      const code = count === -1 ? errno[0] ?? 0 : 0;
      if (code === 0) return count;
      if (code === Errno.EAGAIN) return null;
      if (code !== Errno.EINTR) throw new OsError("sendmsg", code);
    }
  }

  /**
   * Receives bytes and descriptors.
   *
   * @param waits Whether it waits, for as long as `patience` or until a signal, for as many bytes as there is room for.
   * @param length For how many bytes there is room; all of `into` when left out. The same array again is filled faster.
   * @returns What has arrived, or `null` where nothing has. A length of 0 says that the other end is closed.
   * @throws {OsError} ECONNRESET where the other end closed before it had read everything.
   */
  receive(into: Uint8Array<ArrayBuffer>, waits = false, length: number = into.length): Received | null {
    const { fd } = this;
    const { sys, errno } = libc();
    const mayWait = waits && this.#isPatient;
    const waitFlag = mayWait ? MSG_WAITALL : MSG_DONTWAIT;
    const header = this.#incoming;
    if (!header.names(into)) header.name(into, into);
    while (true) {
      header.prepare(length, CONTROL_SIZE);
      // SAFETY: as `prepare` says; the kernel writes at most the lengths named there.
      const count = sys.recvmsg(fd, header.bytes, waitFlag | MSG_CMSG_CLOEXEC);
      const code = count === -1 ? errno[0] ?? 0 : 0;
      if (code === Errno.EAGAIN || (code === Errno.EINTR && mayWait)) return null;
      if (code === Errno.EINTR) continue;
      if (code !== 0) throw new OsError("recvmsg", code);
      const truncated = (header.flags & (MSG_TRUNC | MSG_CTRUNC)) !== 0;
      if (header.controlLength === 0) return { length: count, fds: [], credentials: null, truncated };
      const { fds, credentials } = this.#readControl(header.controlLength);
      return { length: count, fds, credentials, truncated };
    }
  }

  /**
   * Waits until there is something to receive, or room to send.
   *
   * @param timeout In milliseconds; -1 for no end.
   * @returns Whether it came to that. The end of the connection counts.
   */
  waitFor(what: "receive" | "send", timeout: number): boolean {
    return pollOne(this.fd, what === "receive" ? Poll.IN : Poll.OUT, timeout) !== 0;
  }

  /** Ends the connection for both sides, whoever else has the descriptor. */
  shutdown(): void {
    libc().sys.shutdown(this.fd, SHUT_RDWR);
  }

  /** Sends nothing any more, which the other end sees as the end. What it still does can be received and watched. */
  endSending(): void {
    libc().sys.shutdown(this.fd, SHUT_WR);
  }

  /** Closes it. */
  [Symbol.dispose](): void {
    if (this.#disposed) return;
    this.#disposed = true;
    libc().sys.close(this.#fd);
  }

  #readControl(end: number): { fds: number[]; credentials: Credentials | null } {
    const view = this.#control;
    const fds: number[] = [];
    let credentials: Credentials | null = null;
    for (let at = 0; at + CMSG.data <= end;) {
      const length = Number(view.getBigUint64(at, true));
      if (length < CMSG.data) break;
      const data = at + CMSG.data;
      if (view.getInt32(at + CMSG.level, true) === SOL_SOCKET) {
        const type = view.getInt32(at + CMSG.type, true);
        if (type === SCM_RIGHTS) { for (let i = data; i + 4 <= at + length; i += 4) fds.push(view.getInt32(i, true)); }
        if (type === SCM_CREDENTIALS) {
          const [pid, uid, gid] = [0, 4, 8].map((offset) => view.getInt32(data + offset, true));
          credentials = { pid: pid ?? 0, uid: uid ?? 0, gid: gid ?? 0 };
        }
      }
      at += aligned(length);
    }
    return { fds, credentials };
  }
}

/** A `struct msghdr` with one buffer and a control area. */
class MessageHeader {
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly #view = new DataView(new ArrayBuffer(MSGHDR.size));
  /** The struct iovec: an address and a length, in halves. */
  readonly #vector = new Uint32Array(4);
  /** What the address is kept of, so that it stays where it is. */
  #kept: Uint8Array<ArrayBuffer> | undefined;
  #named: Uint8Array | undefined;

  constructor(control: DataView<ArrayBuffer>) {
    this.bytes = new Uint8Array(this.#view.buffer);
    this.#view.setBigUint64(MSGHDR.iov, BigInt(addressOf(this.#vector)), true);
    this.#view.setBigUint64(MSGHDR.iovlen, 1n, true);
    this.#view.setBigUint64(MSGHDR.control, BigInt(addressOf(control)), true);
  }

  /** Whether the buffer is `bytes` already. */
  names(bytes: Uint8Array): boolean {
    return this.#named === bytes;
  }

  /** Takes a buffer: `plain` is on the bytes of `bytes`. */
  name(plain: Uint8Array<ArrayBuffer>, bytes: Uint8Array): void {
    const address = plain.length === 0 ? 0 : addressOf(plain);
    this.#kept = plain;
    this.#named = bytes;
    this.#vector[0] = address;
    this.#vector[1] = address / 2 ** 32;
  }

  /** Makes ready for a call: so many bytes of the buffer, and so many of the control area. Both outlive the call. */
  prepare(length: number, control: number): void {
    if (length > (this.#kept?.length ?? 0)) throw new RangeError(`There are no ${length} bytes to send`);
    this.#vector[2] = length;
    this.#view.setUint32(MSGHDR.controllen, control, true);
    this.#view.setInt32(MSGHDR.flags, 0, true);
  }

  /** What the kernel said of what it received. */
  get flags(): number {
    return this.#view.getInt32(MSGHDR.flags, true);
  }

  /** How much of the control area it filled. */
  get controlLength(): number {
    return this.#view.getUint32(MSGHDR.controllen, true);
  }
}

/**
 * Another descriptor of the same open file, close-on-exec.
 *
 * @throws {OsError} If `fd` is not open, or the process has too many open files.
 */
export function duplicateFd(fd: number): number {
  const { sys, errno } = libc();
  return unwrap(sys.fcntl(fd, F_DUPFD_CLOEXEC, 3), errno[0], "fcntl", () => `file descriptor ${fd}`);
}

/** Closes descriptors that arrived and are not wanted. */
export function closeFds(fds: readonly number[]): void {
  for (const fd of fds) libc().sys.close(fd);
}

/** Control messages begin at multiples of eight bytes. */
function aligned(length: number): number {
  return (length + 7) & ~7;
}
