import { assertEquals, assertThrows } from "@std/assert";
import { FileMapping } from "../../ffi/os/address_space.ts";
import { libc } from "../../ffi/os/libc.ts";
import { Mappable } from "../../ffi/files/mappable.ts";
import { PROT_READ, PROT_WRITE } from "../../ffi/os/mman.ts";
import { OsError } from "../../ffi/os/os_error.ts";
import { writeProcessMemory } from "../../ffi/os/process_memory.ts";
import { HUGE_PAGE, hugePageTest } from "../support/require.ts";

Deno.test("memory is written by address, and where there is none it is an error and no signal", () => {
  using file = Mappable.memfd("file", 0x2000, { seal: false });
  using mapping = new FileMapping(file.fd, 0, 0x2000, PROT_READ | PROT_WRITE);
  const bytes = new Uint8Array([1, 2, 3]);
  writeProcessMemory(mapping.address + 0xfff, bytes);
  const back = new Uint8Array(5);
  file.read(0xffe, back);
  assertEquals([...back], [0, 1, 2, 3, 0]);
  libc().sys.ftruncate(file.fd, 0x1000n);
  const error = assertThrows(() => writeProcessMemory(mapping.address + 0x1000, bytes), OsError);
  assertEquals([error.syscall, error.code], ["process_vm_writev", "EFAULT"]);
  assertThrows(() => writeProcessMemory(0x1000, bytes), OsError);
});

hugePageTest("a huge-page file is written whole, at any offset, and not once it is too short", 2, () => {
  using file = Mappable.memfd("huge", 2 * HUGE_PAGE, { hugepageSize: HUGE_PAGE, seal: false });
  file.write(HUGE_PAGE - 2, new Uint8Array([1, 2, 3, 4]));
  const back = new Uint8Array(6);
  file.read(HUGE_PAGE - 3, back);
  assertEquals([...back], [0, 1, 2, 3, 4, 0]);
  file.write(0, new Uint8Array(2 * HUGE_PAGE).fill(7));
  libc().sys.ftruncate(file.fd, BigInt(HUGE_PAGE));
  assertThrows(() => file.write(HUGE_PAGE, back), RangeError);
});
