import { assertEquals, assertThrows } from "@std/assert";
import { Mappable } from "membacking";
import { releaseAddresses, reserveAddresses } from "../../ffi/os/address_space.ts";
import { libc } from "../../ffi/os/libc.ts";
import { MAP_ANONYMOUS, MAP_FIXED, MAP_NORESERVE, MAP_PRIVATE, PROT_READ, PROT_WRITE } from "../../ffi/os/mman.ts";
import { OsError } from "../../ffi/os/os_error.ts";
import { hostView, revokeView } from "../../ffi/os/view.ts";
import { privatePages } from "../../ffi/host/private_pages.ts";
import { testUnless } from "../support/require.ts";
import { PAGE } from "../support/units.ts";

const PAGES = 3000;

/** Private memory over a file, or anonymous, until disposed. */
function mapped(file: Mappable | null) {
  const address = reserveAddresses(PAGES * PAGE, PAGE);
  const flags = MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE | (file === null ? MAP_ANONYMOUS : 0);
  libc().sys.mmap(BigInt(address), BigInt(PAGES * PAGE), PROT_READ | PROT_WRITE, flags, file?.fd ?? -1, 0n);
  const view = hostView(address, PAGES * PAGE);
  return {
    address,
    bytes: new Uint8Array(view),
    [Symbol.dispose]() {
      revokeView(view);
      releaseAddresses(address, PAGES * PAGE);
    },
  };
}

const noScan = (() => {
  using memory = mapped(null);
  try {
    privatePages(memory.address, PAGE, "scan");
    return undefined;
  } catch (error) {
    return error instanceof OsError ? "this kernel has no PAGEMAP_SCAN, which came with Linux 6.7" : String(error);
  }
})();

for (const how of ["scan", "read"] as const) {
  testUnless(
    how === "scan" ? noScan : undefined,
    `the pages written of a private mapping of a file are private, those read are not (${how})`,
    () => {
      using file = Mappable.memfd("file", PAGES * PAGE);
      file.write(0, new Uint8Array(PAGES * PAGE).fill(1));
      using memory = mapped(file);
      let sum = 0;
      for (let page = 0; page < PAGES; page++) sum += memory.bytes[page * PAGE] ?? 0;
      assertEquals(sum, PAGES);
      assertEquals(privatePages(memory.address, PAGES * PAGE, how), []);
      // More runs than one call to the kernel has room for.
      const expected = [];
      for (let page = 1; page + 1 < PAGES; page += 3) {
        memory.bytes[page * PAGE] = 2;
        memory.bytes[(page + 1) * PAGE] = 2;
        expected.push({ start: memory.address + page * PAGE, end: memory.address + (page + 2) * PAGE });
      }
      assertEquals(privatePages(memory.address, PAGES * PAGE, how), expected);
      assertEquals(privatePages(memory.address + 2 * PAGE, 3 * PAGE, how), [
        { start: memory.address + 2 * PAGE, end: memory.address + 3 * PAGE },
        { start: memory.address + 4 * PAGE, end: memory.address + 5 * PAGE },
      ]);
    },
  );

  testUnless(how === "scan" ? noScan : undefined, `pages of anonymous memory are private once written (${how})`, () => {
    using memory = mapped(null);
    memory.bytes[5 * PAGE] = 1;
    memory.bytes[6 * PAGE] = 1;
    assertEquals(privatePages(memory.address, PAGES * PAGE, how), [
      { start: memory.address + 5 * PAGE, end: memory.address + 7 * PAGE },
    ]);
  });
}

testUnless(noScan, "both ways agree about pages that were written at random", () => {
  using file = Mappable.memfd("file", PAGES * PAGE);
  using memory = mapped(file);
  for (let i = 0; i < 500; i++) memory.bytes[Math.floor(Math.random() * PAGES) * PAGE] = 1;
  const [scanned, read] = (["scan", "read"] as const).map((how) => privatePages(memory.address, PAGES * PAGE, how));
  assertEquals(scanned, read);
});

Deno.test("asking about addresses beyond those of a process is an error", () => {
  assertThrows(() => privatePages(2 ** 60, PAGE, "any"), OsError);
});
