/*
 * Fills and checks memory for as long as it is let, and looks at windows of a card meanwhile.
 *
 *   stress MIB CARD-A CARD-B SWITCHED LENGTH
 *
 * Two processes fill MIB MiB each with numbers that depend on place and round, and check them. A third one looks through
 * /dev/mem at three windows of LENGTH bytes. Each word in them is (generation << 16 | page) where there is memory. The
 * first two are places at which the card's memory may be, so that nothing (all ones) is right there too; in the third one
 * there always is memory. It ends when something is typed, says what it has done, and fails if anything was wrong.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { FILLERS = 2, PAGE = 4096, WINDOWS = 3 };
#define NOTHING 0xffffffffu

struct tally {
  _Atomic int over;
  uint64_t rounds[FILLERS], wrong[FILLERS], looks, nothing, misplaced;
};

static uint64_t number(uint64_t place, uint64_t round) {
  return (place * 0x9e3779b97f4a7c15u) ^ (round << 32 | round);
}

static void fill(struct tally *tally, int who, size_t length) {
  uint64_t *words = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  size_t count = length / sizeof *words;
  if (words == MAP_FAILED) exit(2);
  while (!tally->over) {
    uint64_t round = ++tally->rounds[who];
    for (size_t i = 0; i < count; i++) words[i] = number(i, round + who);
    for (size_t i = 0; i < count; i++) if (words[i] != number(i, round + who)) tally->wrong[who]++;
  }
}

static void look(struct tally *tally, char **places, size_t length) {
  const volatile uint32_t *windows[WINDOWS];
  int mem = open("/dev/mem", O_RDONLY);
  for (int i = 0; i < WINDOWS; i++) {
    windows[i] = mmap(NULL, length, PROT_READ, MAP_SHARED, mem, strtoull(places[i], NULL, 16));
    if (windows[i] == MAP_FAILED) exit(3);
  }
  while (!tally->over) {
    for (size_t page = 0; page < length / PAGE; page++) {
      for (int i = 0; i < WINDOWS; i++) {
        uint32_t seen = windows[i][page * (PAGE / sizeof **windows)];
        tally->looks++;
        if (seen == NOTHING && i < 2) tally->nothing++;
        else if ((seen & 0xffff) != page) tally->misplaced++;
      }
    }
  }
}

int main(int argc, char **argv) {
  struct tally *tally = mmap(NULL, sizeof *tally, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (argc != 6 || tally == MAP_FAILED) return 4;
  for (int who = 0; who < FILLERS + 1; who++) {
    if (fork() != 0) continue;
    if (who < FILLERS) fill(tally, who, strtoul(argv[1], NULL, 10) << 20);
    else look(tally, argv + 2, strtoul(argv[5], NULL, 16));
    exit(0);
  }
  puts("stress: runs");
  fflush(stdout);
  char typed;
  ssize_t got = read(0, &typed, 1);
  tally->over = 1;
  int status, failed = got != 1;
  while (wait(&status) > 0) failed |= status;
  uint64_t wrong = tally->wrong[0] + tally->wrong[1] + tally->misplaced;
  printf("{ \"rounds\": [%lu, %lu], \"wrong\": %lu, \"looks\": %lu, \"nothing\": %lu, \"misplaced\": %lu }\n", tally->rounds[0],
         tally->rounds[1], wrong, tally->looks, tally->nothing, tally->misplaced);
  return failed || wrong != 0;
}
