import { assertEquals, assertInstanceOf, assertThrows } from "@std/assert";
import { libc } from "../../ffi/os/libc.ts";
import { OsError, unwrap } from "../../ffi/os/os_error.ts";
import { MembackingError } from "../../src/core/errors.ts";

Deno.test("an OsError says which call failed, with which error, and what was being done", () => {
  const error = new OsError("mmap", 12, "guest memory at 0x0-0x1000");
  assertInstanceOf(error, MembackingError);
  assertEquals([error.name, error.syscall, error.errno, error.code], ["OsError", "mmap", 12, "ENOMEM"]);
  assertEquals(
    error.message,
    "mmap failed with ENOMEM (out of memory, of mappings or of address space): guest memory at 0x0-0x1000",
  );
  assertEquals(new OsError("mmap", 12, "x", { cause: error }).cause, error);
});

Deno.test("an error number without a name is shown as a number", () => {
  const error = new OsError("ioctl", 4095);
  assertEquals([error.code, error.message], ["errno 4095", "ioctl failed with errno 4095"]);
});

Deno.test("unwrap passes results on and throws for -1 only", () => {
  assertEquals([unwrap(0, 5, "x"), unwrap(7, 5, "x"), unwrap(-2, 5, "x")], [0, 7, -2]);
  assertThrows(() => unwrap(-1, 9, "close", () => "the detail"), OsError, "close failed with EBADF");
});

Deno.test("errno is right however busy the garbage collector is", () => {
  const { sys, errno } = libc();
  const litter: unknown[] = [];
  let wrong = 0;
  for (let i = 0; i < 300_000; i++) {
    litter[i % 4096] = { i, bytes: new Uint8Array(i % 64), text: `${i}` };
    // Two different failures in turn, so that a stale number shows.
    const expected = i % 2 === 0 ? 9 : 22;
    const failed = i % 2 === 0 ? sys.close(-1) === -1 ? errno[0] : 0 : sys.madvise(1n, 4096n, 0) === -1 ? errno[0] : 0;
    if (failed !== expected) wrong++;
  }
  assertEquals(wrong, 0);
});
