/**
 * The C library: the only place of the package that opens a shared library.
 *
 * Why it is safe: nothing here dereferences an address by itself. Each symbol stands under its C prototype, and its
 * parameter list is that prototype's on x86-64 Linux (LP64: `long`, `size_t`, `off_t` and pointers are 64 bits). Where
 * a C result is wider than the declared one, the comment says why the low 32 bits are enough. What the *calls* may do
 * to memory is justified where they are made.
 *
 * Why it is fast: synchronous symbols without structs get a direct call from JIT-compiled code. 64-bit arguments are
 * passed as `bigint`; a `number` would leave the fast path. A result of type "i32" needs no `bigint`, and, since nothing
 * is allocated between the C call and the next instruction, `errno` can be read reliably after it.
 *
 * @module
 */

import { MembackingError } from "../../src/core/errors.ts";

const SYMBOLS = {
  // Memory. Addresses are integers on purpose: a pointer object per call would cost an allocation.

  // void *mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset);
  // For MAP_FIXED alone, where the address is known before: only failure is of interest. MAP_FAILED is all ones, so -1
  // in the low half; a page-aligned address never is.
  mmap: { name: "mmap", parameters: ["usize", "usize", "i32", "i32", "i32", "i64"], result: "i32" },
  // The same function for a fresh address.
  mmapFresh: { name: "mmap", parameters: ["usize", "usize", "i32", "i32", "i32", "i64"], result: "usize" },
  // int munmap(void *addr, size_t length);
  munmap: { parameters: ["usize", "usize"], result: "i32" },
  // int mprotect(void *addr, size_t len, int prot);
  mprotect: { parameters: ["usize", "usize", "i32"], result: "i32" },
  // void *mremap(void *old, size_t old_size, size_t new_size, int flags, void *new);
  // With MREMAP_FIXED alone, so the low half of the result tells failure, as for mmap.
  mremap: { parameters: ["usize", "usize", "usize", "i32", "usize"], result: "i32" },
  // int madvise(void *addr, size_t length, int advice);
  madvise: { parameters: ["usize", "usize", "i32"], result: "i32" },
  // int msync(void *addr, size_t length, int flags);
  msync: { parameters: ["usize", "usize", "i32"], result: "i32" },
  // int mlock(const void *addr, size_t len);
  mlock: { parameters: ["usize", "usize"], result: "i32" },
  // int munlock(const void *addr, size_t len);
  munlock: { parameters: ["usize", "usize"], result: "i32" },
  // ssize_t process_vm_writev(pid_t pid, const struct iovec *local, unsigned long local_count,
  //                           const struct iovec *remote, unsigned long remote_count, unsigned long flags);
  // Used for less than 2 GiB at a time, so that the result fits 32 bits.
  process_vm_writev: { parameters: ["i32", "buffer", "usize", "buffer", "usize", "usize"], result: "i32" },

  // int prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, unsigned long addr, unsigned long size, const char *name);
  // Variadic, with integers and a pointer.
  prctlName: { name: "prctl", parameters: ["i32", "usize", "usize", "usize", "buffer"], result: "i32" },

  // Files. The variadic ones (open, fcntl, ioctl, syscall) take integers only, which the x86-64 calling convention
  // passes in the same registers whether a function is variadic or not.

  // int open(const char *pathname, int flags, mode_t mode);
  open: { parameters: ["buffer", "i32", "u32"], result: "i32" },
  // int close(int fd);
  close: { parameters: ["i32"], result: "i32" },
  // ssize_t read(int fd, void *buf, size_t count);
  // Linux transfers at most 0x7ffff000 bytes per call, so the result of these four fits 32 bits.
  read: { parameters: ["i32", "buffer", "usize"], result: "i32" },
  // ssize_t write(int fd, const void *buf, size_t count);
  write: { parameters: ["i32", "buffer", "usize"], result: "i32" },
  // ssize_t pread(int fd, void *buf, size_t count, off_t offset);
  pread: { parameters: ["i32", "buffer", "usize", "i64"], result: "i32" },
  // ssize_t pwrite(int fd, const void *buf, size_t count, off_t offset);
  pwrite: { parameters: ["i32", "buffer", "usize", "i64"], result: "i32" },
  // The same functions on memory that is known by its address.
  preadAt: { name: "pread", parameters: ["i32", "usize", "usize", "i64"], result: "i32" },
  pwriteAt: { name: "pwrite", parameters: ["i32", "usize", "usize", "i64"], result: "i32" },
  // off_t lseek(int fd, off_t offset, int whence);
  lseek: { parameters: ["i32", "i64", "i32"], result: "i64" },
  // int fsync(int fd);
  fsync: { parameters: ["i32"], result: "i32" },
  // int sync_file_range(int fd, off64_t offset, off64_t nbytes, unsigned int flags);
  sync_file_range: { parameters: ["i32", "i64", "i64", "u32"], result: "i32" },
  // int mkdir(const char *pathname, mode_t mode);
  mkdir: { parameters: ["buffer", "u32"], result: "i32" },
  // int unlink(const char *pathname);
  unlink: { parameters: ["buffer"], result: "i32" },
  // int rmdir(const char *pathname);
  rmdir: { parameters: ["buffer"], result: "i32" },
  // int renameat2(int olddirfd, const char *oldpath, int newdirfd, const char *newpath, unsigned int flags);
  renameat2: { parameters: ["i32", "buffer", "i32", "buffer", "u32"], result: "i32" },
  // int memcmp(const void *s1, const void *s2, size_t n);
  memcmp: { parameters: ["usize", "usize", "usize"], result: "i32" },
  // int fcntl(int fd, int cmd, int arg);
  fcntl: { parameters: ["i32", "i32", "i32"], result: "i32" },
  // int memfd_create(const char *name, unsigned int flags);
  memfd_create: { parameters: ["buffer", "u32"], result: "i32" },
  // int ftruncate(int fd, off_t length);
  ftruncate: { parameters: ["i32", "i64"], result: "i32" },
  // int fallocate(int fd, int mode, off_t offset, off_t len);
  fallocate: { parameters: ["i32", "i32", "i64", "i64"], result: "i32" },
  // int statx(int dirfd, const char *pathname, int flags, unsigned int mask, struct statx *statxbuf);
  // Not fstat: older C libraries have it as an inline function only, and struct statx is the same everywhere.
  statx: { parameters: ["i32", "buffer", "i32", "u32", "buffer"], result: "i32" },
  // ssize_t readlink(const char *pathname, char *buf, size_t bufsiz);
  readlink: { parameters: ["buffer", "buffer", "usize"], result: "i32" },
  // int fstatfs(int fd, struct statfs *buf);
  fstatfs: { parameters: ["i32", "buffer"], result: "i32" },
  // int eventfd(unsigned int initval, int flags);
  eventfd: { parameters: ["u32", "i32"], result: "i32" },

  // Sockets. Lengths and counts that fit 32 bits: a socket transfers less than 2 GiB a call.

  // int socketpair(int domain, int type, int protocol, int sv[2]);
  socketpair: { parameters: ["i32", "i32", "i32", "buffer"], result: "i32" },
  // int socket(int domain, int type, int protocol);
  socket: { parameters: ["i32", "i32", "i32"], result: "i32" },
  // int connect(int sockfd, const struct sockaddr *addr, socklen_t addrlen);
  connect: { parameters: ["i32", "buffer", "u32"], result: "i32" },
  // int getsockopt(int sockfd, int level, int optname, void *optval, socklen_t *optlen);
  getsockopt: { parameters: ["i32", "i32", "i32", "buffer", "buffer"], result: "i32" },
  // int setsockopt(int sockfd, int level, int optname, const void *optval, socklen_t optlen);
  setsockopt: { parameters: ["i32", "i32", "i32", "buffer", "u32"], result: "i32" },
  // int shutdown(int sockfd, int how);
  shutdown: { parameters: ["i32", "i32"], result: "i32" },
  // ssize_t sendmsg(int sockfd, const struct msghdr *msg, int flags);
  sendmsg: { parameters: ["i32", "buffer", "i32"], result: "i32" },
  // ssize_t recvmsg(int sockfd, struct msghdr *msg, int flags);
  recvmsg: { parameters: ["i32", "buffer", "i32"], result: "i32" },
  // int poll(struct pollfd *fds, nfds_t nfds, int timeout);
  poll: { parameters: ["buffer", "usize", "i32"], result: "i32" },
  // int epoll_create1(int flags);
  epoll_create1: { parameters: ["i32"], result: "i32" },
  // int epoll_ctl(int epfd, int op, int fd, struct epoll_event *event);
  epoll_ctl: { parameters: ["i32", "i32", "i32", "buffer"], result: "i32" },
  // int epoll_wait(int epfd, struct epoll_event *events, int maxevents, int timeout);
  epoll_wait: { parameters: ["i32", "buffer", "i32", "i32"], result: "i32" },
  // The same on a thread of the runtime's, as a promise. `errno` does not come back from there.
  epollWaitAsync: {
    name: "epoll_wait",
    parameters: ["i32", "buffer", "i32", "i32"],
    result: "i32",
    nonblocking: true,
  },

  // int ioctl(int fd, unsigned long request, void *arg);
  // The kernel takes the request as an unsigned int, so the high half of its register does not matter.
  ioctl: { parameters: ["i32", "u32", "buffer"], result: "i32" },
  // The same function with an integer argument.
  ioctlValue: { name: "ioctl", parameters: ["i32", "u32", "usize"], result: "i32" },

  // Threads and system calls without a wrapper.

  // pid_t getpid(void);
  getpid: { parameters: [], result: "i32" },
  // long syscall(SYS_gettid);
  // These three return an int-sized value or -1.
  syscall0: { name: "syscall", parameters: ["i64"], result: "i32" },
  // long syscall(SYS_tgkill, pid_t tgid, pid_t tid, int sig);
  syscall3: { name: "syscall", parameters: ["i64", "i64", "i64", "i64"], result: "i32" },
  // long syscall(SYS_mbind, void *addr, unsigned long len, int mode, const unsigned long *nodemask,
  //              unsigned long maxnode, unsigned int flags);
  syscallMbind: {
    name: "syscall",
    parameters: ["i64", "usize", "usize", "i64", "buffer", "usize", "i64"],
    result: "i32",
  },

  // long syscall(SYS_futex, uint32_t *uaddr, int op, uint32_t val, const struct timespec *timeout);
  syscallFutex: { name: "syscall", parameters: ["i64", "usize", "i64", "i64", "buffer"], result: "i32" },

  // int sigaction(int signum, const struct sigaction *act, struct sigaction *oldact);
  sigaction: { parameters: ["i32", "buffer", "buffer"], result: "i32" },
  // int abs(int j);
  // Its address alone is used: as a signal handler that does nothing.
  abs: { type: "pointer" },

  // int *__errno_location(void);
  __errno_location: { parameters: [], result: "pointer" },
} as const satisfies Deno.ForeignLibraryInterface;

/** The C functions, under the names of the table above. */
export type Symbols = Deno.DynamicLibrary<typeof SYMBOLS>["symbols"];

/** The C library as this thread sees it. */
export interface Libc {
  /** The C functions. */
  readonly sys: Symbols;
  /**
   * The calling thread's `errno`, in element 0. Read it in the same expression as the call it belongs to, as in
   * `unwrap(sys.close(fd), errno[0], "close")`: anything in between, a garbage collection above all, may change it.
   */
  readonly errno: Int32Array;
}

// One per thread: every Worker evaluates this module anew and runs on one thread for life, as errno requires.
let loaded: Libc | undefined;

/**
 * The C library, opened at the first call.
 *
 * @throws {MembackingError} If this is not x86-64 Linux with glibc, or if Deno lacks the permission (`--allow-ffi`).
 */
export function libc(): Libc {
  return loaded ??= load();
}

function load(): Libc {
  const { os, arch } = Deno.build;
  if (os !== "linux" || arch !== "x86_64") {
    throw new MembackingError(`This package runs on x86-64 Linux only, and this is ${os} on ${arch}`);
  }
  let sys: Symbols;
  try {
    sys = Deno.dlopen("libc.so.6", SYMBOLS).symbols;
  } catch (cause) {
    const why = cause instanceof Deno.errors.NotCapable
      ? "run Deno with --allow-ffi (no other permission is needed)"
      : "glibc 2.28 or newer is needed";
    throw new MembackingError(`Cannot open libc.so.6: ${why}`, { cause });
  }
  const location = sys.__errno_location();
  if (location === null) throw new MembackingError("The C library has no errno for this thread");
  // Copied because Deno's own table has no prototype, which the engine looks up by hashing, at each call.
  const copy = { ...sys };
  // SAFETY: __errno_location() points to the calling thread's int errno, which lives as long as the thread; this
  // module instance does not outlive the thread it runs on.
  return { sys: copy, errno: new Int32Array(Deno.UnsafePointerView.getArrayBuffer(location, 4)) };
}

/**
 * `text` as a C string.
 *
 * @throws {TypeError} If `text` contains a NUL character, at which C would cut it off.
 */
export function cString(text: string): Uint8Array<ArrayBuffer> {
  if (typeof text !== "string") throw new TypeError(`A string is needed, got ${typeof text}`);
  if (text.includes("\0")) throw new TypeError(`${JSON.stringify(text)} contains a NUL character`);
  return new TextEncoder().encode(text + "\0");
}
