/**
 * The numbers of <sys/mman.h>, <linux/memfd.h> and <fcntl.h> that this package uses, for x86-64 Linux.
 *
 * Why it is safe: constants only.
 *
 * @module
 */

export const PROT_NONE = 0;
export const PROT_READ = 1;
export const PROT_WRITE = 2;

export const MAP_SHARED = 0x01;
export const MAP_PRIVATE = 0x02;
export const MAP_FIXED = 0x10;
export const MAP_ANONYMOUS = 0x20;
export const MAP_NORESERVE = 0x4000;
export const MAP_FIXED_NOREPLACE = 0x10_0000;

export const MREMAP_MAYMOVE = 1;
export const MREMAP_FIXED = 2;

export const MS_ASYNC = 1;

export const MADV_HUGEPAGE = 14;
export const MADV_NOHUGEPAGE = 15;
export const MADV_POPULATE_READ = 22;
export const MADV_POPULATE_WRITE = 23;

export const MPOL_BIND = 2;

export const MFD_CLOEXEC = 0x1;
export const MFD_ALLOW_SEALING = 0x2;
export const MFD_HUGETLB = 0x4;
/** How far the base-2 logarithm of the page size is shifted in the flags of memfd_create. */
export const MFD_HUGE_SHIFT = 26;

export const F_GETFL = 3;
export const F_DUPFD_CLOEXEC = 1030;
export const F_ADD_SEALS = 1033;
export const F_GET_SEALS = 1034;
export const F_SEAL_SEAL = 0x01;
export const F_SEAL_SHRINK = 0x02;
export const F_SEAL_GROW = 0x04;
export const F_SEAL_WRITE = 0x08;
export const F_SEAL_FUTURE_WRITE = 0x10;

export const O_RDONLY = 0;
export const O_WRONLY = 1;
export const O_RDWR = 2;
export const O_ACCMODE = 3;
export const O_NONBLOCK = 0o4000;
export const O_CLOEXEC = 0o2000000;

export const SYS_GETTID = 186n;
export const SYS_TGKILL = 234n;
export const SYS_MBIND = 237n;
