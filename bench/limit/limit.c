/*
 * What the machine allows: the system calls of each benchmark row, made by C with no manager at all.
 *
 *   limit                  reads lines "<row> <count>", does the row that often, and prints how many nanoseconds it took
 *   limit rows             prints the names of the rows
 *   limit trace ROW N      does the row N times between calls of close(-1000), for strace
 *   limit first-exit       starts the smallest virtual machine and ends at its first exit
 *
 * Addresses, sizes and the order of calls are those of bench/bare.ts and bench/ours.ts. A call that fails ends the
 * program: a benchmark of failing calls is worth nothing.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define KIB 1024ull
#define MIB (1024 * KIB)
#define PAGE (4 * KIB)

#define REGION (256 * MIB)      /* where the region of every row begins */
#define REGION_SIZE (4 * MIB)
#define AT (REGION + 2 * MIB)   /* where the mapping of a row lies in it */
#define RAM_SIZE (512 * MIB)
#define RESERVED (1024 * MIB)
#define FILE_SIZE (16 * MIB)
#define MARKER (-1000)          /* not a file descriptor */

static char *base;              /* guest-physical address x is at base + x */
static int file, kvm, vm;

static void check(int ok, const char *what) {
  if (ok) return;
  perror(what);
  exit(1);
}

static void map_file(int fd, char *at, uint64_t size, uint64_t offset) {
  check(mmap(at, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, offset) != MAP_FAILED, "mmap");
}

static void give_back(char *at, uint64_t size) {
  check(mmap(at, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) != MAP_FAILED,
        "mmap");
}

/* Reserves addresses at a multiple of 2 MiB, as memory that may use large pages wants it. */
static char *reserve(uint64_t size) {
  uint64_t total = size + 2 * MIB - PAGE;
  char *from = mmap(0, total, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  check(from != MAP_FAILED, "mmap");
  char *start = (char *)(((uintptr_t)from + 2 * MIB - 1) & ~(2 * MIB - 1));
  if (start > from) check(munmap(from, start - from) == 0, "munmap");
  if (from + total > start + size) check(munmap(start + size, from + total - start - size) == 0, "munmap");
  return start;
}

static int memory_file(uint64_t size) {
  int fd = memfd_create("limit", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  check(fd >= 0, "memfd_create");
  check(ftruncate(fd, size) == 0, "ftruncate");
  check(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0, "fcntl");
  return fd;
}

/* A size of 0 deletes the slot. */
static void set_slot(int vm_fd, unsigned id, uint64_t gpa, uint64_t size, char *hva, unsigned flags) {
  struct kvm_userspace_memory_region region = {id, flags, gpa, size, (uintptr_t)hva};
  check(ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, &region) == 0, "KVM_SET_USER_MEMORY_REGION");
}

static void add_slot(unsigned id, uint64_t gpa, uint64_t size) { set_slot(vm, id, gpa, size, base + gpa, 0); }
static void delete_slot(unsigned id, uint64_t gpa) { set_slot(vm, id, gpa, 0, base + gpa, 0); }

/* Rows. Each has what comes before it and what is measured; `size` is 0 where a row has no size of its own. */

static void no_setup(uint64_t size) { (void)size; }

static void window_setup(uint64_t size) {
  (void)size;
  add_slot(0, REGION, REGION_SIZE);
}
static void window_end(uint64_t size) {
  (void)size;
  delete_slot(0, REGION);
  give_back(base + REGION, REGION_SIZE);
}
static void window(uint64_t size) {
  map_file(file, base + AT, size, 0);
  give_back(base + AT, size);
}

static void with_slot(uint64_t size) {
  map_file(file, base + AT, size, 0);
  add_slot(0, AT, size);
  delete_slot(0, AT);
  give_back(base + AT, size);
}

static void replace_setup(uint64_t size) {
  map_file(file, base + AT, size, 0);
  add_slot(0, AT, size);
}
static void replace_end(uint64_t size) {
  delete_slot(0, AT);
  give_back(base + AT, size);
}
static void replace(uint64_t size) {
  map_file(file, base + AT, size, 2 * MIB);
  map_file(file, base + AT, size, 0);
}

static void region_64(uint64_t size) {
  (void)size;
  for (unsigned i = 0; i < 64; i++) map_file(file, base + REGION + i * PAGE, PAGE, (63 - i) * PAGE);
  for (unsigned i = 0; i < 64; i++) add_slot(i, REGION + i * PAGE, PAGE);
  for (unsigned i = 0; i < 64; i++) delete_slot(i, REGION + i * PAGE);
  give_back(base + REGION, 64 * PAGE);
}

static void window_64(uint64_t size) {
  (void)size;
  for (unsigned i = 0; i < 64; i++) map_file(file, base + REGION + i * PAGE, PAGE, (63 - i) * PAGE);
  add_slot(0, REGION, 64 * PAGE);
  delete_slot(0, REGION);
  give_back(base + REGION, 64 * PAGE);
}

static void read_only(uint64_t size) {
  delete_slot(0, AT);
  check(mprotect(base + AT, size, PROT_READ) == 0, "mprotect");
  set_slot(vm, 0, AT, size, base + AT, KVM_MEM_READONLY);
  delete_slot(0, AT);
  check(mprotect(base + AT, size, PROT_READ | PROT_WRITE) == 0, "mprotect");
  add_slot(0, AT, size);
}

static void ram(uint64_t size) {
  char *memory = reserve(size);
  int fd = memory_file(size);
  map_file(fd, memory, size, 0);
  set_slot(vm, 1, 1024 * MIB, size, memory, 0);
  set_slot(vm, 1, 1024 * MIB, 0, memory, 0);
  munmap(memory, size);
  close(fd);
}

static char *guest_memory, *buffer;
static uint64_t turn;

static void memory_setup(uint64_t size) {
  (void)size;
  buffer = calloc(1, MIB);
  guest_memory = base + REGION;
  map_file(file, guest_memory, FILE_SIZE, 0);
  memset(guest_memory, 1, FILE_SIZE);
}
static void memory_end(uint64_t size) {
  (void)size;
  give_back(guest_memory, FILE_SIZE);
  free(buffer);
}
/* Where a copy happens: the same few lines again and again, or each time another part of 16 MiB. */
static uint64_t near(void) { return (turn++ & 15) * 64; }
static uint64_t far(uint64_t size) { return turn++ * size % FILE_SIZE; }
/* A compiler must not take a copy out of the loop. */
#define KEPT(p) __asm__ volatile("" : : "r"(p) : "memory")
static void memory_read(uint64_t size) {
  memcpy(buffer, guest_memory + near(), size);
  KEPT(buffer);
}
static void memory_write(uint64_t size) {
  memcpy(guest_memory + near(), buffer, size);
  KEPT(guest_memory);
}
static void memory_read_far(uint64_t size) {
  memcpy(buffer, guest_memory + far(size), size);
  KEPT(buffer);
}
static void memory_write_far(uint64_t size) {
  memcpy(guest_memory + far(size), buffer, size);
  KEPT(guest_memory);
}
/* A constant size, so that the copy is one load and one store. */
static void memory_read_4(uint64_t size) {
  (void)size;
  memcpy(buffer, guest_memory + near(), 4);
  KEPT(buffer);
}
static void memory_write_4(uint64_t size) {
  (void)size;
  memcpy(guest_memory + near(), buffer, 4);
  KEPT(guest_memory);
}

static int guest_vm, vcpu;
static struct kvm_run *run;

/* A VM whose real-mode guest writes port 0x10 for ever. */
static void guest_setup(uint64_t size) {
  static const uint8_t code[] = {0xe6, 0x10, 0xeb, 0xfc}; /* out 0x10, al; jmp to the out */
  (void)size;
  guest_vm = ioctl(kvm, KVM_CREATE_VM, 0);
  check(guest_vm >= 0, "KVM_CREATE_VM");
  int fd = memory_file(64 * KIB);
  guest_memory = reserve(2 * MIB);
  map_file(fd, guest_memory, 64 * KIB, 0);
  close(fd);
  set_slot(guest_vm, 0, 0, 64 * KIB, guest_memory, 0);
  memcpy(guest_memory + 0x1000, code, sizeof code);
  int run_size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
  vcpu = ioctl(guest_vm, KVM_CREATE_VCPU, 0);
  check(run_size > 0 && vcpu >= 0, "KVM_CREATE_VCPU");
  run = mmap(0, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
  check(run != MAP_FAILED, "mmap");
  struct kvm_sregs sregs;
  check(ioctl(vcpu, KVM_GET_SREGS, &sregs) == 0, "KVM_GET_SREGS");
  sregs.cs.base = sregs.cs.selector = 0;
  check(ioctl(vcpu, KVM_SET_SREGS, &sregs) == 0, "KVM_SET_SREGS");
  struct kvm_regs regs = {.rip = 0x1000, .rflags = 2};
  check(ioctl(vcpu, KVM_SET_REGS, &regs) == 0, "KVM_SET_REGS");
}
static void guest_exit(uint64_t size) {
  (void)size;
  check(ioctl(vcpu, KVM_RUN, 0) == 0, "KVM_RUN");
  check(run->exit_reason == KVM_EXIT_IO && run->io.port == 0x10, "exit");
}
static void guest_end(uint64_t size) {
  (void)size;
  close(vcpu);
  close(guest_vm);
}

/* A clone of 64 MiB whose memory is a file, copy-on-write: memory, machine, first exit, and all of it taken away again. */
static int template_file;

static void clone_setup(uint64_t size) {
  static const uint8_t code[] = {0xe6, 0x10, 0xeb, 0xfc}; /* out 0x10, al; jmp to the out */
  template_file = memory_file(size);
  check(pwrite(template_file, code, sizeof code, 0x1000) == sizeof code, "pwrite");
}
static void clone_end(uint64_t size) {
  (void)size;
  close(template_file);
}
static void clone_once(uint64_t size) {
  char *memory = reserve(size);
  int flags = MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE;
  check(mmap(memory, size, PROT_READ | PROT_WRITE, flags, template_file, 0) != MAP_FAILED, "mmap");
  check(madvise(memory, size, MADV_NOHUGEPAGE) == 0, "madvise");
  check(madvise(memory, size, MADV_DONTDUMP) == 0, "madvise");
  check(madvise(memory, size, MADV_DONTFORK) == 0, "madvise");
  int machine = ioctl(kvm, KVM_CREATE_VM, 0);
  check(machine >= 0, "KVM_CREATE_VM");
  set_slot(machine, 0, 0, size, memory, 0);
  int run_size = 2 * PAGE;
  int cpu = ioctl(machine, KVM_CREATE_VCPU, 0);
  check(cpu >= 0, "KVM_CREATE_VCPU");
  void *room = mmap(0, run_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  struct kvm_run *page = mmap(room, run_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, cpu, 0);
  check(page != MAP_FAILED, "mmap");
  struct kvm_sregs sregs;
  check(ioctl(cpu, KVM_GET_SREGS, &sregs) == 0, "KVM_GET_SREGS");
  sregs.cs.base = sregs.cs.selector = 0;
  check(ioctl(cpu, KVM_SET_SREGS, &sregs) == 0, "KVM_SET_SREGS");
  struct kvm_regs regs = {.rip = 0x1000, .rflags = 2};
  check(ioctl(cpu, KVM_SET_REGS, &regs) == 0, "KVM_SET_REGS");
  check(ioctl(cpu, KVM_RUN, 0) == 0, "KVM_RUN");
  check(page->exit_reason == KVM_EXIT_IO && page->io.port == 0x10, "exit");
  munmap(page, run_size);
  close(cpu);
  set_slot(machine, 0, 0, 0, memory, 0);
  close(machine);
  munmap(memory, size);
}

static const struct row {
  const char *name;
  uint64_t size;
  void (*setup)(uint64_t);
  void (*once)(uint64_t);
  void (*end)(uint64_t);
} rows[] = {
  {"window-4k", 4 * KIB, window_setup, window, window_end},
  {"window-64k", 64 * KIB, window_setup, window, window_end},
  {"window-2m", 2 * MIB, window_setup, window, window_end},
  {"slot-4k", 4 * KIB, no_setup, with_slot, no_setup},
  {"slot-64k", 64 * KIB, no_setup, with_slot, no_setup},
  {"slot-2m", 2 * MIB, no_setup, with_slot, no_setup},
  {"replace-4k", 4 * KIB, replace_setup, replace, replace_end},
  {"replace-2m", 2 * MIB, replace_setup, replace, replace_end},
  {"region-1", 4 * KIB, no_setup, with_slot, no_setup},
  {"region-64", 0, no_setup, region_64, no_setup},
  {"window-64", 0, no_setup, window_64, no_setup},
  {"switch", 2 * MIB, replace_setup, replace, replace_end},
  {"protect", 2 * MIB, replace_setup, read_only, replace_end},
  {"ram-512m", RAM_SIZE, no_setup, ram, no_setup},
  {"read-4", 4, memory_setup, memory_read_4, memory_end},
  {"read-64", 64, memory_setup, memory_read, memory_end},
  {"read-4k", 4 * KIB, memory_setup, memory_read, memory_end},
  {"read-4k-far", 4 * KIB, memory_setup, memory_read_far, memory_end},
  {"read-1m-far", MIB, memory_setup, memory_read_far, memory_end},
  {"write-4", 4, memory_setup, memory_write_4, memory_end},
  {"write-64", 64, memory_setup, memory_write, memory_end},
  {"write-4k", 4 * KIB, memory_setup, memory_write, memory_end},
  {"write-4k-far", 4 * KIB, memory_setup, memory_write_far, memory_end},
  {"write-1m-far", MIB, memory_setup, memory_write_far, memory_end},
  {"clone", 64 * MIB, clone_setup, clone_once, clone_end},
  {"exits", 0, guest_setup, guest_exit, guest_end},
};
#define ROWS (sizeof rows / sizeof rows[0])

static const struct row *find(const char *name) {
  for (size_t i = 0; i < ROWS; i++) {
    if (strcmp(rows[i].name, name) == 0) return &rows[i];
  }
  fprintf(stderr, "There is no row \"%s\"\n", name);
  exit(2);
}

static uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000ull + t.tv_nsec;
}

int main(int argc, char **argv) {
  if (argc > 1 && strcmp(argv[1], "rows") == 0) {
    for (size_t i = 0; i < ROWS; i++) puts(rows[i].name);
    return 0;
  }
  kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  if (argc > 1 && strcmp(argv[1], "first-exit") == 0) {
    guest_setup(0);
    guest_exit(0);
    return 0;
  }
  vm = ioctl(kvm, KVM_CREATE_VM, 0); /* without KVM, rows that need it end the program */
  base = reserve(RESERVED);
  file = memory_file(FILE_SIZE);

  if (argc == 4 && strcmp(argv[1], "trace") == 0) {
    const struct row *row = find(argv[2]);
    row->setup(row->size);
    for (long left = atol(argv[3]); left > 0; left--) {
      close(MARKER);
      row->once(row->size);
    }
    close(MARKER);
    return 0;
  }

  const struct row *current = NULL;
  char name[64];
  long count;
  while (scanf("%63s %ld", name, &count) == 2) {
    const struct row *row = find(name);
    if (row != current) {
      if (current != NULL) current->end(current->size);
      row->setup(row->size);
      current = row;
    }
    uint64_t start = now();
    for (long i = 0; i < count; i++) row->once(row->size);
    printf("%llu\n", (unsigned long long)(now() - start));
    fflush(stdout);
  }
  return 0;
}
