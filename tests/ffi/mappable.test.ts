import { assert, assertEquals, assertFalse, assertStringIncludes, assertThrows } from "@std/assert";
import { fileOf, Mappable } from "../../ffi/files/mappable.ts";
import { OsError } from "../../ffi/os/os_error.ts";
import { DisposedError } from "../../src/core/errors.ts";
import { cString, libc } from "../../ffi/os/libc.ts";
import {
  F_ADD_SEALS,
  F_GET_SEALS,
  F_SEAL_EXEC,
  F_SEAL_FUTURE_WRITE,
  F_SEAL_GROW,
  F_SEAL_SEAL,
  F_SEAL_SHRINK,
  F_SEAL_WRITE,
  MFD_ALLOW_SEALING,
  MFD_CLOEXEC,
} from "../../ffi/os/mman.ts";
import { fdFlags, openFds } from "../support/proc.ts";
import { HUGE_PAGE, hugePageTest } from "../support/require.ts";

const CLOSE_ON_EXEC = 1;

/** A memfd of our own, to be closed with the result. */
function rawMemfd(size: number, seals = 0): { fd: number } & Disposable {
  const { sys } = libc();
  const fd = sys.memfd_create(cString("raw"), MFD_CLOEXEC | MFD_ALLOW_SEALING);
  sys.ftruncate(fd, BigInt(size));
  if (seals !== 0) sys.fcntl(fd, F_ADD_SEALS, seals);
  return { fd, [Symbol.dispose]: () => void sys.close(fd) };
}

/** A file in a directory of its own. */
function tempFile(bytes: Uint8Array): { path: string } & Disposable {
  const path = Deno.makeTempFileSync();
  Deno.writeFileSync(path, bytes);
  return { path, [Symbol.dispose]: () => Deno.removeSync(path) };
}

Deno.test("a memfd reads as zeros and gives back what was written", () => {
  using memory = Mappable.memfd("ram", 0x3000);
  const bytes = new Uint8Array(0x3000).fill(1);
  memory.read(0, bytes);
  assert(bytes.every((byte) => byte === 0));
  memory.write(0x1ffe, new Uint8Array([1, 2, 3, 4]));
  const back = new Uint8Array(6);
  memory.read(0x1ffd, back);
  assertEquals(back, new Uint8Array([0, 1, 2, 3, 4, 0]));
});

Deno.test("a memfd has its size and 4 KiB pages, is writable, close-on-exec and cannot be truncated", () => {
  using memory = Mappable.memfd("ram", 0x3000);
  assertEquals([memory.size, memory.pageSize], [0x3000, 0x1000]);
  assert(memory.writable);
  assertFalse(fileOf(memory).truncatable);
  assertFalse(fileOf(memory).mayFailLate);
  assertEquals(fdFlags(memory.fd), CLOSE_ON_EXEC);
});

Deno.test("a memfd is sealed against resizing and against more seals", () => {
  using memory = Mappable.memfd("ram", 0x1000);
  const { sys } = libc();
  // Kernels from 6.3 on seal it against being made executable as well.
  const seals = sys.fcntl(memory.fd, F_GET_SEALS, 0) & ~F_SEAL_EXEC;
  assertEquals(seals, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
  assertEquals(sys.ftruncate(memory.fd, 0x2000n), -1);
  assertEquals(sys.ftruncate(memory.fd, 0n), -1);
});

Deno.test("a memfd that is not sealed can be truncated, and its size follows", () => {
  using memory = Mappable.memfd("ram", 0x1000, { seal: false });
  assert(fileOf(memory).truncatable);
  libc().sys.ftruncate(memory.fd, 0x5000n);
  assertEquals(memory.size, 0x5000);
});

Deno.test("a memfd of a bad size or name is refused", () => {
  for (const size of [0, -4096, 4095, 0.5, NaN, Infinity, 2 ** 53]) {
    assertThrows(() => Mappable.memfd("ram", size), RangeError, "Size");
  }
  assertThrows(() => Mappable.memfd("a\0b", 0x1000), TypeError, "NUL");
  assertThrows(() => Mappable.memfd("x".repeat(250), 0x1000), RangeError, "249");
  using longest = Mappable.memfd("x".repeat(249), 0x1000);
  assertEquals(longest.size, 0x1000);
  assertThrows(() => Mappable.memfd(1 as unknown as string, 0x1000), TypeError);
});

Deno.test("reads and writes past the end are refused and change nothing", () => {
  using memory = Mappable.memfd("ram", 0x1000, { seal: false });
  assertThrows(() => memory.write(0xfff, new Uint8Array(2)), RangeError, "past the end");
  assertThrows(() => memory.read(0x1000, new Uint8Array(1)), RangeError, "0x1000 bytes");
  assertThrows(() => memory.read(-1, new Uint8Array(1)), RangeError);
  assertThrows(() => memory.read(0.5, new Uint8Array(1)), RangeError);
  assertThrows(() => memory.write(0, "abc" as unknown as Uint8Array), TypeError);
  memory.read(0x1000, new Uint8Array(0));
  assertEquals(memory.size, 0x1000);
});

Deno.test("parts of larger buffers are read and written where they are", () => {
  using memory = Mappable.memfd("ram", 0x1000);
  const bytes = new Uint8Array([9, 1, 2, 9]);
  memory.write(0, bytes.subarray(1, 3));
  const back = new Uint8Array(4);
  memory.read(0, back.subarray(1, 3));
  assertEquals(back, new Uint8Array([0, 1, 2, 0]));
});

Deno.test("clones share one descriptor, which is closed with the last of them", () => {
  const first = Mappable.memfd("ram", 0x1000);
  const second = first.clone();
  const third = second.clone();
  const { fd } = first;
  assertEquals([second.fd, third.fd], [fd, fd]);
  assert(fileOf(first) === fileOf(third));
  first[Symbol.dispose]();
  first[Symbol.dispose]();
  second[Symbol.dispose]();
  assertEquals(fdFlags(fd), CLOSE_ON_EXEC);
  third.write(0, new Uint8Array([5]));
  third[Symbol.dispose]();
  assertEquals(fdFlags(fd), undefined);
});

Deno.test("every member of a disposed mappable throws DisposedError, and its clones go on", () => {
  const memory = Mappable.memfd("ram", 0x1000);
  using other = memory.clone();
  memory[Symbol.dispose]();
  const uses: (() => unknown)[] = [
    () => memory.fd,
    () => memory.size,
    () => memory.pageSize,
    () => memory.writable,
    () => fileOf(memory).truncatable,
    () => fileOf(memory).mayFailLate,
    () => fileOf(memory),
    () => memory.clone(),
    () => memory.read(0, new Uint8Array(1)),
    () => memory.write(0, new Uint8Array(1)),
  ];
  for (const use of uses) assertThrows(use, DisposedError, 'memfd "ram"');
  assertEquals(other.size, 0x1000);
});

Deno.test("a file opens read-only unless asked otherwise", () => {
  using file = tempFile(new Uint8Array([1, 2, 3]));
  using reader = Mappable.open(file.path);
  assertFalse(reader.writable);
  assert(fileOf(reader).truncatable);
  assertEquals(fdFlags(reader.fd), CLOSE_ON_EXEC);
  const back = new Uint8Array(3);
  reader.read(0, back);
  assertEquals(back, new Uint8Array([1, 2, 3]));
  assertThrows(() => reader.write(0, back), OsError, "pwrite failed with EBADF");

  using writer = Mappable.open(file.path, { write: true });
  assert(writer.writable);
  writer.write(1, new Uint8Array([7]));
  reader.read(0, back);
  assertEquals(back, new Uint8Array([1, 7, 3]));
  assert(fileOf(reader) !== fileOf(writer));
});

Deno.test("the size of a file is what it is now, and a write never makes it larger", () => {
  using file = tempFile(new Uint8Array(10));
  using mappable = Mappable.open(file.path, { write: true });
  assertEquals(mappable.size, 10);
  assertThrows(() => mappable.write(8, new Uint8Array(3)), RangeError);
  Deno.truncateSync(file.path, 5000);
  assertEquals(mappable.size, 5000);
});

Deno.test("an empty file can be opened", () => {
  using file = tempFile(new Uint8Array(0));
  using mappable = Mappable.open(file.path);
  assertEquals(mappable.size, 0);
  assertThrows(() => mappable.read(0, new Uint8Array(1)), RangeError);
});

Deno.test("what cannot back guest memory is refused with what it is", () => {
  const cases = [
    ["/dev/zero", "ENODEV", "a character device"],
    ["/tmp", "ENODEV", "a directory"],
    ["/proc/self/maps-that-is-not-there", "ENOENT", "maps-that"],
  ] as const;
  for (const [path, code, text] of cases) {
    const before = openFds();
    const error = assertThrows(() => Mappable.open(path), OsError, text);
    assertEquals(error.code, code);
    assertEquals(openFds(), before);
  }
  // A directory opened for writing does not get that far.
  assertEquals(assertThrows(() => Mappable.open("/tmp", { write: true }), OsError).code, "EISDIR");
});

Deno.test("a file of /proc, which has no memory behind it, is refused when it is opened", () => {
  const error = assertThrows(() => Mappable.open("/proc/self/status"), OsError, "cannot be mapped");
  assertEquals(error.syscall, "mmap");
});

Deno.test("a named pipe is refused, and opening it does not wait for the other end", async () => {
  const path = Deno.makeTempFileSync();
  Deno.removeSync(path);
  await new Deno.Command("mkfifo", { args: [path] }).output();
  try {
    assertThrows(() => Mappable.open(path), OsError, "a pipe");
    assertThrows(() => Mappable.open(path, { write: true }), OsError, "a pipe");
  } finally {
    Deno.removeSync(path);
  }
});

Deno.test("fromFd duplicates: both descriptors live and die on their own", () => {
  using raw = rawMemfd(0x2000);
  const mappable = Mappable.fromFd(raw.fd);
  assert(mappable.fd !== raw.fd);
  assertEquals(mappable.size, 0x2000);
  assertEquals(fdFlags(mappable.fd), CLOSE_ON_EXEC);
  const { fd } = mappable;
  mappable[Symbol.dispose]();
  assertEquals(fdFlags(fd), undefined);
  assertEquals(fdFlags(raw.fd), CLOSE_ON_EXEC);
});

Deno.test("fromFd refuses what is no descriptor or not mappable", () => {
  assertEquals(assertThrows(() => Mappable.fromFd(100_000), OsError).code, "EBADF");
  assertThrows(() => Mappable.fromFd(-1), RangeError);
  assertThrows(() => Mappable.fromFd(2 ** 31), RangeError);
  assertThrows(() => Mappable.fromFd(1.5), RangeError);
  const { sys } = libc();
  const event = sys.eventfd(0, 0);
  assertThrows(() => Mappable.fromFd(event), OsError, "mmap failed with ENODEV");
  sys.close(event);
});

Deno.test("a file open for writing only is refused", () => {
  using file = tempFile(new Uint8Array(1));
  const { sys } = libc();
  const fd = sys.open(cString(file.path), 1, 0);
  assertEquals(assertThrows(() => Mappable.fromFd(fd), OsError, "writing only").code, "EACCES");
  sys.close(fd);
});

Deno.test("seals against writing make a memfd unwritable, also when they come later", () => {
  for (const seal of [F_SEAL_WRITE, F_SEAL_FUTURE_WRITE]) {
    using early = rawMemfd(0x1000, seal);
    using sealed = Mappable.fromFd(early.fd);
    assertFalse(sealed.writable);
    assertThrows(() => sealed.write(0, new Uint8Array(1)), OsError, "EPERM");

    using late = rawMemfd(0x1000);
    using mappable = Mappable.fromFd(late.fd);
    assert(mappable.writable);
    libc().sys.fcntl(late.fd, F_ADD_SEALS, seal);
    assertFalse(mappable.writable);
  }
});

Deno.test("only a seal against shrinking makes a file safe from truncation", () => {
  using open = rawMemfd(0x1000);
  using grow = rawMemfd(0x1000, F_SEAL_GROW);
  using shrink = rawMemfd(0x1000, F_SEAL_SHRINK);
  for (const [raw, truncatable] of [[open, true], [grow, true], [shrink, false]] as const) {
    using mappable = Mappable.fromFd(raw.fd);
    assertEquals(fileOf(mappable).truncatable, truncatable);
  }
});

Deno.test("a huge page size that is none is refused", () => {
  for (const hugepageSize of [0, 4096, 3 * 2 ** 20, -1, NaN]) {
    assertThrows(() => Mappable.memfd("huge", 2 ** 21, { hugepageSize }), RangeError, "Huge page size");
  }
  assertThrows(() => Mappable.memfd("huge", 2 ** 20, { hugepageSize: HUGE_PAGE }), RangeError, "0x200000");
  assertThrows(() => Mappable.memfd("huge", 2 ** 24, { hugepageSize: 2 ** 24 }), OsError, "huge pages of 0x1000000");
});

Deno.test("a memfd of more huge pages than there are fails at once and says where the pool is", () => {
  const before = openFds();
  const error = assertThrows(() => Mappable.memfd("huge", 2 ** 40, { hugepageSize: HUGE_PAGE }), OsError);
  assertStringIncludes(error.message, "/proc/sys/vm/nr_hugepages");
  assertEquals(openFds(), before);
});

hugePageTest("a memfd of huge pages has their page size and can be written across pages", 2, () => {
  using memory = Mappable.memfd("huge", 2 * HUGE_PAGE, { hugepageSize: HUGE_PAGE });
  assertEquals([memory.size, memory.pageSize], [2 * HUGE_PAGE, HUGE_PAGE]);
  assert(memory.writable && fileOf(memory).mayFailLate && !fileOf(memory).truncatable);
  memory.write(HUGE_PAGE - 2, new Uint8Array([1, 2, 3, 4]));
  memory.write(0, new Uint8Array(0));
  const back = new Uint8Array(6);
  memory.read(HUGE_PAGE - 3, back);
  assertEquals(back, new Uint8Array([0, 1, 2, 3, 4, 0]));
  assertThrows(() => memory.write(2 * HUGE_PAGE - 1, new Uint8Array(2)), RangeError);

  using same = Mappable.fromFd(memory.fd);
  assertEquals(same.pageSize, HUGE_PAGE);
  assert(fileOf(same).mayFailLate);
});

Deno.test("ten thousand memfds, clones and failures leave no descriptor behind", () => {
  using file = tempFile(new Uint8Array(1));
  const before = openFds();
  for (let i = 0; i < 2500; i++) {
    using memory = Mappable.memfd("ram", 0x1000);
    using _clone = memory.clone();
    using _duplicate = Mappable.fromFd(memory.fd);
    using _file = Mappable.open(file.path);
    assertThrows(() => Mappable.open("/dev/zero"), OsError);
  }
  assertEquals(openFds(), before);
});
