import { assert, assertEquals, assertGreater, assertStringIncludes, assertThrows } from "@std/assert";
import { cString, libc } from "../../ffi/os/libc.ts";
import { MFD_CLOEXEC, MFD_HUGETLB } from "../../ffi/os/mman.ts";
import { fileOf, Mappable } from "../../ffi/files/mappable.ts";
import { OsError } from "../../ffi/os/os_error.ts";
import { HostAddresses } from "../../ffi/host/host_addresses.ts";
import { revokeView } from "../../ffi/os/view.ts";
import { mappingFlags, mappings, type Vma } from "../support/proc.ts";
import { HUGE_PAGE, hugePageTest } from "../support/require.ts";
import { PAGE } from "../support/units.ts";

/** What is mapped in a reservation, as `access@start-end`, offsets into it. */
function layout(va: HostAddresses): string[] {
  return mappings(va.base, va.base + va.length).map(({ start, end, access }) =>
    `${access} ${(Math.max(start, va.base) - va.base).toString(16)}-${
      (Math.min(end, va.base + va.length) - va.base).toString(16)
    }`
  );
}

function vmaAt(va: HostAddresses, offset: number): Vma {
  const [vma] = mappings(va.base + offset, va.base + offset + 1);
  if (vma === undefined) throw new Error("nothing is mapped there");
  return vma;
}

function bytesAt(va: HostAddresses, start: number, length: number): Uint8Array {
  const view = va.view(start, start + length);
  const copy = new Uint8Array(view).slice();
  revokeView(view);
  return copy;
}

function filled(name: string, length: number, value: number): Mappable {
  const mappable = Mappable.memfd(name, length);
  mappable.write(0, new Uint8Array(length).fill(value));
  return mappable;
}

Deno.test("a reservation is one inaccessible mapping, aligned to 2 MiB, of exactly its length", () => {
  using va = HostAddresses.reserve(0x1234_5000);
  assertEquals(va.base % HUGE_PAGE, 0);
  assertEquals(va.length, 0x1234_5000);
  assertEquals(layout(va), ["---p 0-12345000"]);
});

Deno.test("a reservation is aligned as asked", () => {
  for (const alignment of [2 ** 21, 2 ** 25, 2 ** 30, 2 ** 39]) {
    using va = HostAddresses.reserve(PAGE, { alignment });
    assertEquals(va.base % alignment, 0);
  }
});

Deno.test("16 TiB can be reserved, and cost nothing", () => {
  using va = HostAddresses.reserve(2 ** 44);
  assertEquals(va.length, 2 ** 44);
});

Deno.test("a reservation of a bad length or alignment is refused", () => {
  for (const length of [0, -PAGE, 1, 4097, 1.5, NaN, Infinity, 2 ** 47 + PAGE, 2 ** 60]) {
    assertThrows(() => HostAddresses.reserve(length), RangeError);
  }
  for (const alignment of [0, 0.5, 3 * PAGE, 3 * 2 ** 20, 2 ** 22 + PAGE, NaN, -(2 ** 21)]) {
    assertThrows(() => HostAddresses.reserve(PAGE, { alignment }), RangeError, "lignment");
  }
  assertThrows(() => HostAddresses.reserve("4096" as unknown as number), TypeError);
});

Deno.test("a reservation is aligned to large pages even where less was asked for", () => {
  for (const alignment of [1, PAGE, 2 ** 20]) {
    using va = HostAddresses.reserve(PAGE, { alignment });
    assertEquals(va.base % 2 ** 21, 0);
  }
});

Deno.test("more address space than the host has is ENOMEM", () => {
  const error = assertThrows(() => HostAddresses.reserve(2 ** 47), OsError);
  assertEquals([error.syscall, error.code], ["mmap", "ENOMEM"]);
});

Deno.test("a mapping shows the file, from its offset on, and stores reach the file", () => {
  using va = HostAddresses.reserve(0x10_0000);
  using memory = Mappable.memfd("ram", 4 * PAGE);
  memory.write(PAGE, new Uint8Array([1, 2, 3]));
  va.map(2 * PAGE, 4 * PAGE, memory, PAGE, true, undefined);
  assertEquals(layout(va), ["---p 0-2000", "rw-s 2000-4000", "---p 4000-100000"]);
  assertEquals(bytesAt(va, 2 * PAGE, 3), new Uint8Array([1, 2, 3]));
  const view = va.view(3 * PAGE, 4 * PAGE);
  new Uint8Array(view)[0] = 42;
  revokeView(view);
  const back = new Uint8Array(1);
  memory.read(2 * PAGE, back);
  assertEquals(back[0], 42);
});

Deno.test("nothing in a reservation is ever executable", () => {
  using va = HostAddresses.reserve(0x10_0000);
  using memory = Mappable.memfd("ram", PAGE);
  va.map(0, PAGE, memory, 0, true, undefined);
  va.map(PAGE, 2 * PAGE, memory, 0, false, undefined);
  va.map(2 * PAGE, 3 * PAGE, null, 0, true, undefined);
  va.protect(PAGE, 2 * PAGE, true);
  for (const { access } of mappings(va.base, va.base + va.length)) assertEquals(access[2], "-");
});

Deno.test("mapping over a mapping replaces it, and removing leaves the reservation", () => {
  using va = HostAddresses.reserve(0x10_0000);
  using a = filled("a", 4 * PAGE, 0xaa);
  using b = filled("b", 4 * PAGE, 0xbb);
  va.map(0, 4 * PAGE, a, 0, true, undefined);
  va.map(PAGE, 2 * PAGE, b, 0, false, undefined);
  assertEquals([0, 1, 2, 3].map((page) => bytesAt(va, page * PAGE, 1)[0]), [0xaa, 0xbb, 0xaa, 0xaa]);
  va.remove(0, 2 * PAGE);
  va.remove(3 * PAGE, 4 * PAGE);
  assertEquals(layout(va), ["---p 0-2000", "rw-s 2000-3000", "---p 3000-100000"]);
  va.remove(0, va.length);
  assertEquals(layout(va), ["---p 0-100000"]);
});

Deno.test("private memory is zeros, belongs to no file, and keeps its contents when its protection changes", () => {
  using va = HostAddresses.reserve(0x10_0000);
  va.map(0, 2 * PAGE, null, 0, true, undefined);
  const view = va.view(0, PAGE);
  assertEquals(new Uint8Array(view)[7], 0);
  new Uint8Array(view)[7] = 1;
  revokeView(view);
  va.protect(0, 2 * PAGE, false);
  assertEquals(vmaAt(va, 0).access, "r--p");
  assertEquals(vmaAt(va, 0).file, "");
  va.protect(0, 2 * PAGE, true);
  assertEquals(bytesAt(va, 7, 1)[0], 1);
});

Deno.test("a file that is not open for writing is mapped for reading, and cannot be made writable", () => {
  const path = Deno.makeTempFileSync();
  Deno.writeFileSync(path, new Uint8Array(PAGE).fill(3));
  using file = Mappable.open(path);
  Deno.removeSync(path);
  using va = HostAddresses.reserve(0x10_0000);
  va.map(0, PAGE, file, 0, false, undefined);
  assertEquals(bytesAt(va, 0, 1)[0], 3);
  assertEquals(assertThrows(() => va.protect(0, PAGE, true), OsError).code, "EACCES");
  assertEquals(assertThrows(() => va.map(PAGE, 2 * PAGE, file, 0, true, undefined), OsError).code, "EACCES");
  // The range that could not be mapped is still the reservation's.
  assertEquals(layout(va), ["r--s 0-1000", "---p 1000-100000"]);
});

Deno.test("no call reaches outside the reservation", () => {
  using va = HostAddresses.reserve(0x10_0000);
  using memory = Mappable.memfd("ram", PAGE);
  const ranges = [[-PAGE, 0], [0, 0], [PAGE, 0], [0xf_f000, 0x10_1000], [0x10_0000, 0x10_1000], [NaN, PAGE], [0, NaN]];
  for (const [start = 0, end = 0] of ranges) {
    const calls = [
      () => va.map(start, end, memory, 0, true, undefined),
      () => va.map(start, end, null, 0, true, undefined),
      () => va.protect(start, end, true),
      () => va.remove(start, end),
      () => va.populate(start, end, true),
      () => va.advise(start, end, 0),
      () => va.lockPages(start, end),
      () => va.unlockPages(start, end),
      () => va.view(start, end),
    ];
    for (const call of calls) assertThrows(call, RangeError, "not a range inside a reservation");
  }
  assertEquals(layout(va), ["---p 0-100000"]);
});

Deno.test("numbers that are no whole pages are the kernel's EINVAL, and leave what was there", () => {
  using va = HostAddresses.reserve(0x10_0000);
  using memory = filled("ram", 2 * PAGE, 1);
  va.map(0, 2 * PAGE, memory, 0, true, undefined);
  const error = assertThrows(() => va.map(0, PAGE, memory, 0x800, true, undefined), OsError);
  assertEquals([error.syscall, error.code], ["mmap", "EINVAL"]);
  assertStringIncludes(error.message, "0x0-0x1000");
  assertThrows(() => va.map(0x800, PAGE, memory, 0, true, undefined), OsError, "EINVAL");
  assertThrows(() => va.map(0.5, PAGE, memory, 0, true, undefined), RangeError);
  assertThrows(() => va.map(0, PAGE + 0.5, memory, 0, true, undefined), RangeError);
  for (const offset of [0.5, -PAGE, NaN]) {
    assertThrows(() => va.map(0, PAGE, memory, offset, true, undefined), RangeError, "File offset");
  }
  assertEquals(bytesAt(va, 0, 1)[0], 1);
});

Deno.test("populate brings memory in, and says where there is none", () => {
  using va = HostAddresses.reserve(0x10_0000);
  using memory = Mappable.memfd("ram", 2 * PAGE);
  va.map(0, 4 * PAGE, memory, 0, true, undefined);
  va.populate(0, 2 * PAGE, true);
  va.populate(0, 2 * PAGE, false);
  assertEquals(assertThrows(() => va.populate(0, 4 * PAGE, true), OsError).code, "EFAULT");
  // Inaccessible addresses: EINVAL or ENOMEM, depending on the kernel's version and the access.
  assertThrows(() => va.populate(8 * PAGE, 9 * PAGE, true), OsError, "madvise");
  va.protect(0, 2 * PAGE, false);
  assertEquals(assertThrows(() => va.populate(0, 2 * PAGE, true), OsError).code, "EINVAL");
});

Deno.test("NUMA node and huge page policy apply to mappings, and a node that is not there is an error", () => {
  using va = HostAddresses.reserve(0x100_0000);
  using memory = Mappable.memfd("ram", HUGE_PAGE);
  va.map(0, HUGE_PAGE, memory, 0, true, { hostNumaNode: 0 });
  va.map(HUGE_PAGE, 2 * HUGE_PAGE, null, 0, true, { hostNumaNode: 0, transparentHugepages: true });
  va.map(2 * HUGE_PAGE, 3 * HUGE_PAGE, null, 0, true, { transparentHugepages: false });
  assert(mappingFlags(va.base + HUGE_PAGE).includes("hg"));
  assert(mappingFlags(va.base + 2 * HUGE_PAGE).includes("nh"));
  for (const hostNumaNode of [1023, 64, 63]) {
    const error = assertThrows(() => va.map(0, PAGE, memory, 0, true, { hostNumaNode }), OsError);
    assertEquals([error.syscall, error.code], ["mbind", "EINVAL"]);
  }
  for (const hostNumaNode of [1024, -1, 0.5]) {
    assertThrows(() => va.map(0, PAGE, memory, 0, true, { hostNumaNode }), RangeError, "NUMA node");
  }
});

hugePageTest("huge pages are mapped, moved in place of others, and removed", 2, () => {
  using va = HostAddresses.reserve(2 ** 30);
  using huge = Mappable.memfd("huge", 2 * HUGE_PAGE, { hugepageSize: HUGE_PAGE });
  using small = filled("small", HUGE_PAGE, 0x11);
  huge.write(0, new Uint8Array([0x21]));
  huge.write(HUGE_PAGE, new Uint8Array([0x22]));
  va.map(0, HUGE_PAGE, small, 0, true, undefined);
  va.map(0, 2 * HUGE_PAGE, huge, 0, true, { transparentHugepages: undefined as never });
  assertEquals([bytesAt(va, 0, 1)[0], bytesAt(va, HUGE_PAGE, 1)[0]], [0x21, 0x22]);
  va.map(0, HUGE_PAGE, small, 0, true, undefined);
  assertEquals([bytesAt(va, 0, 1)[0], bytesAt(va, HUGE_PAGE, 1)[0]], [0x11, 0x22]);
  va.remove(0, 2 * HUGE_PAGE);
  assertEquals(layout(va), ["---p 0-40000000"]);
});

hugePageTest("a range that cuts a huge page is refused before anything is replaced", 1, () => {
  using va = HostAddresses.reserve(2 ** 30);
  using huge = Mappable.memfd("huge", HUGE_PAGE, { hugepageSize: HUGE_PAGE });
  using small = filled("small", HUGE_PAGE, 0x11);
  va.map(0, HUGE_PAGE, small, 0, true, undefined);
  for (const [start, end, offset] of [[0, PAGE, 0], [PAGE, HUGE_PAGE, 0], [0, HUGE_PAGE, PAGE]] as const) {
    assertThrows(() => va.map(start, end, huge, offset, true, undefined), RangeError, "whole pages of 0x200000");
  }
  assertEquals(bytesAt(va, 0, 1)[0], 0x11);
  assertEquals(vmaAt(va, 0).end - va.base, HUGE_PAGE);
});

hugePageTest("a huge page mapping that fails late leaves the mapping it should have replaced", 1, () => {
  const { sys } = libc();
  // A file of more huge pages than there are, none of them reserved: mmap fails when it comes to reserving them.
  const fd = sys.memfd_create(cString("too large"), MFD_CLOEXEC | MFD_HUGETLB | (21 << 26));
  sys.ftruncate(fd, BigInt(2 ** 35));
  using huge = Mappable.fromFd(fd);
  sys.close(fd);
  assert(fileOf(huge).mayFailLate);
  using va = HostAddresses.reserve(2 ** 36);
  using small = filled("small", HUGE_PAGE, 0x11);
  va.map(0, HUGE_PAGE, small, 0, true, undefined);
  const error = assertThrows(() => va.map(0, 2 ** 35, huge, 0, true, undefined), OsError);
  assertEquals([error.syscall, error.code], ["mmap", "ENOMEM"]);
  assertEquals(bytesAt(va, 0, 1)[0], 0x11);
  assertEquals(layout(va), ["rw-s 0-200000", "---p 200000-1000000000"]);
  assertEquals(mappings().filter(({ file }) => file.includes("too large")), []);
});

hugePageTest("a hole that a failed replacement leaves is plugged at once", 1, () => {
  const { sys } = libc();
  const fd = sys.memfd_create(cString("too large"), MFD_CLOEXEC | MFD_HUGETLB | (21 << 26));
  sys.ftruncate(fd, BigInt(2 ** 35));
  // A file that claims to be steady and is not, so that it is mapped in place.
  using liar = Mappable.fromFd(fd);
  Object.assign(fileOf(liar), { mayFailLate: false });
  using va = HostAddresses.reserve(2 ** 36);
  using small = filled("small", HUGE_PAGE, 0x11);
  va.map(0, HUGE_PAGE, small, 0, true, undefined);
  assertThrows(() => va.map(0, 2 ** 35, liar, 0, true, undefined), OsError, "ENOMEM");
  sys.close(fd);
  // Whether the old mapping is gone depends on the kernel; that the addresses are still reserved must not.
  // The kernel may have made one mapping of these addresses and what lies beside them.
  const end = va.base + va.length;
  const parts = mappings(va.base, end).map((vma) => [Math.max(vma.start, va.base), Math.min(vma.end, end)] as const);
  assertEquals(parts.reduce((at, [from, to]) => from === at ? to : -1, va.base), end);
  va.map(0, HUGE_PAGE, small, 0, true, undefined);
  assertEquals(bytesAt(va, 0, 1)[0], 0x11);
});

Deno.test("five thousand reservations with mappings leave no mapping behind", () => {
  using memory = Mappable.memfd("five thousand", 4 * PAGE);
  const cycle = () => {
    using va = HostAddresses.reserve(2 ** 30, { alignment: 2 ** 30 });
    va.map(0, 4 * PAGE, memory, 0, true, undefined);
    va.map(PAGE, 2 * PAGE, null, 0, false, undefined);
    va.remove(0, PAGE);
    assertThrows(() => va.map(0, PAGE, memory, 1, true, undefined), OsError);
  };
  for (let i = 0; i < 100; i++) cycle();
  const before = mappings().length;
  for (let i = 0; i < 5000; i++) cycle();
  // V8 may have grown its heap meanwhile.
  assertGreater(before + 20, mappings().length);
  assertEquals(mappings().filter(({ file }) => file.includes("memfd:five thousand")), []);
});
