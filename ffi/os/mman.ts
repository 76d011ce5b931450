/**
 * The numbers of <sys/mman.h>, <linux/memfd.h> and <fcntl.h> that this package uses, for x86-64 Linux.
 *
 * Why it is safe: constants only.
 *
 * @module
 */

/** No access. */
export const PROT_NONE = 0;
/** Loads. */
export const PROT_READ = 1;
/** Stores. */
export const PROT_WRITE = 2;

/** Stores reach the file. */
export const MAP_SHARED = 0x01;
/** Stores make copies that no one else sees. */
export const MAP_PRIVATE = 0x02;
/** At exactly this address, in place of whatever is there. */
export const MAP_FIXED = 0x10;
/** No file. */
export const MAP_ANONYMOUS = 0x20;
/** No swap space set aside. */
export const MAP_NORESERVE = 0x4000;
/** At exactly this address, if nothing is there. */
export const MAP_FIXED_NOREPLACE = 0x10_0000;

/** To another address. */
export const MREMAP_MAYMOVE = 1;
/** To exactly this address, in place of whatever is there. */
export const MREMAP_FIXED = 2;
/** Leaves an empty mapping behind. */
export const MREMAP_DONTUNMAP = 4;

/** Start nothing and wait for nothing. */
export const MS_ASYNC = 1;

/** Give the pages back: private memory reads as zeros, or as its file, afterwards. */
export const MADV_DONTNEED = 4;
/** Not copied to a child by fork. */
export const MADV_DONTFORK = 10;
/** Left out of core dumps. */
export const MADV_DONTDUMP = 16;
/** Transparent huge pages wanted. */
export const MADV_HUGEPAGE = 14;
/** Transparent huge pages not wanted. */
export const MADV_NOHUGEPAGE = 15;
/** Bring pages in for loads. */
export const MADV_POPULATE_READ = 22;
/** Bring pages in for stores. */
export const MADV_POPULATE_WRITE = 23;

/** From these NUMA nodes and no other. */
export const MPOL_BIND = 2;

/** Close-on-exec. */
export const MFD_CLOEXEC = 0x1;
/** Can be sealed. */
export const MFD_ALLOW_SEALING = 0x2;
/** Of huge pages. */
export const MFD_HUGETLB = 0x4;
/** Cannot be executed, and is sealed so (F_SEAL_EXEC). */
export const MFD_NOEXEC_SEAL = 0x8;
/** How far the base-2 logarithm of the page size is shifted in the flags of memfd_create. */
export const MFD_HUGE_SHIFT = 26;

/** Read the file status flags. */
export const F_GETFL = 3;
/** Duplicate, close-on-exec. */
export const F_DUPFD_CLOEXEC = 1030;
/** Add seals. */
export const F_ADD_SEALS = 1033;
/** Read the seals. */
export const F_GET_SEALS = 1034;
/** No more seals. */
export const F_SEAL_SEAL = 0x01;
/** Cannot get shorter. */
export const F_SEAL_SHRINK = 0x02;
/** Cannot get longer. */
export const F_SEAL_GROW = 0x04;
/** Cannot be written. */
export const F_SEAL_WRITE = 0x08;
/** Keeps its executable bits as they are. */
export const F_SEAL_EXEC = 0x20;
/** Cannot be written, except through mappings there are. */
export const F_SEAL_FUTURE_WRITE = 0x10;

/** For reading. */
export const O_RDONLY = 0;
/** For writing. */
export const O_WRONLY = 1;
/** For both. */
export const O_RDWR = 2;
/** The bits that hold one of these three. */
export const O_ACCMODE = 3;
/** Do not wait for the other end of a pipe. */
export const O_NONBLOCK = 0o4000;
/** Close-on-exec. */
export const O_CLOEXEC = 0o2000000;

/** The calling thread's number. */
export const SYS_GETTID = 186n;
/** A signal to one thread. */
export const SYS_TGKILL = 234n;
/** The NUMA policy of a mapping. */
export const SYS_MBIND = 237n;
/** Waiting for a word of memory, and waking who waits. */
export const SYS_FUTEX = 202n;
/** A descriptor of a process. */
export const SYS_PIDFD_OPEN = 434n;

/** What prctl is to change: an attribute of a mapping. */
export const PR_SET_VMA = 0x53564d41;
/** The name of anonymous memory. */
export const PR_SET_VMA_ANON_NAME = 0n;

/** Leave the size of the file as it is. */
export const FALLOC_FL_KEEP_SIZE = 0x01;
/** Give the pages back: they read as zeros. */
export const FALLOC_FL_PUNCH_HOLE = 0x02;
