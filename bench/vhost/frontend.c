/*
 * A vhost-user front end in C, with nothing but what the rows of bench/vhost.ts need.
 *
 *   frontend SOCKET...     connects to the back ends there, reads lines "<row> <count>", does the row that often, and
 *                          prints how many nanoseconds it took
 *
 * Rows: "hot-add" gives 1 GiB to all back ends and takes it away again, with the mmaps that go with it; "read" has the
 * first back end, a disk, read a sector by a split ring, whose used index is polled. A failure ends the program.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define RAM_SIZE (32ull << 20)
#define HOT_AT (4ull << 30)
#define HOT_SIZE (1ull << 30)
#define MAX_BACKENDS 16

enum { GET_FEATURES = 1, SET_FEATURES = 2, SET_OWNER = 3, SET_VRING_NUM = 8, SET_VRING_ADDR = 9, SET_VRING_BASE = 10,
       SET_VRING_KICK = 12, SET_VRING_CALL = 13, GET_PROTOCOL_FEATURES = 15, SET_PROTOCOL_FEATURES = 16,
       SET_VRING_ENABLE = 18, ADD_MEM_REG = 37, REM_MEM_REG = 38 };
#define REPLY_ACK (1ull << 3)
#define MEM_SLOTS (1ull << 15)
#define NEED_REPLY 8

struct message {
  uint32_t request, flags, size;
  union {
    uint64_t u64;
    struct { uint32_t index, num; } state;
    struct { uint32_t index, flags; uint64_t descriptor, used, available, log; } addr;
    struct { uint64_t padding, gpa, size, user, offset; } region;
  };
} __attribute__((packed));

static int backends[MAX_BACKENDS], count_of_backends;
static char *base; /* guest-physical address x is at base + x */
static int ram, hot, kick;

static void check(int ok, const char *what) {
  if (ok) return;
  perror(what);
  exit(1);
}

static void send_message(int to, struct message *m, size_t size, int fd) {
  struct iovec part = { m, 12 + size };
  char control[CMSG_SPACE(sizeof(int))];
  struct msghdr header = { .msg_iov = &part, .msg_iovlen = 1 };
  m->flags |= 1;
  m->size = size;
  if (fd >= 0) {
    header.msg_control = control;
    header.msg_controllen = sizeof control;
    struct cmsghdr *c = CMSG_FIRSTHDR(&header);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &fd, sizeof(int));
  }
  check(sendmsg(to, &header, MSG_NOSIGNAL) == (ssize_t)(12 + size), "sendmsg");
}

static uint64_t receive_u64(int from, uint32_t request) {
  struct message m;
  check(recv(from, &m, 20, MSG_WAITALL) == 20 && m.request == request, "recv");
  return m.u64;
}

static void tell(int to, struct message m, size_t size, int fd) {
  m.flags = NEED_REPLY;
  send_message(to, &m, size, fd);
  check(receive_u64(to, m.request) == 0, "refused");
}

static void region(int to, uint32_t request, uint64_t gpa, uint64_t size, int fd) {
  struct message m = { .request = request, .region = { 0, gpa, size, (uint64_t)(base + gpa), 0 } };
  tell(to, m, 40, fd);
}

static int connect_to(const char *path) {
  struct sockaddr_un address = { .sun_family = AF_UNIX };
  int s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  strncpy(address.sun_path, path, sizeof address.sun_path - 1);
  check(connect(s, (struct sockaddr *)&address, sizeof address) == 0, path);
  struct message m = { .request = GET_FEATURES };
  send_message(s, &m, 0, -1);
  receive_u64(s, GET_FEATURES);
  m = (struct message){ .request = GET_PROTOCOL_FEATURES };
  send_message(s, &m, 0, -1);
  receive_u64(s, GET_PROTOCOL_FEATURES);
  m = (struct message){ .request = SET_PROTOCOL_FEATURES, .u64 = REPLY_ACK | MEM_SLOTS };
  send_message(s, &m, 8, -1);
  tell(s, (struct message){ .request = SET_OWNER }, 0, -1);
  region(s, ADD_MEM_REG, 0, RAM_SIZE, ram);
  return s;
}

#define RING_SIZE 8
#define DESCRIPTOR 0x100000
#define AVAILABLE 0x101000
#define USED 0x102000
#define HEADER 0x103000
#define DATA 0x104000

struct descriptor { uint64_t address; uint32_t length; uint16_t flags, next; };

static void start_ring(int to) {
  struct descriptor *d = (struct descriptor *)(base + DESCRIPTOR);
  d[0] = (struct descriptor){ HEADER, 16, 1, 1 };
  d[1] = (struct descriptor){ DATA, 512, 3, 2 };
  d[2] = (struct descriptor){ HEADER + 16, 1, 2, 0 };
  uint64_t at = (uint64_t)base;
  kick = eventfd(0, EFD_CLOEXEC);
  tell(to, (struct message){ .request = SET_FEATURES, .u64 = 1ull << 32 | 1ull << 30 }, 8, -1);
  tell(to, (struct message){ .request = SET_VRING_NUM, .state = { 0, RING_SIZE } }, 8, -1);
  tell(to, (struct message){ .request = SET_VRING_BASE, .state = { 0, 0 } }, 8, -1);
  tell(to, (struct message){ .request = SET_VRING_ADDR, .addr = { 0, 0, at + DESCRIPTOR, at + USED, at + AVAILABLE, 0 } },
       40, -1);
  tell(to, (struct message){ .request = SET_VRING_CALL }, 8, eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  tell(to, (struct message){ .request = SET_VRING_KICK }, 8, kick);
  tell(to, (struct message){ .request = SET_VRING_ENABLE, .state = { 0, 1 } }, 8, -1);
}

static void once_read(void) {
  static uint16_t index;
  volatile uint16_t *used = (volatile uint16_t *)(base + USED + 2);
  uint64_t one = 1;
  *(volatile uint8_t *)(base + HEADER + 16) = 0xff;
  __atomic_store_n((uint16_t *)(base + AVAILABLE + 2), ++index, __ATOMIC_SEQ_CST);
  check(write(kick, &one, 8) == 8, "write");
  while (*used != index) __builtin_ia32_pause();
  check(*(volatile uint8_t *)(base + HEADER + 16) == 0, "status");
}

static void once_hot_add(void) {
  check(mmap(base + HOT_AT, HOT_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, hot, 0) != MAP_FAILED, "mmap");
  for (int i = 0; i < count_of_backends; i++) region(backends[i], ADD_MEM_REG, HOT_AT, HOT_SIZE, hot);
  for (int i = 0; i < count_of_backends; i++) region(backends[i], REM_MEM_REG, HOT_AT, HOT_SIZE, -1);
  check(mmap(base + HOT_AT, HOT_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) !=
        MAP_FAILED, "mmap");
}

static int memory_file(uint64_t size) {
  int fd = memfd_create("frontend", MFD_CLOEXEC);
  check(fd >= 0 && ftruncate(fd, size) == 0, "memfd");
  return fd;
}

static uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000ull + t.tv_nsec;
}

int main(int argc, char **argv) {
  ram = memory_file(RAM_SIZE);
  hot = memory_file(HOT_SIZE);
  base = mmap(0, HOT_AT + HOT_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  check(base != MAP_FAILED, "mmap");
  check(mmap(base, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, ram, 0) != MAP_FAILED, "mmap");
  for (int i = 1; i < argc && i <= MAX_BACKENDS; i++) backends[count_of_backends++] = connect_to(argv[i]);
  start_ring(backends[0]);

  char name[64];
  long count;
  while (scanf("%63s %ld", name, &count) == 2) {
    void (*once)(void) = strcmp(name, "read") == 0 ? once_read : once_hot_add;
    uint64_t start = now();
    for (long i = 0; i < count; i++) once();
    printf("%llu\n", (unsigned long long)(now() - start));
    fflush(stdout);
  }
  return 0;
}
